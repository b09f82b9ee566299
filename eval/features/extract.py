"""Features of a set of images, extracted once for all metrics, divided among the ranks.

Shapes: n images, F feature size of the scorer.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mm_cca.config.metrics import FeatureSource
from mm_cca.eval.features.distributed import map_over_ranks
from mm_cca.eval.features.image_sets import ImageSet
from mm_cca.eval.features.inception import Inception
from mm_cca.eval.features.scorer import Scorer
from mm_cca.eval.metrics.finite import refuse_not_finite


@dataclass(frozen=True)
class Extractors:
    """The networks that a recipe's metrics need."""

    scorer: Scorer
    inception: Inception | None


@dataclass(frozen=True)
class Features:
    """One set of images.

    Attributes:
        scorer: [n, F].
        inception: [n, 2048], if a metric needs them.
        logits: [n, 1008], likewise.
        sha256: over the pixels in their order.
    """

    scorer: torch.Tensor
    inception: torch.Tensor | None
    logits: torch.Tensor | None
    sha256: str

    def __len__(self) -> int:
        return len(self.scorer)

    def of(self, source: FeatureSource) -> torch.Tensor:
        """[n, F] features of a metric's source; those of Inception must have been extracted."""
        if source is not FeatureSource.INCEPTION:
            return self.scorer
        assert self.inception is not None
        return self.inception


class _Batch(NamedTuple):
    scorer: torch.Tensor
    inception: torch.Tensor | None
    logits: torch.Tensor | None
    digests: list[bytes]


def extract(images: ImageSet, extractors: Extractors) -> Features:
    """All features of a set, the same on every rank and for any number of ranks.

    Raises:
        UserError: an image that can't be read, by name; or features that are NaN or infinite.
    """
    size = extractors.scorer.batch_size
    starts = range(0, images.count, size)

    def work(start: int) -> _Batch:
        opened = images.open(range(start, min(start + size, images.count)))
        digests = [hashlib.sha256(image.tobytes()).digest() for image in opened]
        pool, logits = None, None
        if extractors.inception is not None:
            pool, logits = extractors.inception.features(opened)
        return _Batch(extractors.scorer.image_features(opened), pool, logits, digests)

    batches = map_over_ranks(starts, work, desc=f"features of {images.name}")
    digest = hashlib.sha256(b"".join(d for batch in batches for d in batch.digests))
    features = Features(
        torch.cat([batch.scorer for batch in batches]),
        _joined([batch.inception for batch in batches]),
        _joined([batch.logits for batch in batches]),
        digest.hexdigest(),
    )
    refuse_not_finite(features.scorer, f"{images.name}, judged by {extractors.scorer.name}")
    if features.inception is not None:
        refuse_not_finite(features.inception, f"{images.name}, seen by Inception")
    return features


def _joined(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
