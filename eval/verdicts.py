"""Is guidance-free CCA as good as the best guided arm? Paired differences with intervals."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mm_cca.config.metrics import METRICS, FeatureSource, Verdict
from mm_cca.config.schema import Recipe
from mm_cca.eval.ground_truth import SplitTruth
from mm_cca.eval.metrics.bootstrap import mean_interval, statistic_interval
from mm_cca.eval.scores import PER_IMAGE, ArmScores, per_prompt
from mm_cca.eval.summary_types import Interval, VerdictEntry, with_differences
from mm_cca.sampling.arms import Arm

FRECHET_RESAMPLES = 50

MeasuredArms = Mapping[str, Mapping[str, ArmScores]]
"""By arm and split."""


def verdicts_of(
    recipe: Recipe,
    arms: Sequence[Arm],
    measured: MeasuredArms,
    truths: Mapping[str, SplitTruth],
) -> list[VerdictEntry]:
    """CCA against the baselines (base, control, best arm of each guided sweep), split by split.

    Where there are dials, the same for the best of them. The best scale or dial is the one with the
    highest alignment on the split at hand. A difference is CCA's score minus the baseline's; its
    interval resamples prompts, the same ones in both arms. Compared are the metrics of
    ``eval.metrics`` whose ``verdict`` says so.
    """
    if not {"base", "cca"} <= measured.keys():
        return []
    entries = []
    for split, truth in truths.items():
        baselines = ["base", *_best_guided(arms, measured, split)]
        if "control" in measured:
            baselines.append("control")
        dialled = [arm.name for arm in arms if arm.dial != 1.0]
        candidates = ["cca", *_best(dialled, measured, split)]
        for name, baseline in itertools.product(candidates, baselines):
            entry: VerdictEntry = {"split": split, "arm": name, "against": baseline}
            ours, theirs = measured[name][split], measured[baseline][split]
            entries.append(with_differences(entry, _differences(recipe, ours, theirs, truth)))
    return entries


def _differences(
    recipe: Recipe, ours: ArmScores, theirs: ArmScores, truth: SplitTruth
) -> dict[str, Interval]:
    differences = {}
    for name, metric in METRICS.items():
        if metric.verdict is Verdict.NONE or name not in recipe.eval.metrics:
            continue
        if name in PER_IMAGE:
            factor, values = PER_IMAGE[name]
            differences[name] = mean_interval(
                per_prompt(factor * (values(ours) - values(theirs)), truth.groups),
                resamples=recipe.eval.bootstrap_samples,
                seed=recipe.sample.seed,
            )
        elif truth.reference is not None:
            differences[name] = _frechet_difference(
                ours, theirs, truth, metric.source, recipe.sample.seed
            )
    return differences


def _best_guided(arms: Sequence[Arm], measured: MeasuredArms, split: str) -> list[str]:
    best = []
    for source in ("base", "control"):
        guided = [arm.name for arm in arms if arm.source == source and arm.is_guided]
        best += _best(guided, measured, split)
    return best


def _best(names: list[str], measured: MeasuredArms, split: str) -> list[str]:
    """The one with the highest alignment, or none of none."""
    return sorted(names, key=lambda name: -measured[name][split].cosine.mean())[:1]


def _frechet_difference(
    ours: ArmScores, theirs: ArmScores, truth: SplitTruth, source: FeatureSource, seed: int
) -> Interval:
    reference = truth.reference
    assert reference is not None
    images_of = [np.flatnonzero(truth.groups == number) for number in range(truth.groups.max() + 1)]
    our_features, their_features = ours.features.of(source), theirs.features.of(source)

    def difference(prompts: np.ndarray) -> float:
        chosen = torch.from_numpy(np.concatenate([images_of[number] for number in prompts]))
        distances = [
            reference.frechet(features[chosen], source)
            for features in (our_features, their_features)
        ]
        return distances[0] - distances[1]

    return statistic_interval(len(images_of), difference, resamples=FRECHET_RESAMPLES, seed=seed)
