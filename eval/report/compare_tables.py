"""Two runs compared in the terminal: tables that fit into 80 columns."""

import math

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mm_cca.config.metrics import METRICS
from mm_cca.eval.comparison_types import RunComparison, ScoreDifference, SplitComparison
from mm_cca.eval.report.difference_text import (
    difference_text,
    same_pairs,
    score_text,
    shown_values,
    without_interval,
)
from mm_cca.eval.report.tables import TERMINAL_COLUMNS
from mm_cca.eval.report.wording import prompts_in_words


def print_comparison(found: RunComparison) -> None:
    """Split by split and judge by judge."""
    console = Console()
    for letter, name in zip("AB", found.names, strict=True):
        console.print(f"{letter}: {name}", soft_wrap=True, markup=False, highlight=False)
    for each in found.differing:
        a, b = shown_values(each)
        console.print(
            f"differs: {each.field} is {a} in A and {b} in B: {each.consequence}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    for split in found.splits:
        for judge in dict.fromkeys(each.judge for each in split.judged):
            console.print()
            console.print(_table(split, judge))
        if same := same_pairs(split):
            told = ", ".join(pair.name for pair in same)
            console.print(f"the same in A and B: {told}", soft_wrap=True, markup=False)
    console.print(
        "B - A: paired by prompt, with 95 % intervals. The page has all scores.", highlight=False
    )
    if told := without_interval(found):
        console.print(told, soft_wrap=True, markup=False, highlight=False)


def _table(split: SplitComparison, judge: str) -> Table:
    count = len(split.prompts)
    title = f"{count} {prompts_in_words(split.split)} of both, scored by {judge}"
    table = Table(title=title, box=SIMPLE_HEAD)
    same = same_pairs(split)
    table.add_column("arm and score", no_wrap=True)
    for heading in ("A", "B", "B - A"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("better", no_wrap=True)
    for each in split.judged:
        if each.judge != judge or each.pair in same:
            continue
        shown = _for_terminal(each.scores)
        table.add_row(escape(each.pair.name), style="bold")
        for number, score in enumerate(shown):
            table.add_row(
                f"  {METRICS[score.metric].label}",
                score_text(score, 0),
                score_text(score, 1),
                escape(difference_text(score)),
                score.better or "",
                end_section=number == len(shown) - 1,
            )
    return table


def _for_terminal(scores: list[ScoreDifference]) -> list[ScoreDifference]:
    """The few that come first; the page has all."""

    def priority(score: ScoreDifference) -> float:
        place = METRICS[score.metric].terminal_priority
        return math.inf if place is None else place

    chosen = sorted(scores, key=priority)[:TERMINAL_COLUMNS]
    return [score for score in scores if score in chosen]
