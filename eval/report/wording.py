"""Verdicts in plain words."""

from collections.abc import Mapping

from mm_cca.config.metrics import LEAD, METRICS, Metric, Verdict
from mm_cca.eval.summary_types import Interval, Scores, VerdictEntry, differences_of
from mm_cca.sampling.prompts import PROMPTS

LEVEL, AHEAD, BEHIND = "level", "ahead", "behind"
PREPOSITIONS = {LEVEL: "level with", AHEAD: "ahead of", BEHIND: "behind"}


def outcome(interval: Interval, *, higher_is_better: bool = True) -> str:
    """``level`` when the interval of a difference includes 0, else ``ahead`` or ``behind``."""
    if interval["low"] <= 0 <= interval["high"]:
        return LEVEL
    return AHEAD if (interval["low"] > 0) == higher_is_better else BEHIND


def lead_outcome(verdict: VerdictEntry) -> str:
    """The outcome in the metric that comes first."""
    return outcome(differences_of(verdict)[LEAD], higher_is_better=METRICS[LEAD].higher_is_better)


def verdict_sentence(verdict: VerdictEntry, passes: Mapping[str, int]) -> str:
    """One comparison as a sentence.

    Args:
        verdict: with the difference in each metric.
        passes: forward passes per image of every arm.
    """
    ours, theirs = verdict["arm"], verdict["against"]
    differences = differences_of(verdict)
    parts: list[str] = []
    for name, metric in METRICS.items():
        if metric.verdict is not Verdict.SENTENCE or name not in differences:
            continue
        result = outcome(differences[name], higher_is_better=metric.higher_is_better)
        who = result if parts else f"{PREPOSITIONS[result]} {in_words(theirs)}"
        parts.append(f"{who} in {metric.label} ({_difference(differences[name], metric)})")
    return (
        f"{_capital(in_words(ours))} is {' and '.join(parts)} {cost(passes[ours], passes[theirs])}."
    )


def fid_sentence(ours: Scores, theirs: Scores) -> str:
    """Two FIDs, where there are any; they have no interval over prompts."""
    if "fid" not in ours:
        return ""
    label, digits = METRICS["fid"].label, METRICS["fid"].digits
    values = [f"{scores['fid']['value']:.{digits}f}" for scores in (ours, theirs)]
    return f" {label} {' against '.join(values)} (lower is better; other seeds show its spread)."


def cost(ours: int, theirs: int) -> str:
    """Our forward passes relative to theirs."""
    if ours == theirs:
        return "at the same number of forward passes"
    return f"at {ours / theirs:.2g}x the forward passes"


def in_words(arm: str) -> str:
    """An arm's name in a sentence."""
    source, *parts = arm.split("+")
    if source == "cca":
        dial = "".join(f" at dial {p.removeprefix('dial')}" for p in parts if p.startswith("dial"))
        guided = [p for p in parts if not p.startswith("dial")]
        return f"CCA{dial} " + (f"with {' '.join(guided)}" if guided else "without guidance")
    return arm if parts else f"the {source} without guidance"


def prompts_in_words(split: str) -> str:
    """Which prompts: of a split of the data, or of a file."""
    return "prompts of the file" if split == PROMPTS else f"{split} prompts"


def _difference(interval: Interval, metric: Metric) -> str:
    value, low, high = (
        f"{number:+.{metric.digits}f}"
        for number in (interval["value"], interval["low"], interval["high"])
    )
    hint = "" if metric.higher_is_better else "; lower is better"
    return f"difference {value}, 95 % interval {low} to {high}{hint}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
