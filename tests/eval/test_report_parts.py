"""The parts of a report: words, curves, tables, plots, thumbnails, each without a run."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mm_cca.eval.report import svg as svg_module
from mm_cca.eval.report.curves import health, judged, panels, read_signals, smoothed
from mm_cca.eval.report.gallery import baseline_of, display_order, gains_of
from mm_cca.eval.report.scatter import PlotPoint, scatter
from mm_cca.eval.report.tables import score_columns
from mm_cca.eval.report.thumbnails import Budget, check_image, read_image, thumbnail
from mm_cca.eval.report.wording import (
    cost,
    extrapolated_sentence,
    fid_sentence,
    in_words,
    outcome,
    verdict_sentence,
    verdict_texts,
    warnings_about,
)
from tests.support import runs

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
def test_outcome(low: float, high: float, lower_is_better: bool, expected: str):
    found = outcome(interval(0.0, low, high), higher_is_better=not lower_is_better)
    assert found == expected


def comparison(arm: str, against: str, **differences: Any) -> Any:
    """A verdict of one judge, in which one arm stands for each side."""
    sides = {"arm": [arm], "against": [against]}
    return {
        "split": "train",
        "ours": "cca",
        "rival": "guided base",
        "arm": arm,
        "against": against,
        "confidence": 0.95,
        "compared": {name: dict(sides) for name in differences},
        "cautions": [],
        **differences,
    }


def test_a_verdict_is_a_sentence():
    verdict = comparison("cca", "base+cfg2.5", alignment=interval(0.1, -0.7, 0.9))
    assert verdict_sentence(verdict, PASSES) == (
        "CCA without guidance: no difference found from base+cfg2.5 in alignment, could be up to "
        "0.9 (difference +0.1, 95 % interval -0.7 to +0.9); at 0.5x the forward passes."
    )


def test_who_stands_for_a_side_is_named_in_every_score():
    """The halves of the prompts disagree about the rival in FD, and CCA is at another dial."""
    fd = interval(0.7, 0.02, 1.41)
    verdict = comparison("cca", "base+cfg2.5", alignment=interval(1, 0.2, 2), frechet_distance=fd)
    verdict["compared"]["frechet_distance"] = {
        "arm": ["cca+dial0.5"],
        "against": ["base+cfg2.5", "base+cfg3"],
    }
    verdict["confidence"] = 0.975
    assert verdict_sentence(verdict, PASSES) == (
        "CCA without guidance: ahead of base+cfg2.5 in alignment (difference +1.0, 97.5 % interval "
        "+0.2 to +2.0); behind base+cfg2.5 or base+cfg3 in FD (difference +0.70, 97.5 % interval "
        "+0.02 to +1.41; lower is better; as cca+dial0.5); at 0.5x the forward passes."
    )


def test_distances_to_reconstructions_take_the_place_of_those_to_real_images():
    verdict = comparison(
        "cca",
        "base+cfg2.5",
        alignment=interval(1, 0.2, 2),
        frechet_distance=interval(-1, -2, -0.5),
        frechet_distance_reconstruction=interval(1, 0.5, 2),
    )
    sentence = verdict_sentence(verdict, PASSES)
    assert "behind base+cfg2.5 in FD (rec)" in sentence
    assert "FD (difference" not in sentence


def test_cautions_and_warnings_come_with_the_verdicts():
    first = comparison("cca", "base+cfg2.5", alignment=interval(0.1, -0.7, 0.9))
    other = comparison("cca", "base", alignment=interval(1, 0.2, 2)) | {"rival": "base"}
    first["cautions"], other["cautions"] = ["few prompts", "over-satisfied"], ["few prompts"]
    summary = ["train: captions cut", "heldout: captions cut", "other weights"]
    warnings = warnings_about("train", summary, ["train", "heldout"])
    assert warnings == ["train: captions cut", "other weights"]
    scores = {name: {} for name in ("cca", "base", "base+cfg2.5")}
    found = verdict_texts([other, first], PASSES, scores, warnings)
    assert found["cautions"] == ["few prompts", "train: captions cut", "other weights"]
    guided, plain = found["verdicts"]
    assert (guided["outcome"], guided["badge"]) == ("level", "no difference found")
    assert (guided["cautions"], plain["cautions"]) == (["over-satisfied"], [])
    assert guided["sentence"] == verdict_sentence(first, PASSES)
    assert (plain["outcome"], plain["badge"]) == ("ahead", "ahead")
    assert verdict_texts([], PASSES, {})["verdicts"] == []


def test_distances_at_infinitely_many_images_are_quoted():
    difference = interval(0.7, 0.02, 1.41)
    verdict = comparison("cca", "base+cfg2.5", frechet_distance=difference)
    scores: Any = {
        "cca": {"frechet_distance": {"value": 3.4, "extrapolated": 2.514}},
        "base+cfg2.5": {"frechet_distance": {"value": 3.1, "extrapolated": 2.2}},
    }
    expected = " FD at infinitely many images 2.51 against 2.20."
    assert extrapolated_sentence(verdict, scores) == expected
    del scores["cca"]["frechet_distance"]["extrapolated"]
    assert extrapolated_sentence(verdict, scores) == ""


def test_fid_is_quoted_where_there_is_one():
    ours, theirs = {"fid": {"value": 8.914}}, {"fid": {"value": 9.1}}
    expected = " FID 8.91 against 9.10 (lower is better; other seeds show its spread)."
    assert fid_sentence(ours, theirs) == expected
    assert fid_sentence({}, {}) == ""


def test_a_verdict_of_two_scores_at_one_price():
    verdict = comparison(
        "cca+dial0.5",
        "base",
        alignment=interval(3.0, 1.4, 4.6),
        frechet_distance=interval(0.5, 0.12, 1.28),
        r_at_5=interval(0, 0, 0),
    )
    assert verdict_sentence(verdict, PASSES) == (
        "CCA at dial 0.5 without guidance: ahead of the base without guidance in alignment "
        "(difference +3.0, 95 % interval +1.4 to +4.6); behind the base without guidance in FD "
        "(difference +0.50, 95 % interval +0.12 to +1.28; lower is better); at the same number of "
        "forward passes."
    )


def test_words_for_arms_and_costs():
    assert in_words("cca+cfg2+neg1") == "CCA with cfg2 neg1"
    assert in_words("control+cfg2") == "control+cfg2"
    assert in_words("control") == "the control without guidance"
    assert in_words("cca+dial0.5+t0.9") == "CCA at dial 0.5 and temperature 0.9 without guidance"
    assert in_words("base+t1.1") == "the base at temperature 1.1 without guidance"
    assert in_words("base+cfg2.5+neg1+t1.1") == "base+cfg2.5+neg1 at temperature 1.1"
    assert cost(128, 64) == "at 2x the forward passes"


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        (-0.2, -4.0, "healthy"),
        (0.1, -4.0, "healthy"),
        (-0.7, -4.0, "lower than usual"),
        (-1.2, -9.0, "collapsed"),
        (-0.1, -0.2, "barely separated"),
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


def test_display_order():
    gains = np.array([0.0, -5.0, 3.0, 9.0, -1.0])
    assert display_order(gains, 5) == [0, 3, 1, 2, 4]
    assert display_order(None, 3) == [0, 1, 2]


def arms(*names: str) -> list[Any]:
    def entry(name: str) -> dict[str, Any]:
        scale = float(name.partition("cfg")[2] or 1)
        scores = {"train": {"alignment": {"value": scale}}}
        source = name.partition("+")[0]
        return {"name": name, "source": source, "guidance_scale": scale, "scores": scores}

    return [entry(name) for name in names]


def test_what_a_gain_is_measured_against():
    assert baseline_of(arms("base", "base+cfg2", "base+cfg3", "cca"), "train") == "base+cfg3"
    assert baseline_of(arms("base", "cca"), "train") == "base"
    assert baseline_of(arms("base", "base+cfg2"), "train") is None
    assert baseline_of(arms("cca"), "train") is None
    numbers = {"cca": {"alignment": [3.0, 1.0]}, "base": {"alignment": [1.0, 2.0]}}
    assert gains_of(numbers, "base").tolist() == [2.0, -1.0]


def test_a_score_that_is_new_has_a_column():
    scored: Any = [{"scores": {"train": {"alignment": {}, "sharp_score": {"value": 1.0}}}}]
    assert score_columns(scored) == {
        "alignment": ("alignment ×100", "higher is better", 1),
        "sharp_score": ("sharp score", "", 3),
    }


def test_plots_take_their_colours_from_the_page_and_say_their_values():
    points = [
        PlotPoint("base", "base", "base", 0.1, 2.0, "base: FD 2.0"),
        PlotPoint("cca", "CCA", "cca", 0.2, 1.0, 'cca: "FD" <1.0>', is_main=True),
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
        PlotPoint("cca", "CCA", f"point {n} of a long name", n % 2, 0.01 * n, "x") for n in range(6)
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


@pytest.mark.parametrize("reader", [read_image, check_image])
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
