"""How the differences of two runs are said, on the page and in the terminal."""

from mm_cca.config.metrics import METRICS
from mm_cca.eval.comparison_types import (
    ArmPair,
    ProtocolDifference,
    RunComparison,
    ScoreDifference,
    SplitComparison,
)

LONGEST_VALUE = 60


def same_pairs(split: SplitComparison) -> list[ArmPair]:
    """The pairs of arms with the same numbers by every judge."""
    differing = {each.pair for each in split.judged if not each.is_same}
    return list(dict.fromkeys(e.pair for e in split.judged if e.pair not in differing))


def score_text(score: ScoreDifference, which: int) -> str:
    return f"{score.values[which]:.{METRICS[score.metric].digits}f}"


def own_text(score: ScoreDifference, which: int) -> str:
    """The side's own interval where the difference has none; empty if there is none either."""
    own = score.own[which]
    if own is None or score.difference is not None:
        return ""
    digits = METRICS[score.metric].digits
    return f"{own['low']:.{digits}f} to {own['high']:.{digits}f}"


def difference_text(score: ScoreDifference) -> str:
    """B minus A with its 95 % interval, if it has one."""
    digits = METRICS[score.metric].digits
    if score.difference is None:
        return f"{score.values[1] - score.values[0]:+z.{digits}f}"
    value, low, high = (score.difference[key] for key in ("value", "low", "high"))
    return f"{value:+z.{digits}f} [{low:+z.{digits}f}, {high:+z.{digits}f}]"


def without_interval(found: RunComparison) -> str:
    """Which differences have no interval, and why; empty if all have one."""
    labels: dict[str, list[str]] = {}
    for split in found.splits:
        same = same_pairs(split)
        for score in (s for each in split.judged if each.pair not in same for s in each.scores):
            if score.lacking:
                labels.setdefault(score.lacking, []).append(METRICS[score.metric].label)
    parts = [f"{', '.join(dict.fromkeys(names))}, {why}" for why, names in labels.items()]
    if not parts:
        return ""
    return f"Differences without an interval: {'; '.join(parts)}."


def shown_values(difference: ProtocolDifference) -> tuple[str, str]:
    """Both values, cut to what a line holds."""
    a, b = map(str, difference.values)
    return _cut(a), _cut(b)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
