"""The columns of a table of scores, the best guided arm, and tables for the terminal."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rich.table import Table

from mm_cca.config.metrics import LEAD, METRICS
from mm_cca.eval.report.wording import prompts_in_words
from mm_cca.eval.summary_types import (
    Interval,
    JudgedArm,
    Scores,
    SeedsEntry,
    Summary,
    SweepSummary,
    judged,
    judged_scores,
)

TERMINAL_COLUMNS = 5
"""So many scores fit into 80 characters."""
ATTRIBUTE = "attribute_"


class ScoreColumn(NamedTuple):
    """How a score is shown."""

    heading: str
    hint: str
    digits: int

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


def score_columns(arms: Iterable[JudgedArm]) -> dict[str, ScoreColumn]:
    """A column for every score that some arm has, in the order of the registry.

    Attributes follow, and scores that the registry lacks (of another version of mm_cca).
    """
    present: Scores = {}
    for arm in arms:
        for scores in arm["scores"].values():
            present |= scores
    columns = {
        name: ScoreColumn(metric.heading, metric.direction, metric.digits)
        for name, metric in METRICS.items()
        if name in present
    }
    for name, score in present.items():
        if name.startswith(ATTRIBUTE):
            kind = name.removeprefix(ATTRIBUTE)
            hint = (
                f"the own caption fits better than with another {kind}; "
                f"chance {score['chance']:.2f}"
            )
            columns[name] = ScoreColumn(f"{kind.replace('_', ' ')} right", hint, 3)
        elif name not in METRICS:
            columns[name] = ScoreColumn(name.replace("_", " "), "", 3)
    return columns


def best_guided(arms: Iterable[JudgedArm], split: str, source: str = "base") -> str | None:
    """Name of the guided arm of ``source`` with the highest alignment on a split, if any."""
    guided = [arm for arm in arms if arm["source"] == source and arm["guidance_scale"] != 1.0]
    if not guided:
        return None
    return max(guided, key=lambda arm: arm["scores"][split][LEAD]["value"])["name"]


def score_table(
    summary: Summary | SweepSummary,
    judge: str,
    split: str,
    *,
    bold: str | None,
    best: str | None,
) -> Table:
    """The arms of a split by one judge, one of them in bold, the best guided one with a star."""
    count = summary["protocol"]["num_prompts"][split]
    table = Table(title=f"{count} {prompts_in_words(split)}, scored by {judge}")
    table.caption = "* best CFG" + (
        "; in brackets: real images, and their reconstructions by the tokenizer"
        if summary["floors"]
        else ""
    )
    table.add_column("arm", no_wrap=True)
    arms = judged(summary["arms"], judge)
    columns = _terminal_columns(score_columns(arms))
    for name in columns:
        table.add_column(METRICS[name].label, justify="right")
    table.add_column("forwards", justify="right")
    for arm in arms:
        table.add_row(
            arm["name"] + (" *" if arm["name"] == best else ""),
            *_cells(arm["scores"][split], columns),
            str(arm["forwards_per_image"]),
            style="bold" if arm["name"] == bold else None,
        )
    for name, floor in summary["floors"].items():
        cells = _cells(judged_scores(floor, judge)[split], columns)
        table.add_row(f"({name})", *cells, "-", style="dim")
    return table


def _terminal_columns(columns: Mapping[str, ScoreColumn]) -> dict[str, ScoreColumn]:
    by_priority = sorted(
        (metric.terminal_priority, name)
        for name, metric in METRICS.items()
        if metric.terminal_priority is not None and name in columns
    )
    chosen = [name for _, name in by_priority[:TERMINAL_COLUMNS]]
    return {name: column for name, column in columns.items() if name in chosen}


def _cells(scores: Scores, columns: Mapping[str, ScoreColumn]) -> list[str]:
    return [column.text(scores[name]["value"]) for name, column in columns.items()]


def seed_table(summary: SweepSummary, judge: str, split: str) -> Table:
    """Means over seeds by one judge, with the lowest and the highest seed in brackets."""
    title = f"{prompts_in_words(split)}, scored by {judge}: mean over seeds (lowest to highest)"
    table = Table(title=title)
    table.add_column("point", no_wrap=True)
    columns = score_columns(judged(summary["arms"], judge))
    for column in columns.values():
        table.add_column(column.heading, justify="right")
    for point in summary["over_seeds"][judge]:
        table.add_row(f"{point['name']} x{len(point['seeds'])}", *_spreads(point, split, columns))
    return table


def _spreads(point: SeedsEntry, split: str, columns: Mapping[str, ScoreColumn]) -> list[str]:
    scores = point["scores"][split]
    return [
        _spread(scores[name], column) if name in scores else "-" for name, column in columns.items()
    ]


def _spread(score: Interval, column: ScoreColumn) -> str:
    value, low, high = map(column.text, (score["value"], score["low"], score["high"]))
    return f"{value} ({low} to {high})"
