"""Settings of the negative captions."""

from dataclasses import dataclass

from mm_cca.errors import UserError

KINDS = ("shuffle", "hard", "edit")
REASONS = ("identical", "similar", "contained", "impossible")


@dataclass(frozen=True)
class NegativeSettings:
    """How negative captions are built.

    Attributes:
        mixture: weight of each kind; weights sum to 1.
        num_negatives: m, negative captions per image.
        embedding: ``tfidf``, ``sentence-transformers:NAME_OR_FOLDER``, ``open_clip:NAME``,
            ``open_clip:NAME:PRETRAINED`` or ``open_clip:local-dir:FOLDER``.
        candidates: number of nearest captions that ``hard`` draws from.
        max_similarity: captions above this cosine are too similar to be negatives; None: no limit.
        words: YAML file that extends the built-in attribute words.
    """

    mixture: dict[str, float]
    num_negatives: int = 1
    embedding: str = "tfidf"
    candidates: int = 16
    max_similarity: float | None = 0.95
    words: str | None = None


def check_settings(settings: NegativeSettings) -> None:
    """Raises UserError for the first invalid value."""
    unknown = [kind for kind in settings.mixture if kind not in KINDS]
    if unknown or not settings.mixture:
        raise UserError(
            f"negatives are {' + '.join(settings.mixture)!r}; allowed: {', '.join(KINDS)}, "
            'or a mixture such as "0.5 shuffle + 0.5 edit".'
        )
    if min(settings.mixture.values()) <= 0:
        raise UserError(f"the weights of negatives are {settings.mixture}; allowed: above 0.")
    if settings.num_negatives < 1:
        raise UserError(f"num_negatives is {settings.num_negatives}; allowed: 1 or more.")
    if settings.candidates < 1:
        raise UserError(f"candidates is {settings.candidates}; allowed: 1 or more.")
    limit = settings.max_similarity
    if limit is not None and not 0 < limit <= 1:
        raise UserError(f"max_similarity is {limit}; allowed: null, or above 0 and at most 1.")
