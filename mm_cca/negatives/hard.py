"""The nearest captions that are wrong nevertheless, found once for every distinct caption.

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
    """ids: [D, C] int32 labels, nearest first, -1 where there are fewer."""

    ids: np.ndarray

    @property
    def possible(self) -> np.ndarray:
        """[D] bool: there is at least one."""
        return self.ids[:, 0] >= 0


def find_candidates(
    search: Search, guard: Guard, count: int, needed: int, *, show: bool = False
) -> Candidates:
    """The first ``count`` neighbours that the guard has nothing against.

    A caption with nothing in common (cosine 0 or less) is no candidate: which of these came first
    would be chance.

    Args:
        search: leaves out what is too similar.
        guard: for what is contained.
        count: C.
        needed: a caption with fewer candidates is looked at once more, further out.
        show: a progress bar.
    """
    total = len(guard.words)
    ids = np.full((total, count), -1, np.int32)
    parts = list(blocks(total, search.rows_at_once))
    for part in tqdm(parts, desc="similar captions", unit="block", disable=not show):
        rows = np.arange(part.start, part.stop)
        width = min(2 * count + 16, search.max_width)
        while len(rows):
            ids[rows], found, there_is_more = _first_fine(search, guard, rows, width, count)
            if width == search.max_width:
                break
            rows = rows[(found < needed) & there_is_more]
            width = min(8 * width, search.max_width)
    return Candidates(ids)


def _first_fine(
    search: Search, guard: Guard, rows: np.ndarray, width: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[r, count] labels, -1 where there are fewer; [r] how many; [r] whether to look further."""
    near, cosines = search.nearest(rows, width)
    fine = (near >= 0) & (cosines > 0)
    own = np.broadcast_to(rows[:, None], near.shape)
    fine[fine] = ~guard.contained(own[fine], near[fine])
    place = fine.cumsum(axis=1) - 1
    row, column = np.nonzero(fine & (place < count))
    found = np.full((len(rows), count), -1, np.int64)
    found[row, place[row, column]] = near[row, column]
    return found, (found >= 0).sum(axis=1), (near[:, -1] >= 0) & (cosines[:, -1] > 0)


def draw(ids: np.ndarray, keys: np.ndarray, said: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """One candidate for each row, uniformly, of those not said yet where there are such.

    Args:
        ids: [r, C] candidates of each row, at least one.
        keys: [D] ``key_of`` each label.
        said: [r, j] keys of the negatives that each row has already.
        uniform: [r] random numbers, 0 up to 1.

    Returns:
        [r] labels.
    """
    free = ids >= 0
    known = free.copy()
    for earlier in said.T:
        free &= keys[ids] != earlier[:, None]
    # Fewer candidates than negatives: better one twice than none.
    nothing_left = ~free.any(axis=1)
    free[nothing_left] = known[nothing_left]
    pick = np.floor(uniform * free.sum(axis=1)).astype(np.int64)
    place = (free.cumsum(axis=1) > pick[:, None]).argmax(axis=1)
    return ids[np.arange(len(ids)), place].astype(np.int64)
