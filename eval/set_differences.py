"""The difference of two runs in a number of a whole set of images, such as a distance."""

import math

import numpy as np

from mm_cca.config.metrics import METRICS
from mm_cca.eval.comparison_types import ScoreDifference
from mm_cca.eval.metrics.jackknife import jackknife_interval
from mm_cca.eval.scores import LEFT_OUT
from mm_cca.eval.summary_types import Interval, Score

OTHER_SEEDS = "which the same sample.seed in both runs would allow"
NOT_KEPT = (
    "which needs 8 prompts, and both runs scored by an mm_cca that keeps what it is computed from"
)


def set_difference(name: str, ours: Score, theirs: Score, *, same_groups: bool) -> ScoreDifference:
    """B minus A in a score of a whole set; its interval by jackknife, from what both runs keep.

    Args:
        name: of the metric.
        ours: of A.
        theirs: of B, on the same prompts and against the same images.
        same_groups: whether both left the same prompts out.
    """
    values = ours["value"], theirs["value"]
    own = _own_interval(ours), _own_interval(theirs)
    left_out = [np.array(side.get("left_out", [])) for side in (ours, theirs)]
    if name not in LEFT_OUT:
        return ScoreDifference(name, values, None, None, own, "for which none is computed")
    if not same_groups:
        return ScoreDifference(name, values, None, None, own, OTHER_SEEDS)
    if not 0 < len(left_out[0]) == len(left_out[1]):
        return ScoreDifference(name, values, None, None, own, NOT_KEPT)
    difference = jackknife_interval(
        values[1] - values[0], left_out[1] - left_out[0], least=-math.inf
    )
    return ScoreDifference(name, values, difference, better_of(name, difference), own)


def _own_interval(score: Score) -> Interval | None:
    if "low" not in score or "high" not in score:
        return None
    return {"value": score["value"], "low": score["low"], "high": score["high"]}


def better_of(metric: str, difference: Interval) -> str | None:
    """The run that is better, ``A`` or ``B``; None where the interval of B minus A holds 0."""
    if difference["low"] <= 0 <= difference["high"]:
        return None
    return "B" if (difference["low"] > 0) == METRICS[metric].higher_is_better else "A"
