"""Nearest captions by cosine: exact for small sets, a faiss inverted file for large ones.

Shapes: D captions, r query rows, w neighbours each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mm_cca.errors import UserError
from mm_cca.negatives.vectors import Vectors, blocks, on_grid

APPROXIMATE_ABOVE = 100_000
"""Distinct captions; an exact search of these takes minutes, and its time grows with the square."""

NUM_PROBES = 32
OVERSAMPLE = 4
MAX_CELLS = 8192
MAX_COSINES_PER_CALL = 1 << 23
STEPS = 1 << 20
"""Cosines closer than 1/STEPS are ties; the lower index comes first."""
_EXCLUDED = -(1 << 62)


@dataclass(frozen=True)
class Search:
    """A nearest-neighbour search.

    Attributes:
        nearest: (rows [r], w) -> ids [r, w] int64, nearest first, -1 where there are fewer, and
            their cosines [r, w] float32, -1 there too. The row itself and captions above the
            similarity limit are excluded.
        max_width: largest w.
        rows_at_once: how many rows to query in one call.
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
    at_once = max(16, min(8192, MAX_COSINES_PER_CALL // total))
    return Search(lambda rows, width: _exact(vectors, rows, width, limit), total - 1, at_once)


def _exact(
    vectors: Vectors, rows: np.ndarray, width: int, limit: float
) -> tuple[np.ndarray, np.ndarray]:
    total = len(vectors)
    cosines = vectors.against_all(rows)
    excluded = cosines > limit
    excluded[np.arange(len(rows)), rows] = True
    # One integer of cosine and index: no two are equal, so the order never depends on the sort.
    rank = np.rint(cosines * STEPS).astype(np.int64) * total - np.arange(total)
    rank[excluded] = _EXCLUDED
    width = min(width, total)
    ids = np.argpartition(rank, total - width, axis=1)[:, total - width :]
    return _sorted(ids, np.take_along_axis(rank, ids, 1), np.take_along_axis(cosines, ids, 1))


def _sorted(
    ids: np.ndarray, rank: np.ndarray, cosines: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-rank, axis=1, kind="stable")
    ids = np.where(rank == _EXCLUDED, -1, ids)
    cosines = np.where(rank == _EXCLUDED, np.float32(-1), cosines)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(cosines, order, 1)


def _approximate(vectors: Vectors, limit: float) -> Search:
    index_vectors = vectors.searchable()
    index = _index(index_vectors)
    total = len(vectors)

    def nearest(rows: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        # Oversampled, as the full vectors are ranked again; one more for the row itself.
        wide = min(total, OVERSAMPLE * width + 1)
        _, ids = index.search(index_vectors[rows].astype(np.float32), wide)
        queries = np.repeat(rows, ids.shape[1])
        flat = ids.ravel()
        valid = (flat >= 0) & (flat != queries)
        cosines = np.full(flat.shape, -1, np.float32)
        # The index searches reduced vectors; results are ranked by the cosine of the full ones.
        cosines[valid] = vectors.cosines(queries[valid], flat[valid])
        valid &= cosines <= limit
        rank = np.rint(cosines * STEPS).astype(np.int64) * total - flat
        rank[~valid] = _EXCLUDED
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
    # On the grid, products are exact, so a caption's cell does not depend on threads; see GRID.
    coarse.add(on_grid(np.asarray(means.centroids)).astype(np.float32))
    index = faiss.IndexIVFScalarQuantizer(
        coarse,
        features,
        cells,
        faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
        False,  # store the vectors, which are exact, not the residuals to the cell's mean
    )
    index.train(sample)
    for part in blocks(total):
        index.add(vectors[part].astype(np.float32))
    index.nprobe = min(NUM_PROBES, cells)
    return index
