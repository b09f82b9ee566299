"""Several judges, one verdict: the least favourable one, and how many judges share it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mm_cca.config.metrics import METRICS, in_sentence
from mm_cca.eval.summary_types import (
    Compared,
    HeadlineEntry,
    Interval,
    Standing,
    VerdictEntry,
    differences_of,
)

FROM_WORST: tuple[Standing, ...] = ("behind", "level", "ahead")

Comparison = tuple[str, str, str, str]
"""Split, ours, rival, metric; judges may differ in which scale is the rival's best."""


@dataclass(frozen=True)
class Opinion:
    """What one judge says of one comparison."""

    judge: str
    entry: VerdictEntry
    compared: Compared
    difference: Interval


def headline_of(verdicts: Mapping[str, Sequence[VerdictEntry]]) -> list[HeadlineEntry]:
    """Every comparison that all judges made, by the least favourable of them.

    Compared are the metrics that a verdict's sentence names; where a distance to reconstructions
    is known it takes the place of the same distance to real images, which asks about the tokenizer.

    Args:
        verdicts: of every judge that may judge, by its name.

    Returns:
        in the order of the first judge; empty without judges.
    """
    opinions: dict[Comparison, list[Opinion]] = {}
    for judge, entries in verdicts.items():
        for comparison, opinion in _opinions(judge, entries):
            opinions.setdefault(comparison, []).append(opinion)
    return [
        _headline(comparison, found)
        for comparison, found in opinions.items()
        if {opinion.judge for opinion in found} == verdicts.keys()
    ]


def standing_of(difference: Interval, *, higher_is_better: bool) -> Standing:
    """``level`` when the interval of a difference includes 0."""
    if difference["low"] <= 0 <= difference["high"]:
        return "level"
    return "ahead" if (difference["low"] > 0) == higher_is_better else "behind"


def _opinions(judge: str, entries: Sequence[VerdictEntry]) -> Iterator[tuple[Comparison, Opinion]]:
    for entry in entries:
        differences = differences_of(entry)
        for name in in_sentence(differences):
            yield (
                (entry["split"], entry["ours"], entry["rival"], name),
                Opinion(judge, entry, entry["compared"][name], differences[name]),
            )


def _headline(comparison: Comparison, opinions: Sequence[Opinion]) -> HeadlineEntry:
    split, ours, rival, metric = comparison
    higher = METRICS[metric].higher_is_better

    def badness(opinion: Opinion) -> tuple[int, float]:
        standing = standing_of(opinion.difference, higher_is_better=higher)
        return FROM_WORST.index(standing), _relative(opinion.difference, higher)

    worst = min(opinions, key=badness)
    standing = standing_of(worst.difference, higher_is_better=higher)
    # A judge that compares with several arms of a kind counts by its own worst.
    standings: dict[str, Standing] = {}
    for opinion in sorted(opinions, key=badness):
        mine = standing_of(opinion.difference, higher_is_better=higher)
        standings.setdefault(opinion.judge, mine)
    return {
        "split": split,
        "ours": ours,
        "rival": rival,
        "metric": metric,
        "standing": standing,
        "judge": worst.judge,
        "compared": worst.compared,
        "difference": worst.difference,
        "confidence": worst.entry["confidence"],
        "cautions": worst.entry["cautions"],
        "shared_by": sum(each == standing for each in standings.values()),
        "num_judges": len(standings),
        "standings": standings,
    }


def _relative(difference: Interval, higher_is_better: bool) -> float:
    """The middle of the interval in half widths, as judges differ in their scales.

    The difference itself is biased where it is one of Frechet distances; the middle is not.
    """
    middle = (difference["low"] + difference["high"]) / 2
    value = middle if higher_is_better else -middle
    half = (difference["high"] - difference["low"]) / 2
    if half > 0:
        return value / half
    return 0.0 if value == 0 else float("inf") * value
