"""Who is compared with whom, on which prompts, and how often a verdict is wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mm_cca.config.metrics import FeatureSource
from mm_cca.eval.contestants import (
    ALL,
    CROSS_FIT_WIDENING,
    FIRST,
    SECOND,
    Contestant,
    candidates_of,
    folds_of,
    parts_of,
    rivals_of,
)
from mm_cca.eval.differences import Fold, FrechetScore, KernelScore, MeanScore, images_of
from mm_cca.eval.features.extract import Features
from mm_cca.eval.features.references import ReferenceSet
from mm_cca.eval.ground_truth import SplitTruth
from mm_cca.eval.metrics.distances import frechet_distance
from mm_cca.eval.scores import PER_IMAGE, ArmScores, PerImage
from mm_cca.eval.summary_types import differences_of
from mm_cca.eval.verdicts import verdicts_of
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.prompts import Prompt
from tests.support import runs

SIZE = 4


def arm_scores(cosine: np.ndarray, images: torch.Tensor, rank: float = 0.0) -> ArmScores:
    features = Features(images, None, None, "")
    return ArmScores(cosine, np.full(len(cosine), rank), {}, features)


def drawn(rng: np.random.Generator, n: int, *, mean: float = 0.0, shift: float = 0.0) -> ArmScores:
    """One arm: cosines about a mean, and images at a distance."""
    images = torch.from_numpy(rng.normal(size=(n, SIZE)) + shift)
    return arm_scores(mean + 0.1 * rng.normal(size=n), images)


def truth_of(groups: np.ndarray, rng: np.random.Generator) -> SplitTruth:
    n = len(groups)
    real = Features(torch.from_numpy(rng.normal(size=(60, SIZE))), None, None, "")
    zeros = torch.zeros(n, 2)
    prompts = [Prompt(i, "train", int(groups[i]), "x") for i in range(n)]
    reference = ReferenceSet("real", 60, "", real, None)
    return SplitTruth(prompts, groups, zeros, zeros, torch.zeros(n), reference, {})


def test_kinds_of_arms():
    """Temperatures and negative prompts are members of a kind, not kinds of their own."""
    arms = [
        Arm("base", 1.0),
        Arm("base", 1.0, temperature=1.1),
        Arm("base", 2.0),
        Arm("base", 2.0, "owl", negative_number=1),
        Arm("base", 3.0, temperature=1.1),
        Arm("cca", 1.0),
        Arm("cca", 2.0),
        Arm("cca", 1.0, temperature=0.9),
        Arm("cca", 1.0, dial=0.5),
        Arm("cca", 1.0, dial=0.5, temperature=0.9),
        Arm("control", 1.0),
    ]
    ours = {each.kind: len(each.members) for each in candidates_of(arms)}
    theirs = {each.kind: len(each.members) for each in rivals_of(arms)}
    assert ours == {"cca": 2, "cca at another dial": 2}
    assert theirs == {"base": 2, "guided base": 3, "control": 1}


def test_parts_are_two_halves_unless_prompts_are_few():
    parts = parts_of(9, seed=0)
    assert [len(part) for part in parts.values()] == [9, 4, 5]
    assert sorted([*parts[FIRST], *parts[SECOND]]) == list(parts[ALL])
    assert list(parts_of(7, seed=0)) == [ALL]


def score_with(means: dict[str, list[float]]) -> tuple[MeanScore, dict[str, np.ndarray]]:
    """Arms with one number on each half of eight prompts."""
    parts = parts_of(8, seed=0)
    arms = {}
    for name, (first, second) in means.items():
        cosine = np.where(np.isin(np.arange(8), parts[FIRST]), first, second)
        arms[name] = arm_scores(cosine, torch.zeros(8, SIZE))
    metric = PerImage(1, lambda arm: arm.cosine)
    return MeanScore(metric, arms, np.arange(8), parts), dict(parts)


def test_the_best_of_one_half_is_judged_on_the_other():
    score, parts = score_with({"a": [2, 0], "b": [0, 1], "r": [0, 0]})
    ours, rival = Contestant("cca", ("a", "b")), Contestant("base", ("r",))
    folds = folds_of(ours, rival, score, parts, higher_is_better=True)
    assert folds == [Fold("b", "r", FIRST), Fold("a", "r", SECOND)]
    found = score.difference(folds, confidence=0.95, widening=1.0)
    assert found["value"] == 0, "either is good only where it was chosen"
    low = folds_of(ours, rival, score, parts, higher_is_better=False)
    assert low == [Fold("a", "r", FIRST), Fold("b", "r", SECOND)]


def test_halves_that_agree_and_sides_without_a_choice_are_judged_at_once():
    score, parts = score_with({"a": [2, 3], "b": [0, 1], "r": [0, 0]})
    both = Contestant("cca", ("a", "b"))
    one, rival = Contestant("cca", ("b",)), Contestant("base", ("r",))
    assert folds_of(both, rival, score, parts, higher_is_better=True) == [Fold("a", "r", ALL)]
    assert folds_of(one, rival, score, parts, higher_is_better=True) == [Fold("b", "r", ALL)]


def test_the_best_of_nine_dials_where_nothing_differs():
    """Told ahead as often as a single arm would be, not as often as the best on the same prompts.

    With a 95 % interval 2.5 % of single arms that do not differ are told ahead.
    """
    rng, trials, n = np.random.default_rng(0), 800, 60
    dials = tuple(f"cca+dial{number}" for number in range(9))
    ours, rival = Contestant("cca at another dial", dials), Contestant("base", ("base",))
    metric, parts = PerImage(1, lambda arm: arm.cosine), parts_of(n, seed=0)
    nothing = torch.zeros(n, 1)
    ahead = {"on other prompts": 0, "on the same prompts": 0}
    for _ in range(trials):
        prompts = rng.normal(size=n)
        arms = {
            name: arm_scores(prompts + rng.normal(size=n), nothing) for name in (*dials, "base")
        }
        score = MeanScore(metric, arms, np.arange(n), parts)
        folds = folds_of(ours, rival, score, parts, higher_is_better=True)
        found = score.difference(folds, confidence=0.95, widening=CROSS_FIT_WIDENING)
        ahead["on other prompts"] += found["low"] > 0
        best = max(dials, key=lambda name: score.value(name, ALL))
        naive = score.difference([Fold(best, "base", ALL)], confidence=0.95, widening=1.0)
        ahead["on the same prompts"] += naive["low"] > 0
    print({name: f"{count / trials:.3f}" for name, count in ahead.items()})
    assert ahead["on the same prompts"] > 0.09 * trials
    assert ahead["on other prompts"] < 0.04 * trials


def test_images_of_a_part():
    chosen, numbers = images_of(np.array([0, 0, 1, 2, 3, 3]), np.array([0, 2, 3]))
    assert chosen.tolist() == [0, 1, 3, 4, 5]
    assert numbers.tolist() == [0, 0, 1, 2, 2]


def test_a_frechet_difference_pools_its_folds():
    """Its value is the mean of the halves' differences, weighted by their prompts."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(9), 2)
    arms = {name: drawn(rng, 18, shift=shift) for name, shift in (("a", 0), ("b", 0.5), ("r", 1))}
    truth, parts = truth_of(groups, rng), parts_of(9, seed=0)
    assert truth.reference is not None
    real = truth.reference.features.scorer
    score = FrechetScore(
        FeatureSource.SCORER, arms, groups, parts, truth.reference, resamples=100, seed=0
    )

    def distance(name: str, part: str) -> float:
        rows = np.isin(groups, parts[part])
        return frechet_distance(arms[name].features.scorer[torch.from_numpy(rows)], real)

    assert score.value("a", FIRST) == pytest.approx(distance("a", FIRST), rel=1e-4)
    folds = [Fold("a", "r", FIRST), Fold("b", "r", SECOND)]
    found = score.difference(folds, confidence=0.95, widening=1.0)
    first, second = (distance(f.ours, f.part) - distance("r", f.part) for f in folds)
    assert found["value"] == pytest.approx((4 * first + 5 * second) / 9, rel=1e-3)
    assert found["low"] < found["high"]
    same = score.difference([Fold("a", "a", ALL)], confidence=0.95, widening=1.0)
    assert same == {"value": 0, "low": 0, "high": 0}


def test_a_kernel_score_of_a_half_knows_nothing_of_the_other():
    rng, groups = np.random.default_rng(0), np.arange(12)
    truth, parts = truth_of(groups, rng), parts_of(12, seed=0)
    arms = {"a": drawn(rng, 12), "b": drawn(rng, 12)}
    assert truth.reference is not None
    source = FeatureSource.SCORER
    before = KernelScore(source, arms, groups, parts, truth.reference).value("a", FIRST)
    arms["a"].features.scorer[torch.from_numpy(parts[SECOND])] += 5
    after = KernelScore(source, arms, groups, parts, truth.reference)
    assert after.value("a", FIRST) == before
    assert after.value("a", ALL) != before


BASE, GUIDED_2, GUIDED_3, CCA = (
    Arm("base", 1.0),
    Arm("base", 2.0),
    Arm("base", 3.0),
    Arm("cca", 1.0),
)


def verdicts(
    tmp_path: Path, measured: dict[str, ArmScores], truth: SplitTruth, *overrides: str
) -> dict:
    path = runs.unread_recipe(tmp_path)
    metrics = "eval.metrics=[alignment,r_at_5,frechet_distance,kernel_distance]"
    recipe = runs.load_recipe(path, metrics, *overrides)
    by_split = {name: {"train": each} for name, each in measured.items()}
    arms = [arm for arm in (BASE, GUIDED_2, GUIDED_3, CCA) if arm.name in measured]
    found = verdicts_of(recipe, arms, by_split, {"train": truth})
    return {entry["rival"]: entry for entry in found}


def named(arms: list[Arm], of: list[ArmScores]) -> dict[str, ArmScores]:
    return {arm.name: each for arm, each in zip(arms, of, strict=True)}


def test_the_guided_arm_is_the_best_in_each_score(tmp_path: Path):
    """One scale is the best in alignment, the other in distances."""
    rng = np.random.default_rng(0)
    truth = truth_of(np.arange(40), rng)
    arms = [BASE, GUIDED_2, GUIDED_3, CCA]
    measured = named(
        arms,
        [
            drawn(rng, 40),
            drawn(rng, 40, mean=0.5, shift=1),
            drawn(rng, 40, mean=0.2),
            drawn(rng, 40, mean=0.5, shift=1),
        ],
    )
    entry = verdicts(tmp_path, measured, truth)["guided base"]
    assert (entry["arm"], entry["against"]) == ("cca", arms[1].name)
    assert entry["compared"]["alignment"]["against"] == [arms[1].name]
    assert entry["compared"]["frechet_distance"]["against"] == [arms[2].name]
    assert entry["compared"]["kernel_distance"]["against"] == [arms[2].name]
    found = differences_of(entry)
    assert list(found) == ["alignment", "r_at_5", "frechet_distance", "kernel_distance"]
    assert found["frechet_distance"]["low"] > 0, "behind the other one"
    assert entry["confidence"] == pytest.approx(1 - 0.05 / 3), "three scores in its sentence"
    assert entry["cautions"] == []


def test_a_temperature_buys_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The base at 1.1 has the better distance, and is the one that CCA has to beat in it."""
    rng = np.random.default_rng(0)
    truth = truth_of(np.arange(40), rng)
    arms = [BASE, Arm("base", 1.0, temperature=1.1), CCA]
    measured = {
        "base": drawn(rng, 40, mean=0.3, shift=1),
        "base+t1.1": drawn(rng, 40, mean=0.1),
        "cca": drawn(rng, 40, mean=0.3, shift=0.6),
    }
    recipe, names = runs.load_recipe(runs.unread_recipe(tmp_path)), list(measured)
    by_split = {name: {"train": each} for name, each in measured.items()}
    # Whatever arms of other temperatures are called.
    monkeypatch.setattr(Arm, "name", property(lambda arm: names[arms.index(arm)]))
    (entry,) = verdicts_of(recipe, arms, by_split, {"train": truth})
    assert entry["compared"]["alignment"] == {"arm": ["cca"], "against": ["base"]}
    assert entry["compared"]["frechet_distance"] == {"arm": ["cca"], "against": ["base+t1.1"]}
    assert differences_of(entry)["frechet_distance"]["low"] > 0


def test_cautions_stand_with_the_verdict(tmp_path: Path):
    rng = np.random.default_rng(0)
    truth = truth_of(np.arange(7), rng)
    arms = [BASE, GUIDED_2, GUIDED_3, CCA]
    measured = named(arms, [drawn(rng, 7, mean=mean) for mean in (0, 0.1, 0.2, 0.9)])
    measured["reconstruction"] = drawn(rng, 7, mean=0.6)
    entry = verdicts(tmp_path, measured, truth)["guided base"]
    said = " ".join(entry["cautions"])
    assert "only 7 prompts" in said
    assert "7 images in 4 dimensions (1.8 per dimension" in said
    assert "too few to halve" in said
    assert "over-satisfied: cca has an alignment of" in said
    plain = verdicts(tmp_path, measured, truth)["base"]
    assert "too few to halve" not in " ".join(plain["cautions"])


def test_several_images_of_one_prompt_count_once(tmp_path: Path):
    """Copies of the images add nothing to what is known."""
    rng = np.random.default_rng(0)
    arms = [BASE, CCA]
    once = named(arms, [drawn(rng, 40), drawn(rng, 40, mean=0.02)])
    thrice = {
        name: arm_scores(np.repeat(each.cosine, 3), each.features.scorer.repeat_interleave(3, 0))
        for name, each in once.items()
    }
    real = np.random.default_rng(1)
    one = verdicts(tmp_path, once, truth_of(np.arange(40), real))["base"]
    real = np.random.default_rng(1)
    three = verdicts(tmp_path, thrice, truth_of(np.repeat(np.arange(40), 3), real))["base"]
    assert differences_of(three)["alignment"] == pytest.approx(differences_of(one)["alignment"])
    kernels = [differences_of(each)["kernel_distance"] for each in (one, three)]
    assert kernels[0] == pytest.approx(kernels[1])
    widths = [
        found["high"] - found["low"]
        for found in (differences_of(each)["frechet_distance"] for each in (one, three))
    ]
    assert widths[1] == pytest.approx(widths[0], rel=0.2)


def test_no_verdict_on_one_or_two_prompts(tmp_path: Path):
    rng = np.random.default_rng(0)
    measured = named([BASE, CCA], [drawn(rng, 8), drawn(rng, 8)])
    assert verdicts(tmp_path, measured, truth_of(np.repeat([0, 1], 4), rng)) == {}


def test_equal_arms_are_told_equal(tmp_path: Path):
    rng = np.random.default_rng(0)
    same = drawn(rng, 40)
    entry = verdicts(tmp_path, named([BASE, CCA], [same, same]), truth_of(np.arange(40), rng))
    found = differences_of(entry["base"])
    for name in ("alignment", "frechet_distance", "kernel_distance"):
        assert found[name] == {"value": 0, "low": 0, "high": 0}
    assert found["r_at_5"]["value"] == 0
    assert PER_IMAGE["r_at_5"].is_share
