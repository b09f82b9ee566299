"""Verdicts in plain words."""

from collections.abc import Mapping
from typing import Any

from mm_cca.sampling.prompts import PROMPTS

LEVEL, AHEAD, BEHIND = "level", "ahead", "behind"
PREPOSITIONS = {LEVEL: "level with", AHEAD: "ahead of", BEHIND: "behind"}
LEAD = "alignment"
"""The score that a verdict is about first."""
JUDGED = {LEAD: ("alignment", 1, False), "frechet_distance": ("FD", 2, True)}
"""Scores that a sentence speaks of: what they are called, digits, whether lower is better."""


def standing(interval: Mapping[str, float], *, lower_is_better: bool = False) -> str:
    """``level`` when the interval of a difference includes 0, else ``ahead`` or ``behind``."""
    if interval["low"] <= 0 <= interval["high"]:
        return LEVEL
    return AHEAD if (interval["low"] > 0) != lower_is_better else BEHIND


def verdict_sentence(verdict: Mapping[str, Any], passes: Mapping[str, int]) -> str:
    """One comparison as a sentence.

    Args:
        verdict: ``arm``, ``against``, and for each score the difference with its interval.
        passes: forward passes per image of every arm.
    """
    ours, theirs = verdict["arm"], verdict["against"]
    parts = []
    for key, (name, digits, lower) in JUDGED.items():
        if key not in verdict:
            continue
        stands = standing(verdict[key], lower_is_better=lower)
        who = f"{PREPOSITIONS[stands]} {in_words(theirs)}" if not parts else stands
        parts.append(f"{who} in {name} ({_difference(verdict[key], digits, lower)})")
    return (
        f"{_capital(in_words(ours))} is {' and '.join(parts)} {cost(passes[ours], passes[theirs])}."
    )


def fid_sentence(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Two FIDs, where there are any; they have no interval over prompts."""
    if "fid" not in ours:
        return ""
    one, other = (scores["fid"]["value"] for scores in (ours, theirs))
    return f" FID {one:.2f} against {other:.2f} (lower is better; other seeds show its spread)."


def cost(ours: int, theirs: int) -> str:
    """What our forward passes are beside theirs."""
    if ours == theirs:
        return "at the same number of forward passes"
    return f"at {ours / theirs:.2g}x the forward passes"


def in_words(arm: str) -> str:
    """An arm's name, as a reader says it."""
    source, *parts = arm.split("+")
    if source == "cca":
        dial = "".join(f" at dial {p.removeprefix('dial')}" for p in parts if p.startswith("dial"))
        guided = [p for p in parts if not p.startswith("dial")]
        return f"CCA{dial} " + (f"with {' '.join(guided)}" if guided else "without guidance")
    return arm if parts else f"the {source} without guidance"


def prompts_in_words(split: str) -> str:
    """Which prompts: of a split of the data, or of a file."""
    return "prompts of the file" if split == PROMPTS else f"{split} prompts"


def _difference(interval: Mapping[str, float], digits: int, lower: bool) -> str:
    value, low, high = (f"{interval[key]:+.{digits}f}" for key in ("value", "low", "high"))
    hint = "; lower is better" if lower else ""
    return f"difference {value}, 95 % interval {low} to {high}{hint}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
