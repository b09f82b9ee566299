"""Lines and intervals of the plots, the best guided arm, the forest plot and the first screen."""

from typing import Any

import pytest
from matplotlib.axes import Axes

from mm_cca.eval.report import forest as forest_module
from mm_cca.eval.report.charts import bars_in_words, cost_plot, guidance_lines, interval_of
from mm_cca.eval.report.first_screen import (
    _first_prompts,
    judge_sentences,
    picture_strip,
    sentence_lines,
)
from mm_cca.eval.report.forest import forest, row_name
from mm_cca.eval.report.static_grid import side_shown
from mm_cca.eval.report.tables import best_guided


def entry(name: str, scale: float = 1.0, dial: float | None = None) -> dict[str, Any]:
    scores = {"alignment": {"value": scale}}
    return {
        "name": name,
        "source": name.partition("+")[0],
        "guidance_scale": scale,
        "dial": dial,
        "scores": {"train": scores},
    }


def test_lines_of_the_plot():
    """The guided sweep of each source and negative prompt; the dial from base through cca."""
    arms = [
        entry("base"),
        entry("base+cfg3", 3.0),
        entry("base+cfg2", 2.0),
        entry("base+cfg2+neg1", 2.0),
        entry("cca", dial=1.0),
        entry("cca+cfg9", 9.0, dial=1.0),
        entry("cca+dial1.5", dial=1.5),
        entry("cca+dial0.5", dial=0.5),
        entry("control"),
    ]
    names = [[arms[number]["name"] for number in line] for line in guidance_lines(arms)]
    assert names == [
        ["base", "base+cfg2", "base+cfg3"],
        ["base", "base+cfg2+neg1"],
        ["cca", "cca+cfg9"],
        ["base", "cca+dial0.5", "cca", "cca+dial1.5"],
    ]
    assert guidance_lines([arms[0], arms[4], arms[8]]) == []
    assert best_guided(arms, "train") == "base+cfg3"
    assert best_guided(arms, "train", "control") is None


def scored(name: str, passes: int, **scores: Any) -> dict[str, Any]:
    return entry(name) | {"forwards_per_image": passes, "scores": {"train": scores}}


def spread(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def test_bars_are_the_intervals_of_the_scores():
    arm: Any = scored("base", 64, alignment=spread(70, 1.5), frechet_distance={"value": 2.0})
    assert interval_of(arm, "train", "alignment") == (68.5, 71.5)
    assert interval_of(arm, "train", "frechet_distance") is None
    assert interval_of(arm, "train", "forwards") is None
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Axes, "vlines", lambda self, x, low, high, **style: drawn.append((x, low, high))
        )
        svg = cost_plot([arm], "train")
    assert drawn == [(64, 68.5, 71.5)]
    assert "alignment ×100 70.0 (68.5 to 71.5)" in svg
    both = arm["scores"]["train"] | {"recall": {"value": 0.9}}
    arm["scores"]["train"] = both
    assert bars_in_words([arm], "train").startswith("No intervals")
    both["recall"] = spread(0.9, 0.1)
    assert bars_in_words([arm], "train").startswith("Bars: 95 %")


def verdict(rival: str, split: str = "train", **differences: Any) -> dict[str, Any]:
    sides = {"arm": ["cca"], "against": ["base+cfg2" if "guided" in rival else "base"]}
    return {
        "split": split,
        "ours": "cca",
        "rival": rival,
        "arm": "cca",
        "against": sides["against"][0],
        "confidence": 0.975,
        "compared": dict.fromkeys(differences, sides),
        "cautions": [],
        **differences,
    }


def summary_of(**judges: list[dict[str, Any]]) -> Any:
    headline = [
        {"split": "train", "ours": "cca", "rival": rival, "metric": metric}
        for rival in ("base", "guided base")
        for metric in ("alignment", "frechet_distance")
    ]
    return {
        "judges": [{"name": name, "may_judge": name != "barred"} for name in judges],
        "verdicts": judges,
        "headline": headline,
        "arms": [
            scored("base", 64), scored("base+cfg2", 128), scored("cca", 64)
        ],
        "protocol": {"num_prompts": {"train": 8, "heldout": 8}},
    }  # fmt: skip


def two_judges() -> Any:
    plain = verdict("base", alignment=spread(9, 1), frechet_distance=spread(-9, 1))
    good = verdict("guided base", alignment=spread(3, 1), frechet_distance=spread(-3, 1))
    poor = verdict("guided base", alignment=spread(3, 4), frechet_distance=spread(3, 1))
    return summary_of(first=[plain, good], barred=[plain, good], second=[plain, poor])


def test_a_judge_has_one_sentence():
    first, second = judge_sentences(two_judges())
    assert (first.judge, first.marker, second.marker) == ("first", "●", "■")
    assert first.compared == "CCA without guidance against the guided base"
    assert first.cost == "at 0.5x the forward passes"
    (of_train,) = first.splits
    assert [tuple(each) for each in of_train.findings] == [
        ("ahead", "ahead", "alignment and FD"),
    ]
    assert [tuple(each) for each in second.splits[0].findings] == [
        ("level", "no difference found", "alignment"),
        ("behind", "behind", "FD"),
    ]
    assert judge_sentences(summary_of(barred=[])) == []


def test_the_terminal_ends_with_the_same_sentences():
    assert sentence_lines(two_judges()) == [
        "CCA without guidance against the guided base, at 0.5x the forward passes:",
        "  first: on train ahead in alignment and FD",
        "  second: on train no difference found in alignment, behind in FD",
    ]
    assert sentence_lines(summary_of(barred=[])) == []


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ("cca", "against base"),
        ("guided cca", "the fine-tuned model with guidance against base"),
        ("cca at another dial", "the fine-tuned model at another dial against base"),
    ],
)
def test_rows_name_the_trained_model_where_it_is_not_the_plain_one(ours: str, expected: str):
    assert row_name(ours, "base", "the fine-tuned model") == expected


def test_the_forest_has_every_judge_of_every_comparison_and_better_is_to_the_right():
    panels: dict[str, list[Any]] = {}

    def keep(axes: Axes, metric: Any, bottom: float) -> None:
        dress(axes, metric, bottom)
        rows = [text.get_text() for text in axes.texts]
        marks = [line for line in axes.lines if len(line.get_xdata()) == 3]
        panels[metric.label] = [rows, [list(m.get_xdata()) for m in marks], axes.xaxis_inverted()]

    dress = forest_module._dress
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forest_module, "_dress", keep)
        found = forest(two_judges(), "train", "CCA")
        assert forest(two_judges(), "heldout", "CCA") == {}
    rows, marks, inverted = panels["alignment"]
    assert rows == ["against guided base", "against base"]
    assert marks == [[2, 3, 4], [-1, 3, 7], [8, 9, 10], [8, 9, 10]]
    assert not inverted
    assert panels["FD"][2], "less is better, so the axis runs down"
    svg = found["alignment"]
    assert svg.count('class="point"') == 4
    assert "second, alignment ×100: cca against base+cfg2: difference +3.0, 97.5 % interval" in svg
    assert svg.count("var(--good)") > 0
    assert "barred" not in svg


def test_the_strip_has_the_first_prompts_of_every_split():
    many = [str(n) for n in range(1000)]
    assert _first_prompts([many, many[:300]]) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert _first_prompts([many[:9]]) == [(0, n) for n in range(6)]
    assert _first_prompts([many[:1], many[:9]]) == [(0, 0)] + [(1, n) for n in range(5)]
    eight_each = [name for name in many for _ in range(8)]
    assert _first_prompts([eight_each]) == [(0, 8 * n) for n in range(6)]
    columns = [
        {"name": name, "shown": True, "thumbs": {0: f"of {name}"}, "missing": [2]}
        for name in ("base", "base+cfg2", "cca")
    ]
    grid: Any = {
        "captions": ["a", "b", "c"],
        "indices": [4, 7, 9],
        "baseline": "base+cfg2",
        "ours": "cca",
        "exact": True,
        "columns": columns,
    }
    strip = picture_strip([grid])
    assert strip.captions == ["a", "b", "c"]
    assert [row.arm for row in strip.rows] == ["base", "base+cfg2", "cca"]
    assert strip.rows[1].sources == [
        "data:image/webp;base64,of base+cfg2",
        "samples/base%2Bcfg2/000007.png",
        None,
    ]


@pytest.mark.parametrize(
    ("size", "side"), [([32, 32], 128), ([96, 64], 96), ([50, 50], 100), ([97, 97], 104)]
)
def test_small_pictures_are_enlarged_by_a_whole_number(size: list[int], side: int):
    assert side_shown(size, 128, 104) == side
