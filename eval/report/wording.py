"""Verdicts in plain words, with what is doubtful about them."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypedDict

from mm_cca.config.metrics import LEAD, METRICS, Metric, in_sentence
from mm_cca.eval.summary_types import Interval, Scores, VerdictEntry, differences_of
from mm_cca.sampling.prompts import PROMPTS

LEVEL, AHEAD, BEHIND = "level", "ahead", "behind"
BADGES = {LEVEL: "no difference found", AHEAD: AHEAD, BEHIND: BEHIND}
FIRST = [("guided cca", "guided base"), ("cca", "guided base")]
"""The comparisons that come first; the first of them is made after plain fine-tuning only."""
CCA = "CCA"
"""What the trained model is called, but after another objective (``LossTerms.model_name``)."""


class VerdictText(TypedDict):
    """One comparison: ``level``, ``ahead`` or ``behind`` in the metric that comes first, the same
    in words, the sentence, and cautions that not all comparisons of the split share."""

    outcome: str
    badge: str
    sentence: str
    cautions: list[str]


class VerdictTexts(TypedDict):
    """The comparisons of a split, and the cautions that hold for all of them."""

    verdicts: list[VerdictText]
    cautions: list[str]


def verdict_texts(
    verdicts: Sequence[VerdictEntry],
    passes: Mapping[str, int],
    scores: Mapping[str, Scores],
    warnings: Sequence[str] = (),
    ours: str = CCA,
) -> VerdictTexts:
    """The verdicts of one split by one judge, with everything that is doubtful about them.

    Args:
        verdicts: of one split.
        passes: forward passes per image of every arm.
        scores: of every arm on that split.
        warnings: of the summary that concern this split, as ``warnings_about`` gives them.
        ours: what the trained model is called.
    """
    ordered = sorted(verdicts, key=lambda verdict: place_of(verdict["ours"], verdict["rival"]))
    shared = shared_cautions([verdict["cautions"] for verdict in ordered])
    texts: list[VerdictText] = []
    for verdict in ordered:
        result = lead_outcome(verdict)
        own, others = scores[verdict["arm"]], scores[verdict["against"]]
        texts.append(
            {
                "outcome": result,
                "badge": BADGES[result],
                "sentence": verdict_sentence(verdict, passes, ours)
                + extrapolated_sentence(verdict, scores)
                + fid_sentence(own, others),
                "cautions": [text for text in verdict["cautions"] if text not in shared],
            }
        )
    return {"verdicts": texts, "cautions": [*shared, *warnings]}


def place_of(ours: str, rival: str) -> int:
    """Order of a comparison of two kinds of arms; smaller ones come first."""
    return FIRST.index((ours, rival)) if (ours, rival) in FIRST else len(FIRST)


def shared_cautions(cautions: Sequence[Sequence[str]]) -> list[str]:
    """Those of more than one comparison, which stand once beside all of them, not with each."""
    counts = Counter(caution for each in cautions for caution in dict.fromkeys(each))
    return [caution for caution, count in counts.items() if count > 1]


def warnings_about(split: str, warnings: Sequence[str], splits: Sequence[str]) -> list[str]:
    """The summary's warnings that concern a split: its own and those of no split."""
    others = tuple(f"{other}: " for other in splits if other != split)
    return [warning for warning in warnings if not warning.startswith(others)]


def outcome(interval: Interval, *, higher_is_better: bool = True) -> str:
    """``level`` when the interval of a difference includes 0, else ``ahead`` or ``behind``."""
    if interval["low"] <= 0 <= interval["high"]:
        return LEVEL
    return AHEAD if (interval["low"] > 0) == higher_is_better else BEHIND


def lead_outcome(verdict: VerdictEntry) -> str:
    """The outcome in the metric that comes first."""
    return outcome(differences_of(verdict)[LEAD], higher_is_better=METRICS[LEAD].higher_is_better)


def verdict_sentence(verdict: VerdictEntry, passes: Mapping[str, int], ours: str = CCA) -> str:
    """One comparison as a sentence: in every metric against the rival's best in that metric.

    Args:
        verdict: with the difference in each metric.
        passes: forward passes per image of every arm.
        ours: what the trained model is called.
    """
    arm, against = verdict["arm"], verdict["against"]
    parts = [_part(verdict, name, ours) for name in in_sentence(differences_of(verdict))]
    told = cost(passes[arm], passes[against])
    return f"{_capital(in_words(arm, ours))}: {'; '.join(parts)}; {told}."


def _part(verdict: VerdictEntry, name: str, ours: str) -> str:
    """Such as: behind base+cfg3 in FD (difference ...)."""
    metric, difference = METRICS[name], differences_of(verdict)[name]
    result = outcome(difference, higher_is_better=metric.higher_is_better)
    compared = verdict["compared"][name]
    rival = arms_in_words(compared["against"], ours)
    more = [difference_in_words(difference, metric, verdict["confidence"])]
    if compared["arm"] != [verdict["arm"]]:
        more.append(f"as {' or '.join(compared['arm'])}")
    told = f"({'; '.join(more)})"
    if result != LEVEL:
        return f"{'ahead of' if result == AHEAD else result} {rival} in {metric.label} {told}"
    most = max(abs(difference["low"]), abs(difference["high"]))
    return (
        f"no difference found from {rival} in {metric.label}, could be up to "
        f"{most:.{metric.digits}f} {told}"
    )


def extrapolated_sentence(verdict: VerdictEntry, scores: Mapping[str, Scores]) -> str:
    """The distances of the sentence at infinitely many images, where they are known."""
    texts = []
    for name in in_sentence(differences_of(verdict)):
        compared = verdict["compared"][name]
        arms = [compared["arm"][0], compared["against"][0]]
        values = [scores[arm][name].get("extrapolated") for arm in arms if name in scores[arm]]
        known = [value for value in values if value is not None]
        if len(known) == len(arms):
            label, digits = METRICS[name].label, METRICS[name].digits
            both = " against ".join(f"{value:.{digits}f}" for value in known)
            texts.append(f" {label} at infinitely many images {both}.")
    return "".join(texts)


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


def in_words(arm: str, ours: str = CCA) -> str:
    """An arm's name in a sentence, in which the trained model is called ``ours``."""
    source, *parts = arm.split("+")
    settings, guidance = [], []
    for part in parts:
        found = re.fullmatch(r"(dial|t)(\d.*)", part)
        if found is None:
            guidance.append(part)
        else:
            settings.append(f"{'temperature' if found[1] == 't' else 'dial'} {found[2]}")
    settled = f" at {' and '.join(settings)}" if settings else ""
    if source == "cca":
        return f"{ours}{settled} " + (
            f"with {' '.join(guidance)}" if guidance else "without guidance"
        )
    if guidance:
        return "+".join([source, *guidance]) + settled
    return f"the {source}{settled} without guidance"


def arms_in_words(arms: Sequence[str], ours: str = CCA) -> str:
    """One arm, or two where the halves of the prompts disagree on which is the best."""
    return " or ".join(in_words(arm, ours) for arm in arms)


def prompts_in_words(split: str) -> str:
    """Which prompts: of a split of the data, or of a file."""
    return "prompts of the file" if split == PROMPTS else f"{split} prompts"


def difference_in_words(interval: Interval, metric: Metric, confidence: float) -> str:
    """A difference, its interval, and which way is better unless that is up."""
    value, low, high = (
        f"{number:+.{metric.digits}f}"
        for number in (interval["value"], interval["low"], interval["high"])
    )
    hint = "" if metric.higher_is_better else "; lower is better"
    level = f"{100 * confidence:.3g}"
    return f"difference {value}, {level} % interval {low} to {high}{hint}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
