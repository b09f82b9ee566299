"""Another row for every image whose shuffled negative turned out to be no wrong prompt."""

import numpy as np

from mm_cca.negatives.captions import Distinct
from mm_cca.negatives.guard import FINE, Guard
from mm_cca.negatives.shuffle import draw_from_others

TRIES = 16


def repeats(said: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """[r, j] keys of earlier negatives and [r] keys of new ones -> [r] bool."""
    return (said == keys[:, None]).any(axis=1)


def redraw(
    groups: Distinct,
    guard: Guard,
    rows: np.ndarray,
    keys: np.ndarray,
    said: np.ndarray,
    stream: np.random.Generator,
) -> np.ndarray:
    """For each row another row that is a wrong prompt for it.

    A few random tries, and then a look at every caption there is.

    Args:
        groups: all n rows.
        guard: what is no wrong prompt.
        rows: [r] rows in need.
        keys: [D] ``key_of`` each label.
        said: [r, j] keys of the negatives that each row has already; drawn only if there is no
            other.
        stream: random numbers.

    Returns:
        [r] int64 rows, -1 where no caption is a wrong prompt.
    """
    labels = groups.labels
    chosen = np.full(len(rows), -1, np.int64)
    open_ = np.arange(len(rows))
    for _ in range(TRIES):
        if not len(open_):
            return chosen
        drawn = draw_from_others(groups, rows[open_], stream)
        fine = guard.verdicts(labels[rows[open_]], labels[drawn]) == FINE
        fine &= ~repeats(said[open_], keys[labels[drawn]])
        chosen[open_[fine]] = drawn[fine]
        open_ = open_[~fine]
    own = labels[rows[open_]]
    for label in np.unique(own).tolist():
        fine = guard.all_fine(label)
        for place in open_[own == label].tolist() if len(fine) else ():
            new = fine[~np.isin(keys[fine], said[place])]
            among = new if len(new) else fine
            chosen[place] = groups.first_rows[among[stream.integers(len(among))]]
    return chosen
