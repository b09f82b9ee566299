"""Draws another row for every image whose shuffled caption is not a true negative."""

import numpy as np

from mm_cca.negatives.captions import Distinct
from mm_cca.negatives.guard import FINE, Guard
from mm_cca.negatives.shuffle import draw_from_others

TRIES = 16


def repeats(used_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """[r, j] keys of earlier negatives and [r] keys of new ones -> [r] bool: repeated."""
    return (used_keys == keys[:, None]).any(axis=1)


def redraw(
    groups: Distinct,
    guard: Guard,
    rows: np.ndarray,
    keys: np.ndarray,
    used_keys: np.ndarray,
    stream: np.random.Generator,
) -> np.ndarray:
    """Draw for each row another row whose caption is a true negative.

    Tries a few random rows first, and then compares with all captions.

    Args:
        groups: all n rows.
        guard: decides which captions are true negatives.
        rows: [r] rows to draw for.
        keys: [D] ``key_of`` each label.
        used_keys: [r, j] keys of the negatives that each row has already; these are drawn only if
            there is no other.
        stream: random numbers.

    Returns:
        [r] int64 rows, -1 where no caption is a true negative.
    """
    labels = groups.labels
    chosen = np.full(len(rows), -1, np.int64)
    pending = np.arange(len(rows))
    for _ in range(TRIES):
        if not len(pending):
            return chosen
        drawn = draw_from_others(groups, rows[pending], stream)
        fine = guard.verdicts(labels[rows[pending]], labels[drawn]) == FINE
        fine &= ~repeats(used_keys[pending], keys[labels[drawn]])
        chosen[pending[fine]] = drawn[fine]
        pending = pending[~fine]
    own = labels[rows[pending]]
    for label in np.unique(own).tolist():
        fine = guard.all_fine(label)
        for index in pending[own == label].tolist() if len(fine) else ():
            unused = fine[~np.isin(keys[fine], used_keys[index])]
            choices = unused if len(unused) else fine
            chosen[index] = groups.first_rows[choices[stream.integers(len(choices))]]
    return chosen
