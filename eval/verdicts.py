"""Is guidance-free CCA as good as the best guided arm? Paired differences with intervals."""

import itertools
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from mm_cca.eval.fid import frechet_distance
from mm_cca.eval.intervals import mean_interval, statistic_interval

from mm_cca.arms import Arm
from mm_cca.schema import Recipe

FRECHET_RESAMPLES = 50


class HasScores(Protocol):
    """Numbers per image and features of one arm on one split."""

    cosine: np.ndarray
    rank: np.ndarray
    features: torch.Tensor


class HasReference(Protocol):
    """Real features to compare with."""

    reference: torch.Tensor


def verdicts_of(
    recipe: Recipe,
    arms: list[Arm],
    measured: Mapping[str, Mapping[str, Any]],
    truths: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """CCA against the base and against the best arm of each guided sweep, split by split.

    Where there are dials, the same for the best of them. The best scale or dial is the one with the
    highest alignment on the split at hand. A difference is CCA's score minus the other's; its
    interval resamples prompts, the same ones in both arms.
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
                {
                    "split": split,
                    "arm": name,
                    "against": rival,
                    "alignment": mean_interval(100 * (ours.cosine - theirs.cosine), recipe),
                    "r_at_5": mean_interval(
                        (ours.rank < 5).astype(float) - (theirs.rank < 5), recipe
                    ),
                    "frechet_distance": _frechet_difference(ours, theirs, truth, recipe),
                }
            )
    return found


def _best_guided(
    arms: list[Arm], measured: Mapping[str, Mapping[str, Any]], split: str
) -> list[str]:
    best = []
    for source in ("base", "control"):
        guided = [arm.name for arm in arms if arm.source == source and arm.is_guided]
        best += _best(guided, measured, split)
    return best


def _best(names: list[str], measured: Mapping[str, Mapping[str, Any]], split: str) -> list[str]:
    """The one with the highest alignment, or none of none."""
    return sorted(names, key=lambda name: -measured[name][split].cosine.mean())[:1]


def _frechet_difference(
    ours: HasScores, theirs: HasScores, truth: HasReference, recipe: Recipe
) -> dict[str, float]:
    def difference(rows: np.ndarray) -> float:
        chosen = torch.from_numpy(rows)
        return frechet_distance(ours.features[chosen], truth.reference) - frechet_distance(
            theirs.features[chosen], truth.reference
        )

    return statistic_interval(len(ours.features), difference, recipe, FRECHET_RESAMPLES)
