"""With several captions per image: which one trains it in which epoch, and the negatives for it.

Shapes: n images, K caption columns, m negative captions each.
"""

from collections.abc import Sequence

import numpy as np

from mm_cca.config.schema import Recipe
from mm_cca.data.mapped_column import MappedColumn
from mm_cca.data.token_cache import TokenCache
from mm_cca.negatives import EDITED, EpochPlan, NegativeSettings, Planner
from mm_cca.negatives.planner import NoNegativesError

_CAPTION_STREAM = 0x6361


def drawn_columns(has: np.ndarray, weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """The column that trains each image in an epoch: depends on the arguments only.

    Args:
        has: [n, K] whether an image has a caption in a column; in at least one.
        weights: [K], or empty for equal ones.
        seed: of the run.
        epoch: 0, 1, 2, ...

    Returns:
        [n] int8.
    """
    shares = np.asarray(weights or np.ones(has.shape[1]), dtype=np.float64) * has
    upto = np.cumsum(shares, axis=1)
    uniform = np.random.default_rng([seed, epoch, _CAPTION_STREAM]).random(len(has))
    columns = (upto <= (uniform * upto[:, -1])[:, None]).sum(axis=1)
    return columns.astype(np.int8)


class CaptionDraws:
    """The captions of a cache that are trained on in every epoch."""

    def __init__(self, cache: TokenCache, weights: Sequence[float], seed: int) -> None:
        assert cache.texts is not None
        self._cache = cache
        self._has = cache.has_caption()
        self._weights = weights
        self._seed = seed

    @classmethod
    def of(cls, recipe: Recipe, cache: TokenCache) -> "CaptionDraws | None":
        """None with one caption per image."""
        if cache.texts is None:
            return None
        return cls(cache, recipe.data.caption_weights, recipe.train.seed)

    def columns(self, epoch: int) -> np.ndarray:
        """[n] int8 column of every image's caption."""
        return drawn_columns(self._has, self._weights, self._seed, epoch)

    def captions(self, epoch: int) -> MappedColumn[str]:
        """[n] captions."""
        return self._cache.drawn(self.columns(epoch))


class DrawnPlanner:
    """Plans the negatives of every epoch for, and among, the captions that were drawn for it."""

    def __init__(
        self, draws: CaptionDraws, rows: np.ndarray, settings: NegativeSettings, seed: int
    ) -> None:
        """``rows`` are those that are trained on."""
        self._draws = draws
        self._rows = rows
        self._settings = settings
        self._seed = seed

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of epoch 0, 1, 2, ...

        An image for whose caption of this epoch there is no negative gets the caption itself, which
        counts as a positive; ``impossible`` counts it.
        """
        captions = self._draws.captions(epoch).at(self._rows)
        try:
            return Planner(captions, self._settings, seed=self._seed).epoch(epoch)
        except NoNegativesError as error:
            without = np.array(error.rows)
            if len(without) >= len(captions) - 1:  # nothing to pair would be left
                raise
        n, m = len(captions), self._settings.num_negatives
        others = np.setdiff1d(np.arange(n), without)
        part = Planner(captions.at(others), self._settings, seed=self._seed).epoch(epoch)
        rows = np.repeat(np.arange(n)[:, None], m, axis=1)
        kinds, similarity = np.zeros((n, m), np.int8), np.full((n, m), np.nan, np.float32)
        rows[others] = np.where(part.rows == EDITED, EDITED, others[part.rows])
        kinds[others], similarity[others] = part.kinds, part.similarity
        edits = None if part.edits is None else part.edits.at(others, n)
        impossible = part.replaced["impossible"] + len(without) * m
        replaced = part.replaced | {"impossible": impossible}
        return EpochPlan(captions, rows, kinds, similarity, replaced, edits)
