"""report.json, report.html (one file that needs no network) and the table in the terminal."""

import json
from dataclasses import asdict
from typing import TypedDict

from accelerate import PartialState

from mm_cca.config.load import dump
from mm_cca.config.metrics import METRICS
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.eval.per_prompt import PER_PROMPT, read_per_prompt
from mm_cca.eval.report.charts import cost_plot, trade_plot
from mm_cca.eval.report.curves import count_steps, health, panels, read_signals, span_of
from mm_cca.eval.report.gallery import Grid, Problem, grid_of_split
from mm_cca.eval.report.pages import templates
from mm_cca.eval.report.tables import best_guided, print_table, score_columns
from mm_cca.eval.report.thumbnails import Budget
from mm_cca.eval.report.wording import fid_sentence, lead_outcome, verdict_sentence
from mm_cca.eval.summary_types import (
    ArmEntry,
    SplitNumbers,
    Summary,
    VerdictEntry,
    differences_of,
)
from mm_cca.runs.files import write_json, write_text
from mm_cca.runs.folder import RunFolder, recipe_of_training

MAX_PROBLEMS = 50
"""Images that can't be shown are all counted, and so many are listed."""


class ComparedMetric(TypedDict):
    """A column of the table of differences."""

    name: str
    heading: str
    digits: int


class VerdictText(TypedDict):
    """``level``, ``ahead`` or ``behind``, and the sentence."""

    outcome: str
    sentence: str


class TrainingCurves(TypedDict):
    """SVG by signal, a sentence on health, and over how many steps thick lines average."""

    panels: dict[str, str]
    health: str | None
    span: int


def write_report(recipe: Recipe, run: RunFolder) -> None:
    """Write the report and print the arm table.

    Raises:
        UserError: nothing has been scored yet.
    """
    if not PartialState().is_main_process:
        return
    path = run.eval / "summary.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: run `mm-cca eval RECIPE` first.")
    summary: Summary = json.loads(path.read_text())
    numbers = read_per_prompt(run.eval / PER_PROMPT)
    write_json(run.root / "report.json", summary)
    write_text(run.report, render(recipe, run, summary, numbers))
    print_table(summary, run.report)


def render(
    recipe: Recipe, run: RunFolder, summary: Summary, numbers: dict[str, SplitNumbers]
) -> str:
    """The HTML of a summary and of its numbers per prompt."""
    arms, splits = summary["arms"], list(summary["protocol"]["num_prompts"])
    columns = score_columns(arms)
    grids, problems = _grids(recipe, run, arms, numbers)
    training = recipe_of_training(recipe)
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            name=run.root.resolve().name,
            summary=summary,
            scores=columns,
            definitions={METRICS[n].label: METRICS[n].definition for n in columns if n in METRICS},
            compared=_compared(summary["verdicts"]),
            splits=splits,
            sources=list(dict.fromkeys(arm["source"] for arm in arms)),
            best={split: best_guided(arms, split) for split in splits},
            verdicts={split: _verdicts(summary, split) for split in splits},
            dialled=bool(recipe.sample.dial),
            cost_plots={split: cost_plot(arms, split) for split in splits},
            trade_plots={split: trade_plot(arms, split) for split in splits},
            grids=grids,
            rows_per_page=recipe.eval.grid_prompts,
            problems=problems[:MAX_PROBLEMS],
            num_problems=len(problems),
            training=_training(run, arms),
            recipe_yaml=dump(recipe),
            environment=json.loads((run.root / "environment.json").read_text()),
            loss=asdict(training.loss),
            train=asdict(training.train),
            trained=recipe.run.trained,
            external=recipe.eval.reference,
        )
    )


def _grids(
    recipe: Recipe, run: RunFolder, arms: list[ArmEntry], numbers: dict[str, SplitNumbers]
) -> tuple[list[Grid], list[Problem]]:
    """Each split gets an equal part of the size limit."""
    grids, problems = [], []
    for split, of_split in numbers.items():
        budget = Budget(recipe.eval.report_megabytes / len(numbers))
        grid, not_shown = grid_of_split(recipe, run, arms, of_split, split, budget)
        grids.append(grid)
        problems += not_shown
    return grids, problems


def _compared(verdicts: list[VerdictEntry]) -> list[ComparedMetric]:
    """The metrics of the table of differences."""
    present = differences_of(verdicts[0]) if verdicts else {}
    return [
        {
            "name": name,
            "heading": metric.heading
            + ("" if metric.higher_is_better else " (negative: CCA is closer)"),
            "digits": metric.digits,
        }
        for name, metric in METRICS.items()
        if name in present
    ]


def _verdicts(summary: Summary, split: str) -> list[VerdictText]:
    """Outcomes and sentences; CCA against the best guided base comes first."""
    passes = {arm["name"]: arm["forwards_per_image"] for arm in summary["arms"]}
    scores = {arm["name"]: arm["scores"][split] for arm in summary["arms"]}
    of_split = [verdict for verdict in summary["verdicts"] if verdict["split"] == split]
    first = ("cca", best_guided(summary["arms"], split))
    of_split.sort(key=lambda verdict: (verdict["arm"], verdict["against"]) != first)
    return [
        {
            "outcome": lead_outcome(verdict),
            "sentence": verdict_sentence(verdict, passes)
            + fid_sentence(scores[verdict["arm"]], scores[verdict["against"]]),
        }
        for verdict in of_split
    ]


def _training(run: RunFolder, arms: list[ArmEntry]) -> TrainingCurves:
    """Curves of both trainings; gaps are per code, as images differ in their number of codes."""
    plain = next(arm for arm in arms if arm["guidance_scale"] == 1.0)
    folders = {"cca": run.train, "control": run.control}
    signals = {
        source: read_signals(folder / "metrics.jsonl", plain["forwards_per_image"])
        for source, folder in folders.items()
        if any(arm["source"] == source for arm in arms)
    }
    return {
        "panels": panels(signals),
        "health": health(signals["cca"]) if "cca" in signals else None,
        "span": span_of(count_steps(list(signals.values()))),
    }
