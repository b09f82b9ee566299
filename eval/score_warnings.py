"""Sentences about scores that are not reliable as they are, for ``summary["warnings"]``."""

from collections.abc import Mapping

from mm_cca.config.metrics import METRICS, FeatureSource, ReferenceNeed
from mm_cca.config.schema import Recipe
from mm_cca.eval.features.extract import Extractors, Features
from mm_cca.eval.features.references import NOT_RECORDED
from mm_cca.eval.ground_truth import SplitTruth
from mm_cca.eval.metrics.distances import KERNEL_SUBSET_SIZE, kernel_subset_size

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
                f"{split}: {name} of {n} images and {m} references in {size} dimensions has "
                "singular covariances and is dominated by bias; compare only at the same number "
                "of images, and with the floor of real images."
            )
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


def _about_kernels(chosen: list[str], split: str, n: int, m: int) -> list[str]:
    size = kernel_subset_size(n, m)
    return [
        f"{split}: {name} averages subsets of {size} images, because there are only that many; "
        f"published ones take {KERNEL_SUBSET_SIZE}. It is unbiased, but noisier."
        for name, least in SMALL_SUBSETS.items()
        if name in chosen and size < least
    ]
