"""Hard negatives: the most similar captions that are true negatives, per distinct caption.

Shapes: D distinct captions, C candidates each, r rows.
"""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from mm_cca.negatives.guard import Guard
from mm_cca.negatives.neighbours import Search
from mm_cca.negatives.vectors import blocks


@dataclass(frozen=True)
class Candidates:
    """Candidates of every distinct caption.

    Attributes:
        ids: [D, C] int32 labels, nearest first, -1 where there are fewer.
    """

    ids: np.ndarray

    @property
    def possible(self) -> np.ndarray:
        """[D] bool: whether a caption has at least one candidate."""
        return self.ids[:, 0] >= 0


def find_candidates(
    search: Search, guard: Guard, count: int, needed: int, *, show: bool = False
) -> Candidates:
    """The ``count`` nearest neighbours that the guard accepts.

    Captions with cosine 0 or less have nothing in common and are no candidates: their order would
    be arbitrary.

    Args:
        search: excludes captions that are too similar.
        guard: excludes captions that contain one another.
        count: C.
        needed: the search is widened for a caption with fewer candidates than this.
        show: whether to show a progress bar.
    """
    total = len(guard.words)
    ids = np.full((total, count), -1, np.int32)
    parts = list(blocks(total, search.rows_at_once))
    for part in tqdm(parts, desc="similar captions", unit="block", disable=not show):
        rows = np.arange(part.start, part.stop)
        width = min(2 * count + 16, search.max_width)
        while len(rows):
            ids[rows], num_found, there_is_more = _first_fine(search, guard, rows, width, count)
            if width == search.max_width:
                break
            rows = rows[(num_found < needed) & there_is_more]
            width = min(8 * width, search.max_width)
    return Candidates(ids)


def _first_fine(
    search: Search, guard: Guard, rows: np.ndarray, width: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[r, count] labels, -1 where there are fewer; [r] how many; [r] whether more may exist."""
    near, cosines = search.nearest(rows, width)
    fine = (near >= 0) & (cosines > 0)
    own = np.broadcast_to(rows[:, None], near.shape)
    fine[fine] = ~guard.contained(own[fine], near[fine])
    place = fine.cumsum(axis=1) - 1
    row, column = np.nonzero(fine & (place < count))
    labels = np.full((len(rows), count), -1, np.int64)
    labels[row, place[row, column]] = near[row, column]
    return labels, (labels >= 0).sum(axis=1), (near[:, -1] >= 0) & (cosines[:, -1] > 0)


def draw(
    ids: np.ndarray, keys: np.ndarray, used_keys: np.ndarray, uniform: np.ndarray
) -> np.ndarray:
    """Draw one candidate per row, uniformly from those that the row has not used yet.

    A row that has used all its candidates draws from all of them.

    Args:
        ids: [r, C] candidates of each row, at least one.
        keys: [D] ``key_of`` each label.
        used_keys: [r, j] keys of the negatives that each row has already.
        uniform: [r] random numbers, at least 0 and below 1.

    Returns:
        [r] labels.
    """
    free = ids >= 0
    valid = free.copy()
    for earlier in used_keys.T:
        free &= keys[ids] != earlier[:, None]
    # With fewer candidates than negatives, a repeated negative is better than none.
    nothing_left = ~free.any(axis=1)
    free[nothing_left] = valid[nothing_left]
    pick = np.floor(uniform * free.sum(axis=1)).astype(np.int64)
    place = (free.cumsum(axis=1) > pick[:, None]).argmax(axis=1)
    return ids[np.arange(len(ids)), place].astype(np.int64)
