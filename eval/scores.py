"""The scores of one arm on one split, out of features that were extracted before.

Shapes: n images of a split, F feature size, c captions that are told apart.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mm_cca.config.schema import Recipe
from mm_cca.eval.features.extract import Features
from mm_cca.eval.ground_truth import SplitTruth
from mm_cca.eval.metrics.attributes import answers
from mm_cca.eval.metrics.bootstrap import mean_interval
from mm_cca.eval.metrics.distances import cmmd, inception_score, kernel_distance
from mm_cca.eval.metrics.prdc import density_coverage, precision_recall
from mm_cca.eval.metrics.retrieval import cosines, retrieval_ranks


@dataclass(frozen=True)
class ArmScores:
    """One arm on one split: [n] numbers per image, and features for distances between sets."""

    cosine: np.ndarray
    rank: np.ndarray
    attributes: dict[str, np.ndarray]
    features: Features


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


def scores_of(recipe: Recipe, measured: ArmScores, truth: SplitTruth) -> dict[str, Any]:
    """The scores of ``eval.metrics`` in their order, then the attributes.

    Each has a ``value``; a mean over prompts also ``low`` and ``high``, its 95 % interval.
    """
    found = _of_captions(recipe, measured, truth) | _of_sets(recipe, measured.features, truth)
    scores = {name: found[name] for name in recipe.eval.metrics}
    for kind, right in measured.attributes.items():
        question = truth.questions[kind]
        means = per_prompt(right, np.unique(truth.groups[question.prompts], return_inverse=True)[1])
        scores[f"attribute_{kind}"] = mean_interval(means, recipe) | {
            "count": len(right),
            "chance": question.chance,
        }
    return scores


def _of_captions(recipe: Recipe, measured: ArmScores, truth: SplitTruth) -> dict[str, Any]:
    values = {
        "alignment": 100 * measured.cosine,
        "clip_score": 100 * measured.cosine.clip(min=0),
        "r_at_1": measured.rank < 1,
        "r_at_5": measured.rank < 5,
    }
    return {
        name: mean_interval(per_prompt(each, truth.groups), recipe)
        for name, each in values.items()
        if name in recipe.eval.metrics
    }


def _of_sets(recipe: Recipe, ours: Features, truth: SplitTruth) -> dict[str, Any]:
    wanted, seed, reference = set(recipe.eval.metrics), recipe.sample.seed, truth.reference
    found: dict[str, Any] = {}
    if "inception_score" in wanted:
        assert ours.logits is not None
        mean, deviation = inception_score(ours.logits, seed=seed)
        found["inception_score"] = {"value": mean, "deviation": deviation}
    if reference is None:
        return found
    if "frechet_distance" in wanted:
        found["frechet_distance"] = {"value": reference.frechet(ours, inception=False)}
    if "fid" in wanted:
        found["fid"] = {"value": reference.frechet(ours, inception=True)}
    if reference.features is None:
        return found
    real = reference.features
    if "kernel_distance" in wanted:
        value = kernel_distance(ours.scorer, real.scorer, seed=seed)
        found["kernel_distance"] = {"value": value}
    if "kid" in wanted:
        assert ours.inception is not None
        assert real.inception is not None
        found["kid"] = {"value": kernel_distance(ours.inception, real.inception, seed=seed)}
    if wanted & {"precision", "recall"}:
        precision, recall = precision_recall(ours.scorer, real.scorer)
        found |= {"precision": {"value": precision}, "recall": {"value": recall}}
    if wanted & {"density", "coverage"}:
        density, coverage = density_coverage(ours.scorer, real.scorer)
        found |= {"density": {"value": density}, "coverage": {"value": coverage}}
    if "cmmd" in wanted:
        found["cmmd"] = {"value": cmmd(ours.scorer, real.scorer)}
    return found
