"""Negative captions by shuffle: a seeded pairing of every image with another image's caption."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from mm_cca.errors import UserError
from mm_cca.negatives.captions import Distinct, distinct
from mm_cca.negatives.settings import KINDS


def plan(captions: Sequence[str], *, kind: str = "shuffle", seed: int, epoch: int) -> np.ndarray:
    """For every row the index of the row whose caption is its negative caption.

    Depends on its arguments only, so that resuming, micro-batches and ranks can't change it. No row
    is ever paired with a caption equal to its own after ``normalise``. The plan is a permutation
    (every caption is used exactly once) unless more than half of the rows have the same caption:
    then no such permutation exists, and negatives are drawn from the other rows.

    Args:
        captions: [n] captions.
        kind: ``shuffle``; the other kinds are planned by ``Planner``.
        seed: of the run.
        epoch: number of the epoch; each has another plan.

    Returns:
        [n] int64 indices.

    Raises:
        UserError: fewer than two distinct captions, or a kind other than ``shuffle``.
    """
    if kind not in KINDS:
        raise UserError(f"loss.negatives is {kind!r}; allowed: {', '.join(KINDS)}.")
    if kind != "shuffle":
        raise UserError(
            f"plan pairs rows with rows and supports kind='shuffle' only, not {kind!r}; "
            f"use mm_cca.negatives.Planner for {kind!r}."
        )
    return shuffled(distinct(captions), seed=seed, epoch=epoch, column=0)


def shuffled(groups: Distinct, *, seed: int, epoch: int, column: int) -> np.ndarray:
    """The plan of one of an image's negatives: [n] int64 indices, different in every column."""
    labels = groups.labels
    # The first negative is the same for every num_negatives, and the same as ``plan`` gives.
    entropy = [seed, epoch, 0x6E65] if column == 0 else [seed, epoch, 0x6E65, column]
    stream = np.random.default_rng(entropy)
    if 2 * int(groups.sizes.max()) > len(labels):
        return draw_from_others(groups, np.arange(len(labels)), stream)
    return _derangement(labels, stream)


def _derangement(labels: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """A random permutation with no ``labels[i] == labels[result[i]]``, by repairing conflicts."""
    n = len(labels)
    result = stream.permutation(n)
    for i in np.flatnonzero(labels == labels[result]).tolist():
        # An earlier swap may have repaired this row already.
        if labels[i] != labels[result[i]]:
            continue
        for j in _candidates(n, stream):
            repairs_i = labels[i] != labels[result[j]]
            keeps_j_valid = labels[j] != labels[result[i]]
            if repairs_i and keeps_j_valid:
                result[i], result[j] = result[j], result[i]
                break
        else:
            raise AssertionError("no swap repairs the plan although no caption has half the rows")
    return result


def _candidates(n: int, stream: np.random.Generator) -> Iterable[int]:
    start = int(stream.integers(n))
    return itertools.chain(range(start, n), range(start))


def draw_from_others(groups: Distinct, rows: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """For each of [r] rows a row of another label, drawn uniformly: [r] int64."""
    own = groups.labels[rows]
    total = len(groups.labels)
    pick = stream.integers(0, total - groups.sizes[own])
    # Positions count from the end of the row's own group and wrap around the end of the list.
    return groups.order[(groups.ends[own] + pick) % total]
