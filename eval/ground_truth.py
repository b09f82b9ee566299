"""What every arm of a split is compared with: prompts, captions and a reference set."""

from dataclasses import dataclass
from importlib import metadata

import numpy as np
import torch

from mm_cca.config.metrics import METRICS, Metric, ReferenceNeed
from mm_cca.config.schema import MIN_IMAGES, Recipe
from mm_cca.data.token_cache import open_cache
from mm_cca.errors import UserError
from mm_cca.eval.features.cache import extract_once
from mm_cca.eval.features.extract import Extractors
from mm_cca.eval.features.image_sets import RESIZE, real_bytes_digest, real_images_of, size_of
from mm_cca.eval.features.reconstructions import Reconstructor
from mm_cca.eval.features.references import ReferenceSet, external_reference, reference_of
from mm_cca.eval.features.scorer import Scorer
from mm_cca.eval.metrics.attributes import Question, questions_of
from mm_cca.negatives import load_words
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.prompts import Prompt, has_real_images, reference_rows, splits_of


@dataclass(frozen=True)
class SplitTruth:
    """What the arms of one split are compared with.

    Attributes:
        prompts: [n] the prompts of the split, one for every image.
        groups: [n] which of the distinct prompts each image belongs to.
        texts: [n, F] features of their captions.
        captions: [c, F] features of all distinct captions.
        own: [n] index of each prompt's caption among them.
        reference: real images for distances between sets; None if no metric needs them.
        questions: of ``eval.attributes``, by kind.
        reconstruction: the image tokenizer's reconstructions of the same rows of the split as
            ``reference`` has by default; None if no metric needs them.
    """

    prompts: list[Prompt]
    groups: np.ndarray
    texts: torch.Tensor
    captions: torch.Tensor
    own: torch.Tensor
    reference: ReferenceSet | None
    questions: dict[str, Question]
    reconstruction: ReferenceSet | None = None

    def compared_with(self, metric: Metric) -> ReferenceSet | None:
        """The reference set of a metric that needs one."""
        return self.reference if metric.reference == "real" else self.reconstruction


FEATURES = "features"
"""Folder next to the shards of a split's tokens, shared with them between runs."""


def captions_of(recipe: Recipe, run: RunFolder, prompts: list[Prompt]) -> list[str]:
    """Every distinct caption that retrieval ranks: of all splits, or of the file of prompts."""
    if not has_real_images(recipe):
        return sorted({prompt.caption for prompt in prompts})
    captions: set[str] = set()
    for split in splits_of(recipe):
        captions |= set(open_cache(run.tokens / split, recipe.data.variants).captions)
    return sorted(captions)


def truths_of(
    recipe: Recipe,
    run: RunFolder,
    extractors: Extractors,
    prompts: list[Prompt],
    captions: list[str],
    reconstructor: Reconstructor,
) -> dict[str, SplitTruth]:
    """Split -> what its arms are compared with, the same on every rank.

    Args:
        recipe: the run's, with the metrics that are computed.
        run: its folder.
        extractors: for the captions and the references.
        prompts: of all splits.
        captions: all distinct ones, in the order of the ranking.
        reconstructor: for the reference of reconstructions.

    Raises:
        UserError: too few prompts or images, or a reference that can't be read or reconstructed.
    """
    row_of = {caption: row for row, caption in enumerate(captions)}
    texts = extractors.scorer.text_features(captions)
    needs = {METRICS[name].reference for name in recipe.eval.metrics if _needs_images(name)}
    named = recipe.eval.real_reference
    shared = external_reference(recipe, extractors) if named and "real" in needs else None
    truths = {}
    for split in splits_of(recipe):
        of_split = [prompt for prompt in prompts if prompt.split == split]
        own = torch.tensor([row_of[prompt.caption] for prompt in of_split])
        reference, decoded = shared, None
        if reference is None and "real" in needs:
            reference = _rest_of_split(recipe, run, extractors, split)
        if "reconstruction" in needs:
            decoded = _rest_reconstructed(recipe, run, extractors.scorer, split, reconstructor)
        _refuse_too_few(
            recipe, split, len(of_split), {"real": reference, "reconstruction": decoded}
        )
        questions = questions_of(
            [prompt.caption for prompt in of_split],
            recipe.eval.attributes,
            load_words(recipe.data.attribute_words),
            extractors.scorer.text_features,
        )
        groups = np.unique([prompt.row for prompt in of_split], return_inverse=True)[1]
        truths[split] = SplitTruth(
            of_split, groups, texts[own], texts, own, reference, questions, decoded
        )
    return truths


def _needs_images(name: str) -> bool:
    return METRICS[name].needs is not ReferenceNeed.NONE


def _rest_of_split(
    recipe: Recipe, run: RunFolder, extractors: Extractors, split: str
) -> ReferenceSet:
    rows = _rest_rows(recipe, run, split)
    images = real_images_of(recipe, run, split, rows, size_of(recipe))
    digest = real_bytes_digest(recipe, run, split, rows)
    made_from = [digest, str(size_of(recipe)), RESIZE, f"pillow {metadata.version('pillow')}"]
    folder = run.tokens / split / FEATURES
    return reference_of(images, extract_once(images, extractors, folder, made_from))


def _rest_reconstructed(
    recipe: Recipe, run: RunFolder, scorer: Scorer, split: str, reconstructor: Reconstructor
) -> ReferenceSet:
    """No metric of Inception's features takes reconstructions."""
    rows = _rest_rows(recipe, run, split)
    images = reconstructor.images(split, rows)
    made_from = reconstructor.made_from(split, rows)
    folder = run.tokens / split / FEATURES
    features = extract_once(images, Extractors(scorer, None), folder, made_from)
    return reference_of(images, features)


def _rest_rows(recipe: Recipe, run: RunFolder, split: str) -> list[int]:
    rows: list[int] = reference_rows(recipe, run, split).tolist()
    if len(rows) < MIN_IMAGES:
        raise UserError(_too_few(split, f"{len(rows)} images to compare with"))
    return rows


def _refuse_too_few(
    recipe: Recipe, split: str, num_prompts: int, references: dict[str, ReferenceSet | None]
) -> None:
    if num_prompts < MIN_IMAGES:
        raise UserError(_too_few(split, f"{num_prompts} prompts"))
    for reference in references.values():
        if reference is not None and reference.features is not None and reference.n < MIN_IMAGES:
            raise UserError(_too_few(split, f"{reference.n} images to compare with"))
    for name in recipe.eval.metrics:
        least, reference = METRICS[name].min_reference_images, references[METRICS[name].reference]
        if reference is not None and reference.n < least:
            raise UserError(
                f"split {split!r} is compared with {reference.n} images; {name} needs at least "
                f"{least}. Remove it from eval.metrics, or give an eval.reference."
            )


def _too_few(split: str, available: str) -> str:
    return (
        f"split {split!r} gives {available}; scores need at least {MIN_IMAGES} prompts and as many "
        f"images to compare with, so {2 * MIN_IMAGES} usable rows."
    )
