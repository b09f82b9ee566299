"""A run's scores in the terminal: all tables, the warnings, the comparisons, the verdict."""

from pathlib import Path

from rich.console import Console

from mm_cca.eval.report.first_screen import sentence_lines
from mm_cca.eval.report.panel_text import headline_lines, judge_lines, warning_lines
from mm_cca.eval.report.tables import best_guided, score_table
from mm_cca.eval.summary_types import Summary, judged


def print_table(summary: Summary, report: Path) -> None:
    """Every judge's table, the warnings, the comparisons, and last the verdict in short."""
    console = Console()
    for judge in summary["judges"]:
        arms = judged(summary["arms"], judge["name"])
        for split in summary["protocol"]["num_prompts"]:
            best = best_guided(arms, split)
            console.print(score_table(summary, judge["name"], split, bold="cca", best=best))
    for line in [*judge_lines(summary["judges"]), *warning_lines(summary["warnings"])]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    for line in headline_lines(summary):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print()
    for line in sentence_lines(summary):
        console.print(line, style="bold", soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {report}", soft_wrap=True)
