"""Nearest captions by cosine: exact for small sets, by an index of cells for large ones.

Shapes: D captions, r rows asked for, w neighbours each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mm_cca.errors import UserError
from mm_cca.negatives.vectors import Vectors, blocks, on_grid

APPROXIMATE_ABOVE = 100_000
"""Distinct captions; comparing all of these takes minutes, and the time grows with the square."""

CELLS_LOOKED_AT = 32
OVERSAMPLE = 4
MAX_CELLS = 8192
COSINES_AT_ONCE = 1 << 23
STEPS = 1 << 20
"""Cosines closer than 1/STEPS tie, and the lower index comes first."""
_LEFT_OUT = -(1 << 62)


@dataclass(frozen=True)
class Search:
    """How to look for neighbours.

    Attributes:
        nearest: (rows [r], w) -> ids [r, w] int64, nearest first, -1 where there are fewer, and
            their cosines [r, w] float32, -1 there too. The row itself and whatever is more similar
            than the limit is left out.
        max_width: the most neighbours it can be asked for.
        rows_at_once: how many rows to ask for in one call.
    """

    nearest: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
    max_width: int
    rows_at_once: int


def make_search(vectors: Vectors, max_similarity: float | None) -> Search:
    """Exact up to ``APPROXIMATE_ABOVE`` captions, approximate above.

    Raises:
        UserError: more captions than that, and faiss is not installed.
    """
    limit = np.inf if max_similarity is None else max_similarity
    if len(vectors) > APPROXIMATE_ABOVE:
        return _approximate(vectors, limit)
    total = len(vectors)
    at_once = max(16, min(8192, COSINES_AT_ONCE // total))
    return Search(lambda rows, width: _exact(vectors, rows, width, limit), total - 1, at_once)


def _exact(
    vectors: Vectors, rows: np.ndarray, width: int, limit: float
) -> tuple[np.ndarray, np.ndarray]:
    total = len(vectors)
    cosines = vectors.against_all(rows)
    left_out = cosines > limit
    left_out[np.arange(len(rows)), rows] = True
    # One whole number for cosine and index: no two are equal, so that no sort has a choice.
    rank = np.rint(cosines * STEPS).astype(np.int64) * total - np.arange(total)
    rank[left_out] = _LEFT_OUT
    width = min(width, total)
    ids = np.argpartition(rank, total - width, axis=1)[:, total - width :]
    return _sorted(ids, np.take_along_axis(rank, ids, 1), np.take_along_axis(cosines, ids, 1))


def _sorted(
    ids: np.ndarray, rank: np.ndarray, cosines: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-rank, axis=1, kind="stable")
    ids = np.where(rank == _LEFT_OUT, -1, ids)
    cosines = np.where(rank == _LEFT_OUT, np.float32(-1), cosines)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(cosines, order, 1)


def _approximate(vectors: Vectors, limit: float) -> Search:
    index_vectors = vectors.searchable()
    index = _index(index_vectors)
    total = len(vectors)

    def nearest(rows: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        # One more for the row itself, and more again for the order of the full vectors.
        wide = min(total, OVERSAMPLE * width + 1)
        _, ids = index.search(index_vectors[rows].astype(np.float32), wide)
        asked = np.repeat(rows, ids.shape[1])
        flat = ids.ravel()
        known = (flat >= 0) & (flat != asked)
        cosines = np.full(flat.shape, -1, np.float32)
        # The index finds them by shortened vectors; what counts is the cosine of the full ones.
        cosines[known] = vectors.cosines(asked[known], flat[known])
        known &= cosines <= limit
        rank = np.rint(cosines * STEPS).astype(np.int64) * total - flat
        rank[~known] = _LEFT_OUT
        ids, cosines = _sorted(ids, rank.reshape(ids.shape), cosines.reshape(ids.shape))
        return ids[:, :width], cosines[:, :width]

    return Search(nearest, min(1024, total - 1), 8192)


def _index(vectors: np.ndarray) -> Any:
    """An inverted file of [D, F] float16 vectors, the same for any number of threads."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            f"hard negatives among {len(vectors)} distinct captions (more than "
            f"{APPROXIMATE_ABOVE}) need faiss, which is not installed; "
            'pip install "mm-cca[hard]", or use negatives shuffle or edit.'
        ) from error
    from threadpoolctl import threadpool_limits

    total, features = vectors.shape
    cells = max(1, min(MAX_CELLS, int(2 * np.sqrt(total))))
    with threadpool_limits(limits=1):
        sample = vectors[:: max(1, total // (cells * 64))].astype(np.float32)
        means = faiss.Kmeans(
            features, cells, niter=8, seed=1, spherical=True, min_points_per_centroid=1
        )
        means.train(sample)
    coarse = faiss.IndexFlatIP(features)
    # On the grid a caption's cell is an exact comparison, see GRID.
    coarse.add(on_grid(np.asarray(means.centroids)).astype(np.float32))
    index = faiss.IndexIVFScalarQuantizer(
        coarse,
        features,
        cells,
        faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
        False,  # the vectors themselves, not their distance from the cell: these are exact
    )
    index.train(sample)
    for part in blocks(total):
        index.add(vectors[part].astype(np.float32))
    index.nprobe = min(CELLS_LOOKED_AT, cells)
    return index
