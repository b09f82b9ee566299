"""The report's parts by hand, and whole reports of runs that lack something."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm_cca.errors import UserError
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
