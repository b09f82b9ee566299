"""Which size of images each step has: every size in proportion to its images, in a seeded order.

The images of a size are cut into batches, epoch after epoch, and the batches of an epoch of all
sizes are shuffled. So any step can be looked up, and no rank needs to have seen those before.
"""

from functools import lru_cache

import numpy as np


class BucketOrder:
    """Finds the group and the batch of a step.

    Attributes:
        counts: images of each group.
    """

    def __init__(self, counts: list[int], batch_size: int, seed: int) -> None:
        self.counts = counts
        self._size = batch_size
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def at(self, step: int) -> tuple[int, int]:
        """The group of a step, and which of the group's batches it is, from 0."""
        if len(self.counts) == 1:
            return 0, step
        epoch = step * self._size // sum(self.counts)
        # Each group rounds up its batches, so that a step may come an epoch earlier.
        while sum(self._before(epoch)) > step:
            epoch -= 1
        while sum(self._before(epoch + 1)) <= step:
            epoch += 1
        order, first = self._epoch(epoch), self._before(epoch)
        place = step - sum(first)
        group = int(order[place])
        return group, first[group] + int((order[:place] == group).sum())

    def _before(self, epoch: int) -> list[int]:
        """Batches of each group that begin before an epoch of its images."""
        return [-(-epoch * count // self._size) for count in self.counts]

    def _make_epoch(self, epoch: int) -> np.ndarray:
        """The groups of the batches that begin in an epoch, shuffled."""
        first, last = self._before(epoch), self._before(epoch + 1)
        groups = np.repeat(np.arange(len(self.counts)), np.subtract(last, first))
        return np.random.default_rng([self._seed, epoch, 0x6275]).permutation(groups)
