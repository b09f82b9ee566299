"""Which other caption each image is paired with: a seeded plan over the whole data set."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from mm_cca.errors import UserError

KINDS = ("shuffle",)


def normalise(caption: str) -> str:
    """Captions that differ only in case or white space say the same."""
    return " ".join(caption.casefold().split())


def plan(captions: Sequence[str], *, kind: str = "shuffle", seed: int, epoch: int) -> np.ndarray:
    """For every row the index of the row whose caption is its negative prompt.

    A function of its arguments and nothing else, so that resuming, micro-batches and ranks cannot
    change it. No row is ever paired with a caption equal to its own after ``normalise``. The plan
    is a permutation (every caption serves exactly once) unless one caption fills more than half of
    the rows, where no such permutation exists and negatives are drawn from the other rows.

    Args:
        captions: [n] captions.
        kind: ``shuffle``.
        seed: of the run.
        epoch: pass over the data; each has another plan.

    Returns:
        [n] int64 indices.

    Raises:
        UserError: fewer than two distinct captions, or an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"loss.negatives is {kind!r}; allowed: {', '.join(KINDS)}.")
    says = [normalise(caption) for caption in captions]
    # No numpy array of strings: it would give every caption the room of the longest.
    number = {text: i for i, text in enumerate(sorted(set(says)))}
    labels = np.array([number[text] for text in says], dtype=np.int64)
    if len(number) < 2:
        raise UserError(
            f"all {len(captions)} captions say the same ({captions[0]!r}): CCA learns from wrong "
            "prompts and needs at least two distinct captions. Check data.caption_column."
            if len(captions)
            else "there are no captions to pair. Check data.path and data.train_split."
        )
    stream = np.random.default_rng([seed, epoch, 0x6E65])
    ((_, most),) = Counter(labels.tolist()).most_common(1)
    if 2 * most > len(labels):
        return _draw_from_others(labels, stream)
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


def _draw_from_others(labels: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """For every row a row of another label, uniformly."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels, side="left")
    ends = np.searchsorted(labels[order], labels, side="right")
    size = ends - starts
    pick = stream.integers(0, len(labels) - size)
    # Positions count from the end of the row's own group, around the end of the list.
    return order[(ends + pick) % len(labels)]
