"""Which other caption each image is paired with: a seeded plan over the whole data set."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from mm_cca.errors import UserError
from mm_cca.negatives.captions import Distinct, distinct
from mm_cca.negatives.settings import KINDS


def plan(captions: Sequence[str], *, kind: str = "shuffle", seed: int, epoch: int) -> np.ndarray:
    """For every row the index of the row whose caption is its negative prompt.

    A function of its arguments and nothing else, so that resuming, micro-batches and ranks cannot
    change it. No row is ever paired with a caption equal to its own after ``normalise``. The plan
    is a permutation (every caption serves exactly once) unless one caption fills more than half of
    the rows, where no such permutation exists and negatives are drawn from the other rows.

    Args:
        captions: [n] captions.
        kind: ``shuffle``; the other kinds are no rows of the data and come from ``Planner``.
        seed: of the run.
        epoch: pass over the data; each has another plan.

    Returns:
        [n] int64 indices.

    Raises:
        UserError: fewer than two distinct captions, or a kind other than ``shuffle``.
    """
    if kind not in KINDS:
        raise UserError(f"loss.negatives is {kind!r}; allowed: {', '.join(KINDS)}.")
    if kind != "shuffle":
        raise UserError(
            f"plan pairs rows with rows and allows kind='shuffle', not {kind!r}; "
            f"use mm_cca.negatives.Planner for {kind!r}."
        )
    return shuffled(distinct(captions), seed=seed, epoch=epoch, column=0)


def shuffled(groups: Distinct, *, seed: int, epoch: int, column: int) -> np.ndarray:
    """The plan of one of several negatives: [n] int64 indices, another plan for every column."""
    labels = groups.labels
    # Column 0 keeps the stream it had when an image had one negative only.
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
        # An earlier swap may have mended this row already.
        if labels[i] != labels[result[i]]:
            continue
        for j in _candidates(n, stream):
            mends_i = labels[i] != labels[result[j]]
            keeps_j = labels[j] != labels[result[i]]
            if mends_i and keeps_j:
                result[i], result[j] = result[j], result[i]
                break
        else:
            raise AssertionError("no swap mends the plan although no caption fills half the rows")
    return result


def _candidates(n: int, stream: np.random.Generator) -> Iterable[int]:
    start = int(stream.integers(n))
    return itertools.chain(range(start, n), range(start))


def draw_from_others(groups: Distinct, rows: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """For each of [r] rows a row of another label, uniformly: [r] int64."""
    own = groups.labels[rows]
    total = len(groups.labels)
    pick = stream.integers(0, total - groups.sizes[own])
    # Positions count from the end of the row's own group, around the end of the list.
    return groups.order[(groups.ends[own] + pick) % total]
