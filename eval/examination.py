"""May this judge judge? Its order of images and captions whose order is known beforehand.

A judge must find that a prompt's real image fits its caption best, then the image tokenizer's
reconstruction of it, then that reconstruction with a caption in which one attribute is another, and
least with another caption; and it must find the caption of most reconstructions among all. A judge
that was fitted to the generator's own training images fails on the held-out ones.

Shapes: n images, one a prompt; F feature size; c distinct captions of the whole data set; T edited
captions, at most one a prompt and kind of attribute.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize
from typing_extensions import TypedDict

from mm_cca.config.read_files import json_of
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.eval.features.scorer import Scorer
from mm_cca.eval.ground_truth import SplitTruth
from mm_cca.eval.metrics.retrieval import among_best, cosines, retrieval_ranks
from mm_cca.eval.summary_types import Examination, Examinations, Margin
from mm_cca.negatives import load_words, variants


class _ExaminedJudge(TypedDict):
    sha256: str
    examination: Examinations | None


class _Examined(TypedDict):
    judges: list[_ExaminedJudge]


STANDARD_ERRORS = 2.0
"""A margin counts as above 0 from so many of its standard errors."""
IN_WORDS = {
    "real_over_reconstruction": "real images over their reconstructions",
    "reconstruction_over_other_style": "reconstructions with their own caption over the same with "
    "another attribute",
    "other_style_over_other_caption": "another attribute over another caption",
    "reconstruction_over_other_caption": "reconstructions with their own caption over another one",
}
"""Margins in sentences."""


@dataclass(frozen=True)
class Edits:
    """Captions with one attribute swapped.

    Attributes:
        owner: [T] which of the n prompts each belongs to, ascending.
        texts: [T, F] their features.
    """

    owner: torch.Tensor
    texts: torch.Tensor


def edits_of(
    captions: Sequence[str], kinds: Sequence[str], recipe: Recipe, scorer: Scorer
) -> Edits | None:
    """One swapped caption for each kind of attribute that a caption has, drawn by a seed.

    Args:
        captions: [n].
        kinds: of attributes; none: all of the word lists.
        recipe: with the word lists and the seed.
        scorer: gives the features.

    Returns:
        None if no caption has such an attribute.
    """
    lists = load_words(recipe.data.attribute_words)
    stream = np.random.default_rng([recipe.sample.seed, 0x6578])
    owner: list[int] = []
    texts: list[str] = []
    for number, caption in enumerate(captions):
        for kind, others in variants(caption, lists).items():
            if not kinds or kind in kinds:
                owner.append(number)
                texts.append(others[int(stream.integers(len(others)))])
    if not texts:
        return None
    distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    features = scorer.text_features(list(distinct))
    return Edits(torch.tensor(owner), features[[distinct[text] for text in texts]])


def examine(
    real: torch.Tensor,
    reconstruction: torch.Tensor,
    captions: torch.Tensor,
    own: torch.Tensor,
    edits: Edits | None,
) -> Examination:
    """The figures of one judge on one split.

    Args:
        real: [n, F] features of the prompts' real images.
        reconstruction: [n, F] of their reconstructions.
        captions: [c, F] of all distinct captions; at least two.
        own: [n] index of each image's caption among them.
        edits: of the same prompts; None if no caption has an attribute.

    Returns:
        means of 100 cos, the margins between neighbours of the order with their standard errors
        (over prompts, paired), and R@5 of the reconstructions among all captions.
    """
    with_own = 100 * cosines(reconstruction, captions[own]).double().numpy()
    of_real = 100 * cosines(real, captions[own]).double().numpy()
    other = _with_other_captions(reconstruction, captions, with_own)
    ranks = retrieval_ranks(reconstruction, captions, own).numpy()
    figures: Examination = {
        "num_images": len(own),
        "real": float(of_real.mean()),
        "reconstruction": float(with_own.mean()),
        "other_style": None,
        "other_caption": float(other.mean()),
        "r_at_5": float(among_best(ranks, 5).mean()),
        "margins": {"real_over_reconstruction": _margin(of_real - with_own)},
    }
    if edits is None:
        figures["margins"]["reconstruction_over_other_caption"] = _margin(with_own - other)
        return figures
    edited, asked = _with_edits(reconstruction, edits)
    figures["other_style"] = float(edited.mean())
    figures["margins"] |= {
        "reconstruction_over_other_style": _margin(with_own[asked] - edited),
        "other_style_over_other_caption": _margin(edited - other[asked]),
    }
    return figures


def _with_other_captions(
    images: torch.Tensor, captions: torch.Tensor, with_own: np.ndarray
) -> np.ndarray:
    """[n] mean of 100 cos with every caption but the own one."""
    total = normalize(captions.double(), dim=-1).sum(dim=0)
    with_all = 100 * (normalize(images.double(), dim=-1) @ total).numpy()
    means: np.ndarray = (with_all - with_own) / (len(captions) - 1)
    return means


def _with_edits(images: torch.Tensor, edits: Edits) -> tuple[np.ndarray, np.ndarray]:
    """[k] mean of 100 cos with the edits of each prompt that has any, and [k] which these are."""
    values = 100 * cosines(images[edits.owner], edits.texts).double().numpy()
    asked, groups = np.unique(edits.owner.numpy(), return_inverse=True)
    return np.bincount(groups, weights=values) / np.bincount(groups), asked


def _margin(differences: np.ndarray) -> Margin:
    """Mean of [k] differences, and its standard error; infinite for a single one."""
    count = len(differences)
    error = float(differences.std(ddof=1) / count**0.5) if count > 1 else float("inf")
    return {"value": float(differences.mean()), "standard_error": error}


def refusals(figures: Examinations, least_r_at_5: float) -> list[str]:
    """Why a judge fails, in words; empty if it passes.

    Args:
        figures: by split.
        least_r_at_5: what R@5 of the reconstructions must reach on every split.
    """
    reasons = []
    for split, one in figures.items():
        for name, margin in one["margins"].items():
            if not margin["value"] > STANDARD_ERRORS * margin["standard_error"]:
                reasons.append(
                    f"{split}: it does not rank {IN_WORDS[name]} (margin {margin['value']:+.2f}, "
                    f"standard error {margin['standard_error']:.2f}; it must be above "
                    f"{STANDARD_ERRORS:g} standard errors)"
                )
        if one["r_at_5"] < least_r_at_5:
            reasons.append(
                f"{split}: R@5 of reconstructions is {one['r_at_5']:.2f}, and must be at least "
                f"{least_r_at_5:g} (eval.judge_r_at_5)"
            )
    return reasons


def examine_split(
    recipe: Recipe,
    scorer: Scorer,
    truth: SplitTruth,
    real: torch.Tensor,
    reconstruction: torch.Tensor,
) -> Examination:
    """``examine`` with one image of each prompt of a split; images are those of the floors."""
    first = np.unique(truth.groups, return_index=True)[1]
    captions = [truth.prompts[number].caption for number in first]
    edits = edits_of(captions, recipe.eval.attributes, recipe, scorer)
    rows = torch.from_numpy(first)
    return examine(real[rows], reconstruction[rows], truth.captions, truth.own[rows], edits)


def earlier_examinations(path: str | None) -> dict[str, Examinations]:
    """sha256 of a judge -> its figures, of the run that ``eval.examined`` names.

    Raises:
        UserError: the file can't be read, or examined no judge.
    """
    if path is None:
        return {}
    advice = "eval.examined must be eval/summary.json of a run of this version of mm_cca."
    judges = json_of(Path(path), _Examined, advice)["judges"]
    found = {j["sha256"]: j["examination"] for j in judges if j["examination"] is not None}
    if not found:
        raise UserError(
            f"eval.examined {path} examined no judge; name a run with the base on captions of the "
            "data."
        )
    return found


def refuse_unexamined(
    path: str | None, name: str, sha256: str, earlier: Mapping[str, Examinations]
) -> None:
    """Raises UserError if ``eval.examined`` is set and lacks this judge."""
    if path is not None and sha256 not in earlier:
        raise UserError(
            f"judge {name} was never examined in eval.examined {path}: no judge there has its "
            f"weights (sha256 {sha256[:12]}...). Name a run that examined it, remove it from "
            "eval.scorer, or leave eval.examined out."
        )
