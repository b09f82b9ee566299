"""``compare``: two scored runs prompt by prompt, whatever of their protocols allows it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mm_cca import cli
from mm_cca.errors import UserError
from mm_cca.eval.compare_runs import ScoredRun, compare_runs
from mm_cca.eval.comparison_types import ScoreDifference
from mm_cca.eval.metrics.intervals import mean_interval, share_difference_interval
from tests.support.browsing import WIDTHS, Open, assert_readable
from tests.support.scored_runs import scored_folder, scored_run

CAPTIONS = ["a", "b", "c", "d"]


def test_differences_are_paired_by_prompt_whatever_the_order():
    ours = scored_run("one", CAPTIONS, [1, 2, 3, 4], [0, 9, 0, 9])
    theirs = scored_run("two", CAPTIONS[::-1], [8, 4, 3, 3], [0, 0, 0, 9])
    theirs.summary["protocol"]["prompts_sha256"] = {"train": "other order"}
    found = compare_runs(ours, theirs)
    (split,) = found.splits
    (judged,) = split.judged
    by_name = {score.metric: score for score in judged.scores}
    # b: 2 -> 3, c: 3 -> 4, d: 4 -> 8, a: 1 -> 3.
    expected = mean_interval(np.array([2.0, 1.0, 1.0, 4.0]))
    assert by_name["alignment"].difference == pytest.approx(expected)
    assert by_name["alignment"].values == pytest.approx((2.5, 4.5))
    # R@1 of a, b, c, d: 1, 0, 1, 0 against 0, 1, 1, 1.
    assert by_name["r_at_1"].difference == share_difference_interval(np.array([-1, 1, 0, 1]))
    assert [prompt.images for prompt in split.prompts] == [(0, 3), (1, 2), (2, 1), (3, 0)]


def test_the_better_run_is_named_only_where_the_interval_excludes_nothing():
    low = [1.0, 2.0, 3.0, 4.0]
    up = compare_runs(
        scored_run("one", CAPTIONS, low), scored_run("two", CAPTIONS, [x + 5 for x in low])
    )
    assert up.splits[0].judged[0].scores[0].better == "B"
    level = compare_runs(
        scored_run("one", CAPTIONS, low), scored_run("two", CAPTIONS, [9.0, 2.0, 3.0, -4.0])
    )
    assert level.splits[0].judged[0].scores[0].better is None


def test_distances_have_an_interval_by_what_both_runs_keep():
    ours, theirs = (scored_run(name, CAPTIONS, [1, 2, 3, 4]) for name in ("one", "two"))

    def distance() -> ScoreDifference:
        (judged,) = compare_runs(ours, theirs).splits[0].judged
        return next(score for score in judged.scores if score.metric == "frechet_distance")

    (a, b) = (run.summary["arms"][0]["scores"]["judge"]["train"] for run in (ours, theirs))
    a["frechet_distance"] = {"value": 5.0, "low": 4.0, "high": 6.0, "left_out": [5.0, 5.2, 4.8]}
    assert distance().difference is None
    assert "scored by an mm_cca that keeps" in distance().lacking
    assert distance().own == ({"value": 5.0, "low": 4.0, "high": 6.0}, None)
    b["frechet_distance"] = {"value": 3.0, "left_out": [3.1, 3.2, 2.7]}
    # Left out: -1.9, -2.0, -2.1; the error is sqrt(2 / 3 * 0.02), and t of 2 is 4.303.
    half = 4.302653 * (2 / 3 * 0.02) ** 0.5
    expected = {"value": -2.0, "low": -2.0 - half, "high": -2.0 + half}
    assert distance().difference == pytest.approx(expected)
    assert (distance().better, distance().lacking) == ("B", "")
    theirs.summary["protocol"]["seeds"] = {"sampling": 1}
    assert distance().difference is None
    assert distance().lacking == "which the same sample.seed in both runs would allow"


def test_several_images_of_a_prompt_count_once():
    captions = ["a", "a", "b", "b", "c", "c"]
    ours = scored_run("one", captions, [1, 3, 2, 2, 5, 5], each=2)
    theirs = scored_run("two", ["a", "b", "c"], [4, 4, 4])
    theirs.summary["protocol"]["images_per_prompt"] = 1
    found = compare_runs(ours, theirs)
    # The first images: 1, 2, 5 against 4, 4, 4.
    expected = mean_interval(np.array([3.0, 2.0, -1.0]))
    assert found.splits[0].judged[0].scores[0].difference == pytest.approx(expected)
    assert {each.field for each in found.differing} == {"images_per_prompt"}


@pytest.mark.parametrize(
    ("field", "value", "left"),
    [
        ("device", "cuda", ["alignment", "r_at_1", "frechet_distance"]),
        ("captions_ranked_sha256", "other", ["alignment", "frechet_distance"]),
        ("prompts_sha256", {"train": "other"}, ["alignment", "r_at_1"]),
        (
            "prompts_sha256",
            {"train": "p", "heldout": "x"},
            ["alignment", "r_at_1", "frechet_distance"],
        ),
        ("num_reference_images", {"train": 5}, ["alignment", "r_at_1"]),
        ("image_size", [8, 8], ["alignment", "r_at_1"]),
        ("resize", {"images": "other"}, ["alignment", "r_at_1"]),
        (
            "metrics",
            {"alignment": "other", "r_at_1": "r", "frechet_distance": "f"},
            ["r_at_1", "frechet_distance"],
        ),
    ],
)
def test_what_a_differing_protocol_leaves(field: str, value: Any, left: list[str]):
    ours, theirs = (scored_run(name, CAPTIONS, [1, 2, 3, 4]) for name in ("one", "two"))
    theirs.summary["protocol"] |= {field: value}  # type: ignore[misc]
    found = compare_runs(ours, theirs)
    assert [score.metric for score in found.splits[0].judged[0].scores] == left
    assert any(each.field.startswith(field) and each.consequence for each in found.differing)


def test_a_judge_that_reads_otherwise_is_left_out():
    runs = [scored_run(name, CAPTIONS, [1, 2, 3, 4]) for name in ("one", "two")]
    runs[1].summary["protocol"]["judges"]["aa"]["captions_cut"] = {"train": 3}
    (split,) = compare_runs(*runs).splits
    assert [each.judge for each in split.judged] == ["judge"]
    runs[1].summary["protocol"]["judges"]["aa"]["resize"] = "other"
    with pytest.raises(UserError, match="no judge in common"):
        compare_runs(*runs)


def test_nothing_in_common():
    ours = scored_run("one", CAPTIONS, [1, 2, 3, 4])
    with pytest.raises(UserError, match="no prompt in common"):
        compare_runs(ours, scored_run("two", ["x", "y"], [1, 2]))
    other = scored_run("two", CAPTIONS, [1, 2, 3, 4])
    other.summary["protocol"]["judges"] = {"bb": other.summary["protocol"]["judges"]["aa"]}
    with pytest.raises(UserError, match="no judge in common"):
        compare_runs(ours, other)
    with pytest.raises(UserError, match=r"--arms: two has no arm 'base'; it has cca\."):
        compare_runs(ours, scored_run("two", CAPTIONS, [1, 2, 3, 4]), ("cca", "base"))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    a = scored_folder(tmp_path / "one", scored_run("one", CAPTIONS, [1, 2, 3, 4]))
    b = scored_folder(tmp_path / "two", scored_run("two", CAPTIONS, [3, 4, 6, 6]))
    return a, b


def test_terminal_and_page(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    assert cli.main(["compare", *map(str, folders)]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines()[:-2])) <= 80
    assert "+2.2 [+1.5, +3.0]" in told
    assert "Differences without an interval: FD, which needs 8 prompts" in told
    page = (folders[1] / "compare-one.html").read_text()
    assert "Differences without an interval: FD, which needs 8 prompts" in page
    assert "cca of two is above that of one in alignment" in page
    assert page.count("data:image/webp") == 8


def test_a_picture_that_is_gone_and_a_recipe_for_a_folder(
    folders: tuple[Path, Path], tmp_path: Path
):
    (folders[0] / "samples" / "cca" / "000001.png").unlink()
    recipe = tmp_path / "mine.yaml"
    recipe.write_text((folders[1] / "recipe.yaml").read_text())
    page = tmp_path / "page.html"
    assert cli.main(["compare", str(folders[0]), str(recipe), "--into", str(page)]) == 0
    assert page.read_text().count("data:image/webp") == 7
    assert page.read_text().count(">missing<") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_page_fits(open_page: Open, folders: tuple[Path, Path], scheme: str):
    assert cli.main(["compare", *map(str, folders)]) == 0
    page = open_page(folders[1] / "compare-one.html", width=390, scheme=scheme)
    assert page.evaluate(WIDTHS) == [390, 390]
    pictures = page.locator(".pairs img")
    assert pictures.evaluate_all("all => all.map((image) => image.naturalWidth)") == [16] * 8
    box = pictures.last.bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 390
    assert page.locator(".pairs small").first.inner_text() == "cca, A: 1.0"
    difference = page.locator(".differences td").nth(2)
    assert difference.inner_text().split("\n") == ["+2.2", "[+1.5, +3.0]"]
    place = difference.bounding_box()
    assert place is not None
    assert place["x"] + place["width"] <= 390, "the difference comes before what it is made of"
    assert_readable(page, "h1", ".muted", ".verdicts li", ".pairs th", ".pairs small")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda a, b: (b / "eval" / "summary.json").unlink(), "run `mm-cca eval RECIPE` first"),
        (lambda a, b: (b / "recipe.yaml").unlink(), "is not a run folder"),
        (lambda a, b: (b / "eval" / "per_prompt.json").unlink(), "per_prompt.json"),
    ],
)
def test_runs_that_can_not_be_compared(
    folders: tuple[Path, Path],
    change: Callable[[Path, Path], None],
    problem: str,
    capsys: pytest.CaptureFixture[str],
):
    change(*folders)
    (folders[1] / "eval" / "stage.json").write_text(json.dumps({"settings": {}, "done": False}))
    assert cli.main(["compare", *map(str, folders)]) == 2
    assert problem in capsys.readouterr().err


def test_a_run_with_itself(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    assert cli.main(["compare", str(folders[0]), str(folders[0])]) == 2
    assert "are the same run" in capsys.readouterr().err


def test_a_scored_folder_is_read_as_written(folders: tuple[Path, Path]):
    run = ScoredRun.read(folders[0] / "eval", "one")
    assert run.arms == ["cca"]
    assert Image.open(folders[0] / "samples" / "cca" / "000000.png").size == (16, 16)
