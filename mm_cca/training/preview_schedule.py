"""After which steps previews are drawn, and what they cost."""

import math
import statistics
import sys
from pathlib import Path

from tqdm import tqdm

from mm_cca.runs.preview_record import PreviewRecord

SHARE = 0.03
"""Of the training's time; ``sample.every: auto`` keeps to it, more is warned of."""
TIMED = 5
"""Steps that are timed; the first of them is not counted, as it prepares what others reuse."""


class PreviewSchedule:
    """Base and last weights are always due, what lies between every so many steps.

    ``auto`` knows its interval once some steps are timed; it is kept in the record, so that a
    resumed training goes on with it.
    """

    def __init__(
        self, every: int | str | None, num_steps: int, num_pictures: int, record: PreviewRecord
    ) -> None:
        self._given = every if isinstance(every, int) else None
        self._num_steps, self._num_pictures = num_steps, num_pictures
        self._record = record
        self._timed: list[float] = []

    def is_due(self, done: int) -> bool:
        """Whether previews are to be drawn after so many steps, and are not there yet."""
        if done in self._record.drawn:
            return False
        every = self._given or self._record.every
        return done in (0, self._num_steps) or (every is not None and done % every == 0)

    def see(self, seconds: float, folder: Path) -> None:
        """Take in the time of a step; after some, choose ``auto``'s interval and tell the cost."""
        if len(self._timed) == TIMED or not self._record.drawn:
            return
        self._timed.append(seconds)
        if len(self._timed) < TIMED:
            return
        of_step, cost = statistics.median(self._timed[1:]), min(self._record.drawn.values())
        if self._given is None and self._record.every is None:
            self._record.every = interval(cost, of_step, self._num_steps)
            self._record.write(folder)
        tqdm.write(self._told(cost, of_step), file=sys.stderr)

    def _told(self, cost: float, of_step: float) -> str:
        every = self._given or self._record.every
        assert every is not None
        share = count(every, self._num_steps) * cost / (self._num_steps * of_step)
        text = (
            f"previews: {self._num_pictures} pictures take {cost:.2g} s and a step {of_step:.2g} s;"
            f" drawn at the start, at the end and every {every} steps they cost {share:.1%} of the "
            "training's time"
        )
        if every >= self._num_steps:
            text = text.replace(f", at the end and every {every} steps", " and at the end")
        if self._given is None or share <= SHARE:
            return text
        instead = interval(cost, of_step, self._num_steps)
        return f"warning: {text}; sample.every=auto would take {instead}"


def interval(cost: float, of_step: float, num_steps: int) -> int:
    """The smallest number of steps between previews that keeps to ``SHARE``, evenly spread.

    Args:
        cost: seconds of one preview.
        of_step: seconds of a step.
        num_steps: of the training; the first and the last preview count too.
    """
    affordable = int(SHARE * num_steps * of_step / cost)
    return math.ceil(num_steps / max(1, affordable - 1))


def count(every: int, num_steps: int) -> int:
    """How many previews there are in all: base, last and between."""
    return 2 + (num_steps - 1) // every
