"""Several judges, one verdict, worked by hand."""

from typing import Any

import pytest

from mm_cca.eval.panel import headline_of, standing_of
from mm_cca.eval.report.panel_text import (
    figures_of,
    headline_lines,
    headline_sentence,
    headline_texts,
    judge_lines,
    no_headline,
)


def interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def entry(
    against: str = "base+cfg2", ours: str = "cca", rival: str = "guided base", **differences: Any
) -> Any:
    sides = {"arm": ["cca"], "against": [against]}
    return {
        "split": "train",
        "ours": ours,
        "rival": rival,
        "arm": "cca",
        "against": against,
        "confidence": 0.975,
        "compared": dict.fromkeys(differences, sides),
        "cautions": ["few prompts"],
        **differences,
    }


LEVEL, AHEAD, BEHIND = interval(0.1, -0.5, 0.7), interval(1.0, 0.2, 1.8), interval(-1, -1.8, -0.2)
PASSES = {"cca": 64, "base+cfg2": 128, "base+cfg3": 128}


@pytest.mark.parametrize(
    ("difference", "higher_is_better", "expected"),
    [
        (AHEAD, True, "ahead"),
        (AHEAD, False, "behind"),
        (BEHIND, True, "behind"),
        (BEHIND, False, "ahead"),
        (LEVEL, True, "level"),
        (interval(1, 0, 2), True, "level"),
    ],
)
def test_standing(difference: Any, higher_is_better: bool, expected: str):
    assert standing_of(difference, higher_is_better=higher_is_better) == expected


def test_the_least_favourable_judge_speaks_for_all():
    """B and C find no difference; B is nearer to behind: .1 of +-.6 against .3 of +-.4."""
    verdicts = {
        "A": [entry(alignment=AHEAD)],
        "B": [entry(alignment=LEVEL)],
        "C": [entry(alignment=interval(0.3, -0.1, 0.7))],
    }
    (found,) = headline_of(verdicts)
    assert found == {
        "split": "train",
        "ours": "cca",
        "rival": "guided base",
        "metric": "alignment",
        "standing": "level",
        "judge": "B",
        "compared": {"arm": ["cca"], "against": ["base+cfg2"]},
        "difference": LEVEL,
        "confidence": 0.975,
        "cautions": ["few prompts"],
        "shared_by": 2,
        "num_judges": 3,
        "standings": {"A": "ahead", "B": "level", "C": "level"},
    }
    assert headline_sentence(found, PASSES) == (
        "No difference found between CCA without guidance and base+cfg2 in alignment (could be up "
        "to 0.7; difference +0.1, 97.5 % interval -0.5 to +0.7), by 2 of 3 judges (least "
        "favourable: B), at 0.5x the forward passes."
    )


def test_one_judge_of_three_is_enough_to_be_behind():
    """Lower distances are better; the judges found other scales to be the base's best."""
    verdicts = {
        "A": [entry(frechet_distance=BEHIND)],
        "B": [entry("base+cfg3", frechet_distance=interval(0.3, 0.1, 0.5))],
        "C": [entry(frechet_distance=LEVEL)],
    }
    (found,) = headline_of(verdicts)
    told = (found["standing"], found["judge"], found["compared"]["against"], found["shared_by"])
    assert told == ("behind", "B", ["base+cfg3"], 1)
    sentence = headline_sentence(found, PASSES)
    assert sentence.startswith("CCA without guidance is behind base+cfg3 in FD (difference +0.30")
    assert "lower is better), by 1 of 3 judges (least favourable: B)" in sentence


def test_reconstructions_take_the_place_of_real_images():
    both = entry(
        alignment=AHEAD,
        frechet_distance=LEVEL,
        frechet_distance_reconstruction=BEHIND,
        r_at_5=LEVEL,
    )
    found = headline_of({"A": [both]})
    assert [one["metric"] for one in found] == ["alignment", "frechet_distance_reconstruction"]
    assert [one["standing"] for one in found] == ["ahead", "ahead"]


def test_comparisons_are_by_the_kind_of_arm():
    entries = [
        entry("base", rival="base", alignment=AHEAD),
        entry(ours="cca at another dial", alignment=BEHIND),
    ]
    found = [(one["ours"], one["rival"], one["standing"]) for one in headline_of({"A": entries})]
    assert found == [("cca", "base", "ahead"), ("cca at another dial", "guided base", "behind")]


def test_what_not_all_judges_compared_is_no_headline():
    assert headline_of({"A": [entry(alignment=AHEAD)], "B": []}) == []
    assert headline_of({}) == []


def test_a_difference_without_an_interval():
    """Equal differences at all prompts: half a width of 0 does not divide."""
    (found,) = headline_of(
        {"A": [entry(alignment=interval(2, 2, 2))], "B": [entry(alignment=interval(1, 0.5, 1.5))]}
    )
    assert (found["judge"], found["shared_by"]) == ("B", 2)


def test_cautions_stand_with_the_headline():
    found = headline_of(
        {"A": [entry(alignment=AHEAD), entry("base", rival="base", alignment=LEVEL)]}
    )
    found[1]["cautions"] = ["few prompts", "over-satisfied"]
    arms = [{"name": name, "forwards_per_image": passes} for name, passes in PASSES.items()]
    arms.append({"name": "base", "forwards_per_image": 64})
    summary: Any = {"headline": found, "arms": arms, "protocol": {"num_prompts": {"train": 8}}}
    summary["warnings"] = ["A: heldout: many prompts"]
    texts = headline_texts(summary, "train")
    assert texts.cautions == ["few prompts"]
    assert [text.cautions for text in texts.verdicts] == [[], ["over-satisfied"]]
    assert [text.badge for text in texts.verdicts] == ["ahead", "no difference found"]
    lines = headline_lines(summary)
    assert lines[2:] == ["  caution: over-satisfied", "train prompts: caution: few prompts"]
    summary["warnings"] = ["A: train: few prompts"]  # printed above, with "read with care"
    assert headline_lines(summary)[2:] == ["  caution: over-satisfied"]


def test_without_a_judge_there_is_no_verdict():
    judges = [{"name": name, "may_judge": False} for name in ("A", "B")]
    summary: Any = {"headline": [], "judges": judges, "verdicts": {"A": [entry()], "B": []}}
    assert no_headline(summary) == (
        "No verdict: none of the judges may judge (A, B). Their scores are only shown."
    )
    assert "not both in this run" in str(no_headline(summary | {"verdicts": {"A": [], "B": []}}))
    assert no_headline(summary | {"headline": [1]}) is None


def test_an_examination_in_words():
    margin = {"value": 4.06, "standard_error": 0.24}
    figures: Any = {
        "num_images": 8,
        "real": 84.0,
        "reconstruction": 79.94,
        "other_style": None,
        "other_caption": 2.0,
        "r_at_5": 0.9,
        "margins": {
            "real_over_reconstruction": margin,
            "reconstruction_over_other_caption": {"value": 77.94, "standard_error": 1.0},
        },
    }
    judge: Any = {"name": "A", "may_judge": True, "reasons": [], "examined_in": None}
    assert judge_lines([judge | {"examination": {"train": figures}}]) == [
        "judge A: may judge (examined)",
        "  train: real image, own caption 84.0; reconstruction, own caption 79.9 (margin "
        "4.1 ± 0.2); reconstruction, one attribute another –; reconstruction, another caption 2.0 "
        "(margin 77.9 ± 1.0); R@5 0.90",
    ]
    figures["other_style"] = 60.0
    figures["margins"] = {
        "real_over_reconstruction": margin,
        "reconstruction_over_other_style": {"value": 19.94, "standard_error": 1.5},
        "other_style_over_other_caption": {"value": 58.0, "standard_error": 2.0},
    }
    found = [figure.margin for figure in figures_of(figures)]
    assert found == ["", "4.1 ± 0.2", "19.9 ± 1.5", "58.0 ± 2.0"]
    never = judge | {"may_judge": False, "reasons": ["it was never examined"], "examination": None}
    assert judge_lines([never]) == ["judge A: may not judge: it was never examined"]
