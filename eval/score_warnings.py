"""Sentences about scores that are not reliable as they are, for ``summary["warnings"]`` and for the
``cautions`` of a verdict."""

from collections.abc import Mapping, Sequence

from mm_cca.config.metrics import LEAD, METRICS, FeatureSource, ReferenceNeed
from mm_cca.config.schema import Recipe
from mm_cca.eval.features.extract import Extractors, Features
from mm_cca.eval.features.references import NOT_RECORDED
from mm_cca.eval.ground_truth import SplitTruth
from mm_cca.eval.metrics.distances import KERNEL_SUBSET_SIZE, kernel_subset_size
from mm_cca.eval.metrics.frechet import PER_DIMENSION
from mm_cca.eval.metrics.intervals import FEW_PROMPTS
from mm_cca.eval.summary_types import OWN_SAMPLER, ArmEntry, Scores

SMALL_SUBSETS = {"kernel_distance": 100, "kid": KERNEL_SUBSET_SIZE}
"""Subsets of fewer images than this get a warning."""
FEW_FOR_INCEPTION_SCORE = 5000


def warnings_of(
    recipe: Recipe,
    extractors: Extractors,
    truths: Mapping[str, SplitTruth],
    features: Mapping[str, Features],
) -> list[str]:
    """What is doubtful about the scores of a run.

    Args:
        recipe: with its ``eval.metrics``.
        extractors: what gave the features.
        truths: by split.
        features: of any arm, by split; all arms have equally many images.
    """
    warnings = []
    for split, truth in truths.items():
        warnings += _about_numbers(recipe, split, truth, features[split])
        cut = extractors.scorer.num_cut([prompt.caption for prompt in truth.prompts])
        if cut:
            warnings.append(
                f"{split}: {cut} of {len(truth.prompts)} prompts are longer than the "
                f"{extractors.scorer.context_length} tokens that {extractors.scorer.name} reads; "
                "the rest of each was cut off before scoring."
            )
    if extractors.inception is not None and not extractors.inception.is_published:
        names = [n for n, m in METRICS.items() if m.source is FeatureSource.INCEPTION]
        warnings.append(
            "eval.inception_sha256 names other weights than the published ones: "
            f"{', '.join(names[:-1])} and {names[-1]} compare only with figures of the same "
            "weights."
        )
    return warnings


def _about_numbers(recipe: Recipe, split: str, truth: SplitTruth, ours: Features) -> list[str]:
    warnings, chosen, reference = [], recipe.eval.metrics, truth.reference
    n = len(ours)
    m = n if reference is None else reference.n
    for name, metric in METRICS.items():
        if name not in chosen or metric.needs is not ReferenceNeed.STATISTICS:
            continue
        size = ours.of(metric.source).shape[1]
        if 0 < min(n, m) <= size:
            warnings.append(
                f"{split}: {metric.heading} of {n} images and {m} references in {size} dimensions "
                "has singular covariances and is dominated by bias; compare only at the same "
                "number of images, and with the floor of real images."
            )
        else:
            warnings += [
                f"{split}: {caution}" for caution in per_dimension(metric.heading, n, size)
            ]
    if reference is not None and reference.statistics is not None:
        if reference.statistics.protocol["extractor"] == NOT_RECORDED:
            warnings.append(
                f"{reference.name} does not say how it was made; whether its resize and its "
                "Inception are the same can't be checked."
            )
    elif reference is not None:
        warnings += _about_kernels(chosen, split, n, m)
    if "inception_score" in chosen and n < FEW_FOR_INCEPTION_SCORE:
        warnings.append(
            f"{split}: inception_score of {n} images is too low; published ones take 50,000."
        )
    return warnings


def per_dimension(label: str, num_images: int, size: int) -> list[str]:
    """A caution where a Frechet distance has fewer than ten images per dimension.

    Args:
        label: of the metric.
        num_images: n of one arm.
        size: F, dimensions of the features.
    """
    if num_images >= PER_DIMENSION * size:
        return []
    return [
        f"{label} of {num_images} images in {size} dimensions ({num_images / size:.1f} per "
        f"dimension, {PER_DIMENSION} or more are advised) is mostly bias, which intervals and the "
        "extrapolation to infinitely many images remove only in part."
    ]


def about_few_prompts(num_prompts: int) -> list[str]:
    """A caution where intervals lean on few prompts."""
    if num_prompts >= FEW_PROMPTS:
        return []
    return [
        f"only {num_prompts} prompts: with fewer than {FEW_PROMPTS}, intervals lean on the "
        "assumption that differences are spread evenly about their mean."
    ]


def about_resamples(label: str, resamples: int, wanted: int) -> list[str]:
    """A caution where fewer resamples were affordable than ``eval.bootstrap_samples`` asks for."""
    if resamples >= wanted:
        return []
    return [
        f"the interval of {label} is from {resamples} resamples instead of {wanted}, as more would "
        "take too long in so many dimensions; its ends are less exact."
    ]


def about_choice(num_prompts: int) -> list[str]:
    """A caution where the best arms could not be chosen on other prompts."""
    return [
        f"{num_prompts} prompts are too few to halve: the best arms were chosen on the prompts "
        "that they are judged on, which favours whoever had more to choose from."
    ]


def about_engines(arms: Sequence[ArmEntry]) -> list[str]:
    """A warning where arms were drawn by unlike samplers, and so not with the same random numbers.

    Differences of arms are paired by prompt. That holds whoever drew them: each prompt's difference
    has its own noise, and intervals are over prompts. Shared noise would only narrow them.
    """
    drawn_by: dict[str, list[str]] = {}
    for arm in arms:
        drawn_by.setdefault(arm.get("engine", OWN_SAMPLER), []).append(arm["name"])
    if len(drawn_by) <= 1:
        return []
    listed = "; ".join(f"{', '.join(names)} by {engine}" for engine, names in drawn_by.items())
    return [
        f"arms were drawn by unlike samplers ({listed}): on the same prompts, but not with the "
        "same random numbers. Differences across them are paired by prompt only, so their "
        "intervals are right but wider, and rows of images differ in noise as well."
    ]


def over_satisfied(scores: Mapping[str, Scores], floors: Mapping[str, Scores]) -> list[str]:
    """A caution for every arm whose alignment is above that of the real images' reconstructions.

    Args:
        scores: of one split by one judge, by arm.
        floors: likewise; nothing is said without ``reconstruction``.
    """
    if LEAD not in floors.get("reconstruction", {}):
        return []
    ceiling = floors["reconstruction"][LEAD]["value"]
    digits = METRICS[LEAD].digits
    return [
        f"the judge is over-satisfied: {name} has an alignment of "
        f"{of_arm[LEAD]['value']:.{digits}f}, above the {ceiling:.{digits}f} of reconstructed real "
        "images; it can't tell better from over-fitted there."
        for name, of_arm in scores.items()
        if LEAD in of_arm and of_arm[LEAD]["value"] > ceiling
    ]


def _about_kernels(chosen: list[str], split: str, n: int, m: int) -> list[str]:
    size = kernel_subset_size(n, m)
    return [
        f"{split}: {name} averages subsets of {size} images, because there are only that many; "
        f"published ones take {KERNEL_SUBSET_SIZE}. It is unbiased, but noisier."
        for name, least in SMALL_SUBSETS.items()
        if name in chosen and size < least
    ]
