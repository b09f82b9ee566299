"""What every arm of a split is measured against: captions, prompts and a reference set."""

from dataclasses import dataclass
from importlib import metadata

import numpy as np
import torch

from mm_cca.config.metrics import SCORES
from mm_cca.config.schema import MIN_IMAGES, Recipe
from mm_cca.data.token_cache import open_cache
from mm_cca.errors import UserError
from mm_cca.eval.features.cache import extract_once
from mm_cca.eval.features.extract import Extractors
from mm_cca.eval.features.image_sets import RESIZE, real_bytes_digest, real_images_of, size_of
from mm_cca.eval.features.references import ReferenceSet, external_reference, reference_of
from mm_cca.eval.metrics.attributes import Question, questions_of
from mm_cca.eval.metrics.prdc import NEIGHBOURS
from mm_cca.negatives import load_words
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.prompts import Prompt, has_real_images, reference_rows, splits_of


@dataclass(frozen=True)
class SplitTruth:
    """What the arms of one split are measured against.

    Attributes:
        prompts: [n] the prompts of the split, one for every image.
        groups: [n] which of the distinct prompts each image belongs to.
        texts: [n, F] features of their captions.
        captions: [c, F] features of all distinct captions.
        own: [n] index of each prompt's caption among them.
        reference: what distances between sets compare with, if some score is one.
        questions: of ``eval.attributes``, by kind.
    """

    prompts: list[Prompt]
    groups: np.ndarray
    texts: torch.Tensor
    captions: torch.Tensor
    own: torch.Tensor
    reference: ReferenceSet | None
    questions: dict[str, Question]


FEATURES = "features"
"""Folder beside the shards of a split's tokens, shared with them between runs."""


def captions_of(recipe: Recipe, run: RunFolder, prompts: list[Prompt]) -> list[str]:
    """Every distinct caption that retrieval ranks: of all splits, or of the file of prompts."""
    if not has_real_images(recipe):
        return sorted({prompt.caption for prompt in prompts})
    found: set[str] = set()
    for split in splits_of(recipe):
        found |= set(open_cache(run.tokens / split, recipe.data.variants).captions)
    return sorted(found)


def truths_of(
    recipe: Recipe,
    run: RunFolder,
    extractors: Extractors,
    prompts: list[Prompt],
    captions: list[str],
) -> dict[str, SplitTruth]:
    """Split -> what its arms are measured against, the same on every rank.

    Args:
        recipe: the run's.
        run: its folder.
        extractors: for the captions and the reference.
        prompts: of all splits.
        captions: all distinct ones, in the order of the ranking.

    Raises:
        UserError: too few prompts or images, or a reference that can't be read.
    """
    place = {caption: i for i, caption in enumerate(captions)}
    texts = extractors.scorer.text_features(captions)
    needs_one = any(SCORES[name].needs_reference for name in recipe.eval.metrics)
    shared = external_reference(recipe, extractors) if recipe.eval.reference else None
    truths = {}
    for split in splits_of(recipe):
        mine = [p for p in prompts if p.split == split]
        own = torch.tensor([place[p.caption] for p in mine])
        reference = shared
        if reference is None and needs_one:
            reference = _rest_of_split(recipe, run, extractors, split)
        _refuse_too_few(recipe, split, len(mine), reference)
        questions = questions_of(
            [p.caption for p in mine],
            recipe.eval.attributes,
            load_words(recipe.data.attribute_words),
            extractors.scorer.text_features,
        )
        groups = np.unique([p.row for p in mine], return_inverse=True)[1]
        truths[split] = SplitTruth(mine, groups, texts[own], texts, own, reference, questions)
    return truths


def _rest_of_split(
    recipe: Recipe, run: RunFolder, extractors: Extractors, split: str
) -> ReferenceSet:
    rows = reference_rows(recipe, run, split).tolist()
    images = real_images_of(recipe, run, split, rows, size_of(recipe))
    if images.count < MIN_IMAGES:
        raise UserError(_too_few(split, f"{images.count} images to compare with"))
    digest = real_bytes_digest(recipe, run, split, rows)
    made_from = [digest, str(size_of(recipe)), RESIZE, f"pillow {metadata.version('pillow')}"]
    folder = run.tokens / split / FEATURES
    return reference_of(images, extract_once(images, extractors, folder, made_from))


def _refuse_too_few(
    recipe: Recipe, split: str, num_prompts: int, reference: ReferenceSet | None
) -> None:
    if num_prompts < MIN_IMAGES:
        raise UserError(_too_few(split, f"{num_prompts} prompts"))
    if reference is not None and reference.features is not None and reference.n < MIN_IMAGES:
        raise UserError(_too_few(split, f"{reference.n} images to compare with"))
    crowded = {"density", "coverage"} & set(recipe.eval.metrics)
    if crowded and reference is not None and reference.n <= NEIGHBOURS:
        raise UserError(
            f"split {split!r} is compared with {reference.n} images; density and coverage need "
            f"more than {NEIGHBOURS}. Take them out of eval.metrics, or give an eval.reference."
        )


def _too_few(split: str, found: str) -> str:
    return (
        f"split {split!r} gives {found}; scores need at least {MIN_IMAGES} prompts and as many "
        f"images to compare with, so {2 * MIN_IMAGES} usable rows."
    )
