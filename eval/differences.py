"""One score of several arms on one split: its value on a part of the prompts, and differences.

Three kinds: means over prompts, Frechet distances and kernel distances. Each takes arms by name and
prompts by the name of a part, so that what two comparisons share is computed once.
Shapes: n images of P prompts, B resamples.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import torch

from mm_cca.config.metrics import FeatureSource
from mm_cca.eval.features.references import ReferenceSet
from mm_cca.eval.metrics.bootstrap import basic_interval, resampled_prompts
from mm_cca.eval.metrics.frechet import FrechetSample, affordable_resamples
from mm_cca.eval.metrics.intervals import mean_interval, share_difference_interval
from mm_cca.eval.metrics.kernel import kernel_pseudo_values
from mm_cca.eval.scores import ArmScores, PerImage, per_prompt
from mm_cca.eval.summary_types import Interval

Parts = Mapping[str, np.ndarray]
"""Name -> ascending numbers of prompts."""


class Fold(NamedTuple):
    """Which arms are compared on which part of the prompts."""

    ours: str
    theirs: str
    part: str


class ScoreOfArms(Protocol):
    """One score."""

    def value(self, arm: str, part: str) -> float:
        """The score of an arm on a part of the prompts."""

    def difference(self, folds: Sequence[Fold], *, confidence: float, widening: float) -> Interval:
        """Ours minus theirs, pooled over folds by their numbers of prompts."""


class MeanScore:
    """A mean over prompts."""

    def __init__(
        self,
        metric: PerImage,
        arms: Mapping[str, ArmScores],
        groups: np.ndarray,
        parts: Parts,
    ) -> None:
        """
        Args:
            metric: what is averaged.
            arms: by name.
            groups: [n] number of each image's prompt.
            parts: of the prompts.
        """
        self._parts = parts
        self._interval = share_difference_interval if metric.is_share else mean_interval
        self._means = {
            name: per_prompt(metric.factor * metric.values(arm), groups)
            for name, arm in arms.items()
        }

    def value(self, arm: str, part: str) -> float:
        return float(self._means[arm][self._parts[part]].mean())

    def difference(self, folds: Sequence[Fold], *, confidence: float, widening: float) -> Interval:
        pairs = [
            (self._means[ours] - self._means[theirs])[self._parts[part]]
            for ours, theirs, part in folds
        ]
        return self._interval(np.concatenate(pairs), confidence=confidence, widening=widening)


class KernelScore:
    """Kernel distance over all pairs, by pseudo-values of the prompts."""

    def __init__(
        self,
        source: FeatureSource,
        arms: Mapping[str, ArmScores],
        groups: np.ndarray,
        parts: Parts,
        reference: ReferenceSet,
    ) -> None:
        """
        Args:
            source: of the features.
            arms: by name.
            groups: [n] number of each image's prompt.
            parts: of the prompts, 3 or more each.
            reference: with the features of its images.
        """
        assert reference.features is not None
        theirs = reference.features.of(source)

        @cache
        def pseudo_values(arm: str, part: str) -> np.ndarray:
            chosen, numbers = images_of(groups, parts[part])
            features = arms[arm].features.of(source)[torch.from_numpy(chosen)]
            return kernel_pseudo_values(features, theirs, numbers)

        self._pseudo_values = pseudo_values

    def value(self, arm: str, part: str) -> float:
        """Less the reference's own term, which is the same for all arms."""
        return float(self._pseudo_values(arm, part).mean())

    def difference(self, folds: Sequence[Fold], *, confidence: float, widening: float) -> Interval:
        pairs = [
            self._pseudo_values(ours, part) - self._pseudo_values(theirs, part)
            for ours, theirs, part in folds
        ]
        return mean_interval(np.concatenate(pairs), confidence=confidence, widening=widening)


class FrechetScore:
    """Frechet distance, by basic bootstrap.

    Attributes:
        resamples: of every interval, as many as can be afforded.
    """

    def __init__(
        self,
        source: FeatureSource,
        arms: Mapping[str, ArmScores],
        groups: np.ndarray,
        parts: Parts,
        reference: ReferenceSet,
        *,
        resamples: int,
        seed: int,
    ) -> None:
        """
        Args:
            source: of the features.
            arms: by name.
            groups: [n] number of each image's prompt.
            parts: of the prompts.
            reference: a set of images or their mean and covariance.
            resamples: wanted.
            seed: of the resampling.
        """
        size = next(iter(arms.values())).features.of(source).shape[1]
        self.resamples = affordable_resamples(resamples, len(groups), size)
        self._parts = parts

        def distances(arm: str, part: str, counts: np.ndarray) -> np.ndarray:
            # The sample is not kept: in many dimensions those of all arms would fill the memory.
            chosen, numbers = images_of(groups, parts[part])
            features = arms[arm].features.of(source)[torch.from_numpy(chosen)]
            return FrechetSample(features, numbers, reference.target(source)).distances(counts)

        @cache
        def value(arm: str, part: str) -> float:
            return float(distances(arm, part, np.ones((1, len(parts[part]))))[0])

        @cache
        def resampled(arm: str, part: str) -> np.ndarray:
            """[B]; the same prompts for all arms, others for another part."""
            own_seed = seed + list(parts).index(part)
            counts = resampled_prompts(len(parts[part]), resamples=self.resamples, seed=own_seed)
            return distances(arm, part, counts)

        self._value, self._resampled = value, resampled

    def value(self, arm: str, part: str) -> float:
        return self._value(arm, part)

    def difference(self, folds: Sequence[Fold], *, confidence: float, widening: float) -> Interval:
        weights = np.array([len(self._parts[fold.part]) for fold in folds], dtype=np.float64)
        weights /= weights.sum()
        value, resampled = 0.0, np.zeros(self.resamples)
        for weight, (ours, theirs, part) in zip(weights, folds, strict=True):
            value += weight * (self.value(ours, part) - self.value(theirs, part))
            resampled += weight * (self._resampled(ours, part) - self._resampled(theirs, part))
        return basic_interval(value, resampled, confidence=confidence, widening=widening)


def images_of(groups: np.ndarray, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images of some prompts, and the number of each one's prompt among these.

    Args:
        groups: [n] number of each image's prompt.
        prompts: ascending numbers of prompts.
    """
    chosen = np.flatnonzero(np.isin(groups, prompts))
    return chosen, np.searchsorted(prompts, groups[chosen])
