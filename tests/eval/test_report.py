"""The report's parts by hand, and whole reports of runs that lack something."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm_cca.errors import UserError
from mm_cca.runs.preview_record import PreviewRecord, picture_of
from tests.support import runs


def report_of(reported: Path, run: Path, *overrides: str) -> str:
    runs.do(reported, f"run.dir={run}", *overrides, stages=["report"])
    return (run / "report.html").read_text(encoding="utf-8")


def test_numbers_per_prompt_make_up_the_means(reported: Path):
    run = reported.parent / "run"
    numbers = json.loads((run / "eval" / "per_prompt.json").read_text())
    summary = json.loads((run / "report.json").read_text())
    lines = runs.json_lines(run / "samples" / "cca" / "manifest.jsonl")
    for split, mine in numbers.items():
        own = [line for line in lines if line["split"] == split]
        assert mine["indices"] == [line["index"] for line in own]
        assert mine["captions"] == [line["prompt"] for line in own]
        judged = mine["judges"]["emoji-clip"]
        assert list(judged) == [arm["name"] for arm in summary["arms"]]
        for arm in summary["arms"]:
            found, scores = judged[arm["name"]], arm["scores"]["emoji-clip"][split]
            mean = scores["alignment"]["value"]
            assert np.mean(found["alignment"]) == pytest.approx(mean, abs=1e-3)
            share = np.mean(np.array(found["rank"]) < 5)
            assert share == pytest.approx(scores["r_at_5"]["value"])


def test_verdict_comes_first(reported: Path):
    page = (reported.parent / "run" / "report.html").read_text()
    headings = re.findall(r"<h2>([^<:]*)", page)
    assert headings[0] == "Verdict"
    assert headings[1:] == [
        "Scores", "Scores", "Images", "Training", "Protocol", "How to reproduce"
    ]  # fmt: skip
    lead = re.search(r'<li class="\w+ lead">.*?<span>(.*?)</span>', page)
    assert lead
    assert re.search(r"base\+cfg[23] in alignment .* at 0.5x the forward passes\.", lead[1])


def test_every_judge_has_a_sentence_on_the_first_screen(reported: Path):
    page = (reported.parent / "run" / "report.html").read_text()
    first = page.split('<ul class="judge-verdicts">')[1].split("</ul>")[0]
    text = " ".join(re.sub(r"<[^>]+>", "", first).split())
    assert re.fullmatch(
        r"● emoji-clip: on train .* in alignment.*; on heldout .* in alignment.*\.", text
    )
    places = [
        page.index(f'class="{name}"') for name in ("judge-verdicts", "sample-strip", "forests")
    ]
    assert places == sorted(places)
    assert "<b>CCA without guidance against the guided base</b>, at 0.5x the forward passes" in page


def test_the_first_page_of_the_grid_is_in_the_page_without_javascript(
    reported: Path, changed: Path
):
    (changed / "samples" / "cca" / "000001.png").unlink()
    page = report_of(reported, changed)
    tables = page.split("<noscript>")[1].split("</noscript>")[0].split("<h3>")[1:]
    assert len(tables) == 2
    for table, grid in zip(tables, runs.grids_of(changed / "report.html"), strict=True):
        rows = table.split('<th scope="row">')[1:]
        assert [row.split("<")[0] for row in rows] == grid["captions"][:3]
        shown = [column for column in grid["columns"] if column["shown"]]
        for number, row in enumerate(rows):
            sources = re.findall(r'<img src="data:image/webp;base64,([^"]+)"', row)
            there = [c["thumbs"][str(number)] for c in shown if number not in c["missing"]]
            assert sources == there
    assert tables[0].count("no image") == 1


def test_the_page_of_a_run_that_is_not_scored_says_so(reported: Path, changed: Path):
    for name in ("summary.json", "stage.json"):
        (changed / "eval" / name).unlink()
    with pytest.raises(UserError, match=r"summary\.json does not exist: run `mm-cca eval"):
        report_of(reported, changed)


def test_previews_are_a_strip_over_the_steps(reported: Path, changed: Path):
    assert "<h3>Previews</h3>" not in report_of(reported, changed)
    training = changed / "train"
    PreviewRecord(["a <red> owl"], 2.5, {}, {0: 1.0, 3: 1.0}).write(training)
    for number, (step, guided) in enumerate([(0, False), (0, True), (3, False)]):
        path = picture_of(training, step, 0, guided=guided)
        path.parent.mkdir(exist_ok=True)
        runs.picture(number).save(path)
    page = report_of(reported, changed)
    strip = page.split("<h3>Previews</h3>")[1].split("</table>")[0]
    assert '<table class="previews pixels">' in strip
    assert re.findall(r'<th scope="col">([^<]*)', strip) == ["prompt", "base", "step 3"]
    assert "without guidance and with guidance 2.5" in strip
    shown = re.findall(r'base64,([^"]*)" alt="([^"]*)"', strip)
    names = ["base", "step 3", "base, guided"]
    assert [alt for _, alt in shown] == [f"a &lt;red&gt; owl, {name}" for name in names]
    for (content, _), number in zip(shown, (0, 2, 1), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert np.array_equal(np.asarray(image), np.asarray(runs.picture(number)))
    (training / "previews" / "previews.json").write_text("no JSON")
    with pytest.raises(UserError, match=r"previews\.json can't be read"):
        report_of(reported, changed)


def test_missing_and_unreadable_pictures_are_named_and_counted(reported: Path, changed: Path):
    (changed / "samples" / "cca" / "000001.png").unlink()
    (changed / "samples" / "base+cfg2" / "000009.png").write_bytes(b"no picture")
    page = report_of(reported, changed)
    assert "2 images can't be shown" in page
    assert "<code>samples/cca/000001.png</code>: missing" in page
    assert "<code>samples/base+cfg2/000009.png</code>: unreadable" in page
    missing = {
        (grid["split"], column["name"]): column["missing"]
        for grid in runs.grids_of(changed / "report.html")
        for column in grid["columns"]
        if column["missing"]
    }
    assert missing == {("train", "cca"): [1], ("heldout", "base+cfg2"): [1]}


def test_without_room_pictures_stay_outside_and_are_still_checked(reported: Path, changed: Path):
    (changed / "samples" / "cca" / "000003.png").unlink()
    page = report_of(reported, changed, "eval.report_megabytes=0")
    assert "<code>samples/cca/000003.png</code>: missing" in page
    for grid in runs.grids_of(changed / "report.html"):
        assert not any(column["thumbs"] for column in grid["columns"])
        for index in grid["indices"]:
            picture = Image.open(changed / "real" / f"{index:06d}.webp")
            assert picture.size == (16, 16)


def test_with_little_room_the_shown_columns_come_first(reported: Path, changed: Path):
    report_of(reported, changed, "eval.report_megabytes=0.03")
    for grid in runs.grids_of(changed / "report.html"):
        inside = {column["name"]: len(column["thumbs"]) for column in grid["columns"]}
        total = sum(len(text) for c in grid["columns"] for text in c["thumbs"].values())
        assert 0 < total <= 15_000
        shown = [column["name"] for column in grid["columns"] if column["shown"]]
        hidden = [column["name"] for column in grid["columns"] if not column["shown"]]
        assert len(hidden) == 1
        assert inside[hidden[0]] < min(inside[name] for name in shown)


def test_data_that_is_gone_costs_the_real_column_only(reported: Path, changed: Path):
    data = reported.parent / "data.parquet"
    aside = data.rename(data.with_suffix(".aside"))
    try:
        page = report_of(reported, changed)
    finally:
        aside.rename(data)
    assert "<code>the real images of train</code>" in page
    for grid in runs.grids_of(changed / "report.html"):
        names = [column["name"] for column in grid["columns"]]
        assert names == ["base", "base+cfg2", "base+cfg3", "cca"]


@pytest.mark.parametrize("source", ["base", "cca"])
def test_a_run_with_the_arms_of_one_model(reported: Path, tmp_path: Path, source: str):
    """With one split, too. The base has no training."""
    run = tmp_path / "run"
    stages = ["sample", "eval", "report"]
    keys = [f"run.dir={run}", f"run.sources=[{source}]", "data.heldout_split=null"]
    if source == "base":
        keys.append("sample.guidance_scales=[]")
    else:
        stages.insert(0, "train")
    runs.do(reported, *keys, stages=stages)
    page = (run / "report.html").read_text()
    assert f"the arms of one model only ({source})" in page
    (grid,) = runs.grids_of(run / "report.html")
    assert [c["name"] for c in grid["columns"]] == ["real", source]
    assert grid["baseline"] is None
    assert ("Nothing was trained" in page) == (source == "base")


def test_a_run_that_was_scored_before_there_were_numbers_per_prompt(reported: Path, changed: Path):
    (changed / "eval" / "per_prompt.json").unlink()
    with pytest.raises(UserError, match=r"Delete .*eval and run `mm-cca eval RECIPE` again"):
        report_of(reported, changed)


def test_size_of_the_report_is_no_reason_to_score_again(reported: Path, changed: Path):
    before = runs.mtimes_of(changed / "eval")
    keys = ["eval.report_megabytes=1", "eval.grid_prompts=5"]
    runs.do(reported, f"run.dir={changed}", *keys, stages=["eval"])
    assert runs.mtimes_of(changed / "eval") == before
