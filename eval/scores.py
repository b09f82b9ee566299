"""The scores of one arm on one split, computed from features.

``PER_IMAGE`` and ``OF_SETS`` hold a function for every metric of ``config/metrics.py``.
Shapes: n images of a split, F feature size, c distinct captions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import numpy as np
import torch

from mm_cca.config.metrics import (
    AGAINST_RECONSTRUCTIONS,
    METRICS,
    FeatureSource,
    reconstruction_name,
)
from mm_cca.config.schema import Recipe
from mm_cca.eval.features.extract import Features
from mm_cca.eval.features.references import ReferenceSet
from mm_cca.eval.ground_truth import SplitTruth
from mm_cca.eval.metrics.attributes import answers
from mm_cca.eval.metrics.distances import cmmd, inception_score, kernel_distance
from mm_cca.eval.metrics.frechet import frechet_at_infinity
from mm_cca.eval.metrics.intervals import mean_interval, share_interval
from mm_cca.eval.metrics.jackknife import (
    FEWEST_PROMPTS,
    frechet_without,
    groups_of_prompts,
    jackknife_interval,
    mean_without,
    recall_without,
)
from mm_cca.eval.metrics.kernel import kernel_pseudo_values
from mm_cca.eval.metrics.prdc import density_coverage, precision_recall
from mm_cca.eval.metrics.retrieval import among_best, cosines, retrieval_ranks
from mm_cca.eval.summary_types import Interval, Score, Scores


@dataclass(frozen=True)
class ArmScores:
    """One arm on one split: [n] numbers per image, and features for distances between sets."""

    cosine: np.ndarray
    rank: np.ndarray
    attributes: dict[str, np.ndarray]
    features: Features


class PerImage(NamedTuple):
    """A mean over images: ``factor`` times the [n] ``values``; shares lie between 0 and 1."""

    factor: float
    values: Callable[[ArmScores], np.ndarray]
    is_share: bool = False

    def interval(self, means: np.ndarray) -> Interval:
        """Of the [P] means of the prompts."""
        return share_interval(means) if self.is_share else mean_interval(means)


@dataclass(frozen=True)
class SetComparison:
    """Generated and reference images; what two metrics share is computed once.

    Attributes:
        generated: [n, F] features of an arm.
        reference: real images or reconstructions; None where no metric needs them.
        seed: of subsets and splits.
    """

    generated: Features
    reference: ReferenceSet | None
    seed: int

    def features(self, source: FeatureSource) -> torch.Tensor:
        """[n, F] of the generated images."""
        return self.generated.of(source)

    def real(self, source: FeatureSource) -> torch.Tensor:
        """[m, F] of the reference images."""
        assert self.reference is not None
        assert self.reference.features is not None
        return self.reference.features.of(source)

    def frechet(self, source: FeatureSource) -> float:
        assert self.reference is not None
        return self.reference.frechet(self.features(source), source)

    def kernel(self, source: FeatureSource) -> float:
        return kernel_distance(self.features(source), self.real(source), seed=self.seed)

    @cached_property
    def precision_recall(self) -> tuple[float, float]:
        return precision_recall(self.generated.scorer, self.real(FeatureSource.SCORER))

    @cached_property
    def density_coverage(self) -> tuple[float, float]:
        return density_coverage(self.generated.scorer, self.real(FeatureSource.SCORER))


def _inception_score(sets: SetComparison) -> Score:
    assert sets.generated.logits is not None
    mean, deviation = inception_score(sets.generated.logits, seed=sets.seed)
    return {"value": mean, "deviation": deviation}


def _cmmd(sets: SetComparison) -> Score:
    return {"value": cmmd(sets.generated.scorer, sets.real(FeatureSource.SCORER))}


PER_IMAGE: dict[str, PerImage] = {
    "alignment": PerImage(100, lambda arm: arm.cosine),
    "clip_score": PerImage(100, lambda arm: arm.cosine.clip(min=0)),
    "r_at_1": PerImage(1, lambda arm: among_best(arm.rank, 1), is_share=True),
    "r_at_5": PerImage(1, lambda arm: among_best(arm.rank, 5), is_share=True),
}
"""Means over images, which have an interval over prompts."""
OF_SETS: dict[str, Callable[[SetComparison], Score]] = {
    "frechet_distance": lambda sets: {"value": sets.frechet(FeatureSource.SCORER)},
    "kernel_distance": lambda sets: {"value": sets.kernel(FeatureSource.SCORER)},
    "precision": lambda sets: {"value": sets.precision_recall[0]},
    "recall": lambda sets: {"value": sets.precision_recall[1]},
    "density": lambda sets: {"value": sets.density_coverage[0]},
    "coverage": lambda sets: {"value": sets.density_coverage[1]},
    "cmmd": _cmmd,
    "fid": lambda sets: {"value": sets.frechet(FeatureSource.INCEPTION)},
    "kid": lambda sets: {"value": sets.kernel(FeatureSource.INCEPTION)},
    "inception_score": _inception_score,
}
"""Numbers of a whole set of images."""
OF_SETS |= {reconstruction_name(name): OF_SETS[name] for name in AGAINST_RECONSTRUCTIONS}


EXTRAPOLATED = ("frechet_distance", reconstruction_name("frechet_distance"))
"""Shown at infinitely many images, too. Not FID: its 2,048 dimensions would take minutes."""
RECALLS = ("recall", reconstruction_name("recall"))
PLOTTED = (*EXTRAPOLATED, *RECALLS)
"""Fidelity and diversity, which are plotted with an interval."""
KERNELS = ("kernel_distance", reconstruction_name("kernel_distance"))
LEFT_OUT = (*PLOTTED, *KERNELS)
"""Kept without each group of prompts, too, so that two runs' differences have an interval."""


def measure(features: Features, truth: SplitTruth) -> ArmScores:
    """Every image against its caption."""
    return ArmScores(
        cosine=cosines(features.scorer, truth.texts).numpy(),
        rank=retrieval_ranks(features.scorer, truth.captions, truth.own).numpy(),
        attributes={
            kind: answers(features.scorer, truth.texts, question)
            for kind, question in truth.questions.items()
        },
        features=features,
    )


def per_prompt(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """[n] values of images -> the mean of every prompt, which is what intervals resample."""
    return np.bincount(groups, weights=values) / np.bincount(groups)


def scores_of(recipe: Recipe, measured: ArmScores, truth: SplitTruth) -> Scores:
    """The scores of ``eval.metrics`` in their order, then the attributes.

    Each has a ``value``; means over prompts, Frechet distances and recalls also ``low`` and
    ``high``, their 95 % interval.
    """
    seed = recipe.sample.seed
    sets = {
        "real": SetComparison(measured.features, truth.reference, seed),
        "reconstruction": SetComparison(measured.features, truth.reconstruction, seed),
    }
    scores: Scores = {}
    for name in recipe.eval.metrics:
        if name in OF_SETS:
            scores[name] = OF_SETS[name](sets[METRICS[name].reference])
            if name in EXTRAPOLATED:
                scores[name]["extrapolated"] = _extrapolated(name, measured, truth, seed)
            if name in LEFT_OUT:
                scores[name] |= _spread(name, scores[name]["value"], measured, truth, seed)
        else:
            metric = PER_IMAGE[name]
            means = per_prompt(metric.factor * metric.values(measured), truth.groups)
            scores[name] = cast(Score, metric.interval(means))
    for kind, right in measured.attributes.items():
        question = truth.questions[kind]
        means = per_prompt(right, np.unique(truth.groups[question.prompts], return_inverse=True)[1])
        score = cast(Score, share_interval(means))
        score["count"], score["chance"] = len(right), question.chance
        scores[f"attribute_{kind}"] = score
    return scores


def _extrapolated(name: str, measured: ArmScores, truth: SplitTruth, seed: int) -> float:
    """Of a Frechet distance on the scorer's features, to infinitely many images."""
    reference = truth.compared_with(METRICS[name])
    assert reference is not None
    return frechet_at_infinity(
        measured.features.scorer, truth.groups, reference.target(FeatureSource.SCORER), seed=seed
    )


def _spread(name: str, value: float, measured: ArmScores, truth: SplitTruth, seed: int) -> Score:
    """A number of the whole set without each group of prompts, and of those plotted the interval;
    nothing where prompts are few."""
    reference = truth.compared_with(METRICS[name])
    assert reference is not None
    prompts = groups_of_prompts(int(truth.groups.max()) + 1, seed=seed)
    if len(prompts) < FEWEST_PROMPTS:
        return {"value": value}
    left_out = _left_out(name, measured.features.scorer, truth, reference, prompts)
    score: Score = {"value": value}
    if name in PLOTTED:
        most = 1.0 if name in RECALLS else math.inf
        score = cast(Score, jackknife_interval(value, left_out, most=most))
    return {**score, "left_out": left_out.tolist()}


def _left_out(
    name: str,
    features: torch.Tensor,
    truth: SplitTruth,
    reference: ReferenceSet,
    prompts: np.ndarray,
) -> np.ndarray:
    """[G] values of a metric of [n, F] features, each without one group of the [P] ``prompts``."""
    if name in EXTRAPOLATED:
        target = reference.target(FeatureSource.SCORER)
        return frechet_without(features, truth.groups, target, prompts)
    assert reference.features is not None
    real = reference.features.scorer
    if name in RECALLS:
        return recall_without(features, real, prompts[truth.groups])
    return mean_without(kernel_pseudo_values(features, real, truth.groups), prompts)
