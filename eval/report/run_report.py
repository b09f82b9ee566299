"""report.json, report.html (one file that needs no network) and the table in the terminal."""

import json
from dataclasses import asdict
from typing import Any

from accelerate import PartialState

from mm_cca.config.load import dump
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.eval.per_prompt import PER_PROMPT, read_per_prompt
from mm_cca.eval.report.charts import cost_plot, trade_plot
from mm_cca.eval.report.curves import count_steps, health, panels, read_signals, span_of
from mm_cca.eval.report.gallery import Problem, grid_of_split
from mm_cca.eval.report.pages import templates
from mm_cca.eval.report.tables import best_guided, print_table, scores_of
from mm_cca.eval.report.thumbnails import Budget
from mm_cca.eval.report.wording import LEAD, fid_sentence, standing, verdict_sentence
from mm_cca.runs.files import write_json, write_text
from mm_cca.runs.folder import RunFolder, recipe_of_training

MAX_PROBLEMS = 50
"""Pictures that can't be shown are all counted; so many are listed."""


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
    summary = json.loads(path.read_text())
    numbers = read_per_prompt(run.eval / PER_PROMPT)
    write_json(run.root / "report.json", summary)
    write_text(run.report, render(recipe, run, summary, numbers))
    print_table(summary, run.report)


def render(recipe: Recipe, run: RunFolder, summary: dict[str, Any], numbers: dict[str, Any]) -> str:
    """The HTML of a summary and of its numbers per prompt."""
    splits = list(summary["protocol"]["num_prompts"])
    grids, problems = _grids(recipe, run, summary, numbers)
    training = recipe_of_training(recipe)
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            name=run.root.resolve().name,
            summary=summary,
            scores=scores_of(summary),
            splits=splits,
            sources=list(dict.fromkeys(arm["source"] for arm in summary["arms"])),
            best={split: best_guided(summary, split) for split in splits},
            verdicts={split: _verdicts(summary, split) for split in splits},
            dialled=bool(recipe.sample.dial),
            cost_plots={split: cost_plot(summary, split) for split in splits},
            trade_plots={split: trade_plot(summary, split) for split in splits},
            grids=grids,
            rows_per_page=recipe.eval.grid_prompts,
            problems=problems[:MAX_PROBLEMS],
            num_problems=len(problems),
            training=_training(run, summary),
            recipe_yaml=dump(recipe),
            environment=json.loads((run.root / "environment.json").read_text()),
            loss=asdict(training.loss),
            train=asdict(training.train),
            trained=recipe.run.trained,
            external=recipe.eval.reference,
        )
    )


def _grids(
    recipe: Recipe, run: RunFolder, summary: dict[str, Any], numbers: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Each split gets an equal part of the size limit."""
    grids, problems = [], []
    for split, mine in numbers.items():
        budget = Budget(recipe.eval.report_megabytes / len(numbers))
        grid, wrong = grid_of_split(recipe, run, summary, mine, split, budget)
        grids.append(grid)
        problems += wrong
    return grids, problems


def _verdicts(summary: dict[str, Any], split: str) -> list[dict[str, str]]:
    """Sentences, the one that the run was made for first."""
    passes = {arm["name"]: arm["forwards_per_image"] for arm in summary["arms"]}
    scores = {arm["name"]: arm["scores"][split] for arm in summary["arms"]}
    mine = [v for v in summary["verdicts"] if v["split"] == split]
    first = ("cca", best_guided(summary, split))
    mine.sort(key=lambda v: (v["arm"], v["against"]) != first)
    return [
        {
            "standing": standing(v[LEAD]),
            "sentence": verdict_sentence(v, passes)
            + fid_sentence(scores[v["arm"]], scores[v["against"]]),
        }
        for v in mine
    ]


def _training(run: RunFolder, summary: dict[str, Any]) -> dict[str, Any]:
    """Curves of both trainings; gaps per code, as the code's number is what lengths differ in."""
    plain = next(arm for arm in summary["arms"] if arm["guidance_scale"] == 1.0)
    folders = {"cca": run.train, "control": run.control}
    signals = {
        source: read_signals(folder / "metrics.jsonl", plain["forwards_per_image"])
        for source, folder in folders.items()
        if any(arm["source"] == source for arm in summary["arms"])
    }
    return {
        "panels": panels(signals),
        "health": health(signals["cca"]) if "cca" in signals else None,
        "span": span_of(count_steps(list(signals.values()))),
    }
