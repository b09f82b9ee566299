"""Is guidance-free CCA as good as the best guided arm? Paired differences with intervals."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mm_cca.config.schema import Recipe
from mm_cca.eval.features.references import ReferenceSet
from mm_cca.eval.ground_truth import SplitTruth
from mm_cca.eval.metrics.bootstrap import mean_interval, statistic_interval
from mm_cca.eval.metrics.distances import frechet_distance, frechet_to
from mm_cca.eval.scores import ArmScores, per_prompt
from mm_cca.sampling.arms import Arm

FRECHET_RESAMPLES = 50


def verdicts_of(
    recipe: Recipe,
    arms: list[Arm],
    measured: Mapping[str, Mapping[str, ArmScores]],
    truths: Mapping[str, SplitTruth],
) -> list[dict[str, Any]]:
    """CCA against the base and against the best arm of each guided sweep, split by split.

    Where there are dials, the same for the best of them. The best scale or dial is the one with the
    highest alignment on the split at hand. A difference is CCA's score minus the other's; its
    interval resamples prompts, the same ones in both arms. Of alignment, R@5 and Frechet distance
    those are compared that ``eval.metrics`` asks for.
    """
    found: list[dict[str, Any]] = []
    if not {"base", "cca"} <= measured.keys():
        return found
    for split, truth in truths.items():
        rivals = ["base", *_best_guided(arms, measured, split)]
        if "control" in measured:
            rivals.append("control")
        dialled = [arm.name for arm in arms if arm.dial != 1.0]
        ours_by_name = ["cca", *_best(dialled, measured, split)]
        for name, rival in itertools.product(ours_by_name, rivals):
            ours, theirs = measured[name][split], measured[rival][split]
            found.append(
                {"split": split, "arm": name, "against": rival}
                | _differences(recipe, ours, theirs, truth)
            )
    return found


def _differences(
    recipe: Recipe, ours: ArmScores, theirs: ArmScores, truth: SplitTruth
) -> dict[str, dict[str, float]]:
    found = {}
    hits = (ours.rank < 5).astype(float) - (theirs.rank < 5)
    for name, values in (("alignment", 100 * (ours.cosine - theirs.cosine)), ("r_at_5", hits)):
        if name in recipe.eval.metrics:
            found[name] = mean_interval(per_prompt(values, truth.groups), recipe)
    if "frechet_distance" in recipe.eval.metrics and truth.reference is not None:
        found["frechet_distance"] = _frechet_difference(
            ours.features.scorer, theirs.features.scorer, truth.reference, truth.groups, recipe
        )
    return found


def _best_guided(
    arms: list[Arm], measured: Mapping[str, Mapping[str, ArmScores]], split: str
) -> list[str]:
    best = []
    for source in ("base", "control"):
        guided = [arm.name for arm in arms if arm.source == source and arm.is_guided]
        best += _best(guided, measured, split)
    return best


def _best(
    names: list[str], measured: Mapping[str, Mapping[str, ArmScores]], split: str
) -> list[str]:
    """The one with the highest alignment, or none of none."""
    return sorted(names, key=lambda name: -measured[name][split].cosine.mean())[:1]


def _frechet_difference(
    ours: torch.Tensor,
    theirs: torch.Tensor,
    reference: ReferenceSet,
    groups: np.ndarray,
    recipe: Recipe,
) -> dict[str, float]:
    images_of = [np.flatnonzero(groups == number) for number in range(groups.max() + 1)]

    def distance(features: torch.Tensor) -> float:
        if reference.statistics is not None:
            return frechet_to(features, reference.statistics.gaussian)
        assert reference.features is not None
        return frechet_distance(features, reference.features.scorer)

    def difference(prompts: np.ndarray) -> float:
        chosen = torch.from_numpy(np.concatenate([images_of[number] for number in prompts]))
        return distance(ours[chosen]) - distance(theirs[chosen])

    return statistic_interval(len(images_of), difference, recipe, FRECHET_RESAMPLES)
