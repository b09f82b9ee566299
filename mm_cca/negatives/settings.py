"""What a recipe asks of the negatives, and what it gets for an epoch."""

from dataclasses import dataclass

import numpy as np

from mm_cca.errors import UserError

KINDS = ("shuffle", "hard", "edit")
REASONS = ("identical", "similar", "contained", "impossible")


@dataclass(frozen=True)
class NegativeSettings:
    """How wrong prompts are made.

    Attributes:
        mixture: weight of each kind; weights sum to 1.
        num_negatives: m, per image.
        embedding: ``tfidf``, ``sentence-transformers:NAME_OR_FOLDER``, ``open_clip:NAME``,
            ``open_clip:NAME:PRETRAINED`` or ``open_clip:local-dir:FOLDER``.
        candidates: of how many nearest captions ``hard`` draws one.
        max_similarity: a caption with a cosine above it counts as saying the same; None: not
            looked at.
        words: YAML file that extends the shipped attribute words.
    """

    mixture: dict[str, float]
    num_negatives: int = 1
    embedding: str = "tfidf"
    candidates: int = 16
    max_similarity: float | None = 0.95
    words: str | None = None


@dataclass(frozen=True)
class EpochPlan:
    """The negatives of one epoch: n images, m negatives each.

    Attributes:
        negatives: [n, m] object array of prompts.
        kinds: [n, m] int8 index into ``KINDS``, the kind that was really used.
        similarity: [n, m] float32 cosine of caption and negative; nan where not known (edits, and
            plans that need no embedding).
        replaced: how many planned negatives were replaced, by reason: ``identical`` (to another
            negative of the same image), ``similar``, ``contained``, ``impossible`` (the kind can't
            be built for that caption). ``repeated`` are not replaced: there were fewer candidates
            or edits than ``num_negatives``, so the image has the same one twice.
    """

    negatives: np.ndarray
    kinds: np.ndarray
    similarity: np.ndarray
    replaced: dict[str, int]


def check_settings(settings: NegativeSettings) -> None:
    """Raises UserError for the first value that can't be used."""
    unknown = [kind for kind in settings.mixture if kind not in KINDS]
    if unknown or not settings.mixture:
        raise UserError(
            f"negatives are {' + '.join(settings.mixture)!r}; allowed: {', '.join(KINDS)}, "
            'or a mixture such as "0.5 shuffle + 0.5 edit".'
        )
    if min(settings.mixture.values()) <= 0:
        raise UserError(f"the weights of negatives are {settings.mixture}; allowed: more than 0.")
    if settings.num_negatives < 1:
        raise UserError(f"num_negatives is {settings.num_negatives}; allowed: 1 or more.")
    if settings.candidates < 1:
        raise UserError(f"candidates is {settings.candidates}; allowed: 1 or more.")
    limit = settings.max_similarity
    if limit is not None and not 0 < limit <= 1:
        raise UserError(f"max_similarity is {limit}; allowed: null, or more than 0 and at most 1.")
