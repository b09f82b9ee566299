"""The report's parts by hand, and whole reports of runs that lack something."""

import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from mm_cca.eval import svg as svg_module
from mm_cca.eval.curves import health, judged, panels, read_signals, smoothed
from mm_cca.eval.pictures import gains_of, looked_at_first, rival_of
from mm_cca.eval.plots import Point, scatter
from mm_cca.eval.tables import scores_of
from mm_cca.eval.thumbnails import Budget, check_picture, open_picture, thumbnail
from mm_cca.eval.wording import cost, in_words, standing, verdict_sentence
from PIL import Image

from mm_cca import cli
from mm_cca.errors import UserError
from tests import runs

PASSES = {"base": 64, "base+cfg2.5": 128, "cca": 64, "cca+dial0.5": 64, "control+cfg2": 128}


def interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("low", "high", "lower_is_better", "expected"),
    [
        (-0.7, 0.9, False, "level"),
        (0.0, 0.9, False, "level"),
        (-0.9, 0.0, True, "level"),
        (0.1, 0.9, False, "ahead"),
        (-0.9, -0.1, False, "behind"),
        (0.1, 0.9, True, "behind"),
        (-0.9, -0.1, True, "ahead"),
    ],
)
def test_standing(low: float, high: float, lower_is_better: bool, expected: str):
    found = standing(interval(0.0, low, high), lower_is_better=lower_is_better)
    assert found == expected


def test_a_verdict_is_a_sentence():
    verdict = {"arm": "cca", "against": "base+cfg2.5", "alignment": interval(0.1, -0.7, 0.9)}
    assert verdict_sentence(verdict, PASSES) == (
        "CCA without guidance is level with base+cfg2.5 in alignment (difference +0.1, 95 % "
        "interval -0.7 to +0.9) at 0.5x the forward passes."
    )


def test_a_verdict_of_two_scores_at_one_price():
    verdict = {
        "arm": "cca+dial0.5",
        "against": "base",
        "alignment": interval(3.0, 1.4, 4.6),
        "frechet_distance": interval(0.5, 0.12, 1.28),
        "r_at_5": interval(0, 0, 0),
    }
    assert verdict_sentence(verdict, PASSES) == (
        "CCA at dial 0.5 without guidance is ahead of the base without guidance in alignment "
        "(difference +3.0, 95 % interval +1.4 to +4.6) and behind in FD (difference +0.50, 95 % "
        "interval +0.12 to +1.28; lower is better) at the same number of forward passes."
    )


def test_words_for_arms_and_costs():
    assert in_words("cca+cfg2+neg1") == "CCA with cfg2 neg1"
    assert in_words("control+cfg2") == "control+cfg2"
    assert in_words("control") == "the control without guidance"
    assert cost(128, 64) == "at 2x the forward passes"


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        (-0.2, -4.0, "healthy"),
        (0.1, -4.0, "healthy"),
        (-0.7, -4.0, "lower than healthy"),
        (-1.2, -9.0, "collapse"),
        (-0.1, -0.2, "hardly told apart"),
    ],
)
def test_what_to_think_of_gaps(positive: float, negative: float, expected: str):
    assert expected in judged(positive, negative)


def write_metrics(path: Path, count: int, **last: float) -> Path:
    lines = [{"step": s, "loss": 1.0 / (s + 1), "kl": None, **last} for s in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_curves_are_per_code_and_leave_out_what_is_not_there(tmp_path: Path):
    path = write_metrics(tmp_path / "m.jsonl", 100, positive_gap=-12.8, negative_gap=-256.0)
    signals = read_signals(path, 64)
    assert set(signals) == {"loss", "positive_gap", "negative_gap"}
    assert "positive gap -0.20, negative gap -4.00 nats per code: healthy" in str(health(signals))
    plain = read_signals(write_metrics(tmp_path / "n.jsonl", 3), 64)
    assert set(plain) == {"loss"}
    assert health(plain) is None
    found = panels({"cca": signals, "control": plain})
    assert set(found) == set(signals)
    assert "cca ends at 0.0105, control ends at 0.333" in found["loss"]
    assert panels({"cca": read_signals(tmp_path / "none", 64)}) == {}


@pytest.mark.parametrize("span", [1, 2, 5, 50])
def test_smoothing_is_a_mean_around(span: int):
    values = np.random.default_rng(0).normal(size=23)
    half = span // 2
    expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
    assert smoothed(values, span) == pytest.approx(np.array(expected))


def test_rows_looked_at_first():
    gains = np.array([0.0, -5.0, 3.0, 9.0, -1.0])
    assert looked_at_first(gains, 5) == [0, 3, 1, 2, 4]
    assert looked_at_first(None, 3) == [0, 1, 2]


def arms(*names: str) -> dict[str, Any]:
    def entry(name: str) -> dict[str, Any]:
        scale = float(name.partition("cfg")[2] or 1)
        scores = {"train": {"alignment": {"value": scale}}}
        source = name.partition("+")[0]
        return {"name": name, "source": source, "guidance_scale": scale, "scores": scores}

    return {"arms": [entry(name) for name in names]}


def test_what_a_gain_is_measured_against():
    assert rival_of(arms("base", "base+cfg2", "base+cfg3", "cca"), "train") == "base+cfg3"
    assert rival_of(arms("base", "cca"), "train") == "base"
    assert rival_of(arms("base", "base+cfg2"), "train") is None
    assert rival_of(arms("cca"), "train") is None
    numbers = {"arms": {"cca": {"alignment": [3.0, 1.0]}, "base": {"alignment": [1.0, 2.0]}}}
    assert gains_of(numbers, "base").tolist() == [2.0, -1.0]


def test_a_score_that_is_new_has_a_column():
    scored = {"arms": [{"scores": {"train": {"alignment": {}, "sharp_score": {"value": 1.0}}}}]}
    assert scores_of(scored) == {
        "alignment": ("alignment ×100", "higher is better", 1),
        "sharp_score": ("sharp score", "", 3),
    }


def test_plots_take_their_colours_from_the_page_and_say_their_values():
    points = [
        Point("base", "base", "base", 0.1, 2.0, "base: FD 2.0"),
        Point("cca", "CCA", "cca", 0.2, 1.0, 'cca: "FD" <1.0>', is_main=True),
    ]
    svg = scatter(points, "recall", "FD", about="train", lines=[[0, 1]])
    assert {"currentColor", "var(--base)", "var(--cca)"} <= set(re.findall(r"[\w()-]+", svg))
    assert not re.findall(r"#[0-9a-f]{6}\b", svg), "a colour that dark mode can't change"
    assert "<title>base: FD 2.0</title>" in svg
    assert 'aria-label="cca: &quot;FD&quot; &lt;1.0&gt;"' in svg
    assert svg.count('class="point" tabindex="0"') == 2
    other = scatter(points, "recall", "FD", about="heldout", lines=[])
    ids = [set(re.findall(r' id="([^"]+)"', plot)) for plot in (svg, other)]
    assert not ids[0] & ids[1], "ids are unique in a page"


def test_labels_stay_inside_the_plot_and_off_each_other():
    points = [
        Point("cca", "CCA", f"point {n} of a long name", n % 2, 0.01 * n, "x") for n in range(6)
    ]
    placed: list[Any] = []

    class Spy(Figure):
        def savefig(self, *args: Any, **keywords: Any) -> None:
            placed.extend([label.get_window_extent() for label in self.axes[0].texts])
            placed.append(self.bbox)
            super().savefig(*args, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svg_module, "Figure", Spy)
        scatter(points, "x", "y", about="labels", lines=[])
    *labels, room = placed
    assert len(labels) == 6
    assert all(room.x0 <= label.x0 and label.x1 <= room.x1 for label in labels)
    pairs = itertools.combinations(labels, 2)
    assert sum(one.overlaps(other) for one, other in pairs) <= 2, "near marks leave little room"


def test_small_pictures_are_kept_pixel_by_pixel_and_large_ones_shrunk(tmp_path: Path):
    import base64
    import io

    def shown(image: Image.Image) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(thumbnail(image)))).convert("RGB")

    small, large = runs.picture(0), runs.picture(1, 800)
    assert shown(small).tobytes() == small.tobytes()
    assert shown(large).size == (192, 192)


@pytest.mark.parametrize("reader", [open_picture, check_picture])
def test_a_picture_that_is_missing_cut_short_or_no_picture(tmp_path: Path, reader: Any):
    whole = tmp_path / "whole.png"
    runs.picture(0, 64).save(whole)
    reader(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-60])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="missing"):
        reader(tmp_path / "none.png")
    for name in ("cut.png", "text.png"):
        with pytest.raises(ValueError, match="unreadable"):
            reader(tmp_path / name)


def test_the_size_limit_ends_with_the_first_that_does_not_fit():
    budget = Budget(1e-5)
    assert budget.takes("12345")
    assert not budget.is_spent
    assert not budget.takes("123456")
    assert budget.is_spent
    assert Budget(0).is_spent


@pytest.fixture
def changed(reported: Path, tmp_path: Path) -> Path:
    """A copy of the run, free to be broken."""
    return Path(shutil.copytree(reported.parent / "run", tmp_path / "run"))


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
        assert list(mine["arms"]) == [arm["name"] for arm in summary["arms"]]
        for arm in summary["arms"]:
            found, scores = mine["arms"][arm["name"]], arm["scores"][split]
            mean = scores["alignment"]["value"]
            assert np.mean(found["alignment"]) == pytest.approx(mean, abs=1e-3)
            share = np.mean(np.array(found["rank"]) < 5)
            assert share == pytest.approx(scores["r_at_5"]["value"])


def test_verdict_comes_first(reported: Path):
    page = (reported.parent / "run" / "report.html").read_text()
    headings = re.findall(r"<h2>([^<:]*)", page)
    assert headings[0] == "Verdict"
    assert headings[1:] == [
        "Scores", "Scores", "Pictures", "Training", "Protocol", "How to reproduce"
    ]  # fmt: skip
    lead = re.search(r'<li class="\w+ lead">.*?<span>(.*?)</span>', page)
    assert lead
    assert re.search(r"base\+cfg[23] in alignment .* at 0.5x the forward passes\.", lead[1])


def test_missing_and_unreadable_pictures_are_named_and_counted(reported: Path, changed: Path):
    (changed / "samples" / "cca" / "000001.png").unlink()
    (changed / "samples" / "base+cfg2" / "000009.png").write_bytes(b"no picture")
    page = report_of(reported, changed)
    assert "2 pictures can't be shown" in page
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
    assert grid["rival"] is None
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


def status_of(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_serve_shows_the_report_and_its_pictures_alone_and_ends_quietly(
    reported: Path, changed: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BROWSER", "true")  # a program that opens nothing
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mm_cca.cli",
            "report",
            str(reported),
            f"run.dir={changed}",
            "--serve",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    line = next(line for line in server.stdout if line.startswith("serving"))
    address = line.split()[1]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/report\.html", address)
    root = address.removesuffix("report.html")
    assert status_of(address) == 200
    assert status_of(f"{root}samples/base%2Bcfg2/000000.png") == 200
    for other in ("recipe.yaml", "train/model/config.json", "samples/../recipe.yaml", ""):
        assert status_of(root + other) == 404
    server.send_signal(signal.SIGINT)
    _, said = server.communicate(timeout=30)
    assert server.returncode == 0
    assert "Traceback" not in said


def test_a_port_that_is_taken_or_serves_nothing(
    reported: Path, changed: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["report", str(reported), f"run.dir={changed}"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main([*words, "--serve", "--port", port]) == 2
    assert f"--port is {port}, which can't be opened" in capsys.readouterr().err
    assert cli.main([*words, "--serve", "--port", "70000"]) == 2
    assert "up to 65535" in capsys.readouterr().err
    assert cli.main([*words, "--port", "8000"]) == 2
    assert "add --serve" in capsys.readouterr().err
