"""Sentences about numbers that should not be trusted as they are, for ``summary["warnings"]``."""

from collections.abc import Mapping

from mm_cca.config.schema import Recipe
from mm_cca.eval.features.extract import Extractors, Features
from mm_cca.eval.ground_truth import SplitTruth
from mm_cca.eval.metrics.distances import KERNEL_SUBSET_SIZE, kernel_subset_size

FEW_FOR_KERNEL = 100
FEW_FOR_INCEPTION_SCORE = 5000


def cautions_of(
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
    found = []
    for split, truth in truths.items():
        found += _about_numbers(recipe, split, truth, features[split])
        cut = extractors.scorer.num_cut([prompt.caption for prompt in truth.prompts])
        if cut:
            found.append(
                f"{split}: {cut} of {len(truth.prompts)} prompts are longer than the "
                f"{extractors.scorer.context_length} tokens that {extractors.scorer.name} reads; "
                "the rest of each was cut off before it was scored."
            )
    if extractors.inception is not None and not extractors.inception.is_published:
        found.append(
            "eval.inception_sha256 names other weights than the published ones: fid, kid and "
            "inception_score compare only with figures of the same weights."
        )
    return found


def _about_numbers(recipe: Recipe, split: str, truth: SplitTruth, ours: Features) -> list[str]:
    found, wanted, reference = [], recipe.eval.metrics, truth.reference
    n = len(ours)
    m = n if reference is None else reference.n
    for name, matrix in (("frechet_distance", ours.scorer), ("fid", ours.inception)):
        if name in wanted and matrix is not None and 0 < min(n, m) <= matrix.shape[1]:
            found.append(
                f"{split}: {name} of {n} images and {m} references in {matrix.shape[1]} dimensions "
                "has singular covariances and is mostly bias; compare it only with figures of the "
                "same numbers, beside the floor of real images."
            )
    if reference is not None and reference.statistics is not None:
        protocol = reference.statistics.protocol
        if protocol["extractor"] == "not recorded":
            found.append(
                f"{reference.name} does not say how it was made; whether its resize and its "
                "Inception are ours can't be checked."
            )
    elif reference is not None:
        found += _about_kernels(wanted, split, n, m)
    if "inception_score" in wanted and n < FEW_FOR_INCEPTION_SCORE:
        found.append(
            f"{split}: inception_score of {n} images is too low; published ones take 50,000."
        )
    return found


def _about_kernels(wanted: list[str], split: str, n: int, m: int) -> list[str]:
    size = kernel_subset_size(n, m)
    few = {"kernel_distance": FEW_FOR_KERNEL, "kid": KERNEL_SUBSET_SIZE}
    return [
        f"{split}: {name} averages subsets of {size} images, as there are no more; published ones "
        f"take {KERNEL_SUBSET_SIZE}. It is unbiased, but scatters more."
        for name, least in few.items()
        if name in wanted and size < least
    ]
