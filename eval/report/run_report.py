"""report.json, report.html (one file that needs no network) and the table in the terminal."""

from dataclasses import asdict
from typing import Any, TypedDict

from accelerate import PartialState

from mm_cca.config.load import dump
from mm_cca.config.metrics import LEAD, METRICS, reconstruction_name
from mm_cca.config.read_files import json_of
from mm_cca.config.schema import Recipe
from mm_cca.eval.per_prompt import PER_PROMPT, read_per_prompt
from mm_cca.eval.report.charts import bars_in_words, cost_plot, trade_plot
from mm_cca.eval.report.curves import (
    PANELS,
    BucketNumbers,
    count_steps,
    health,
    panels,
    read_buckets,
    read_signals,
    span_of,
)
from mm_cca.eval.report.first_screen import judge_sentences, picture_strip
from mm_cca.eval.report.forest import forest
from mm_cca.eval.report.gallery import Grid, Problem, grid_of_split
from mm_cca.eval.report.pages import templates
from mm_cca.eval.report.panel_text import (
    ORDER,
    headline_texts,
    name_of,
    no_headline,
    standing_in_words,
)
from mm_cca.eval.report.preview_strip import PreviewStrip, strip_of
from mm_cca.eval.report.static_grid import (
    THUMB_SHOWN,
    ZOOM_SHOWN,
    first_file,
    first_page,
    side_shown,
)
from mm_cca.eval.report.tables import ScoreColumn, best_guided, score_columns
from mm_cca.eval.report.terminal import print_table
from mm_cca.eval.report.thumbnails import Budget
from mm_cca.eval.report.wording import VerdictTexts, verdict_texts
from mm_cca.eval.summary_files import SUMMARY, read_summary
from mm_cca.eval.summary_types import (
    JudgedArm,
    JudgeEntry,
    SplitNumbers,
    SplitScores,
    Summary,
    VerdictEntry,
    differences_of,
    judged,
    judged_scores,
    leading_judge,
)
from mm_cca.runs.files import write_json, write_text
from mm_cca.runs.folder import RunFolder, recipe_of_training, terms_of_training
from mm_cca.runs.stage import environments_of

MAX_PROBLEMS = 50
"""Images that can't be shown are all counted, and so many are listed."""


STRIP_SHOWN = 80
"""Side of an image in the strip of the first screen, in CSS pixels."""
FIRST_COLUMNS = (LEAD, "frechet_distance", reconstruction_name("frechet_distance"))
"""Of the page's tables of scores: what a phone shows without scrolling."""


class ComparedMetric(TypedDict):
    """A column of the table of differences."""

    name: str
    heading: str
    digits: int


class JudgeView(TypedDict):
    """One judge in the page; dictionaries are by split, ``floors`` by floor and split."""

    arms: list[JudgedArm]
    floors: dict[str, SplitScores]
    columns: dict[str, ScoreColumn]
    best: dict[str, str | None]
    differences: dict[str, list[VerdictEntry]]
    compared: list[ComparedMetric]
    sentences: dict[str, VerdictTexts]
    standing: str


class TrainingCurves(TypedDict):
    """SVG by signal, a sentence on health, over how many steps thick lines average, previews, and
    the numbers of each image size."""

    panels: dict[str, str]
    health: str | None
    span: int
    strip: PreviewStrip | None
    buckets: dict[str, list[BucketNumbers]]


def write_report(recipe: Recipe, run: RunFolder) -> None:
    """Write the report and print the arm table.

    Raises:
        UserError: nothing has been scored yet, or a file of the run is damaged.
    """
    if not PartialState().is_main_process:
        return
    summary = read_summary(run.eval / SUMMARY)
    numbers = read_per_prompt(run.eval / PER_PROMPT)
    write_json(run.root / "report.json", summary)
    write_text(run.report, render(recipe, run, summary, numbers))
    print_table(summary, run.report)


def render(
    recipe: Recipe, run: RunFolder, summary: Summary, numbers: dict[str, SplitNumbers]
) -> str:
    """The HTML of a summary and of its numbers per prompt."""
    splits = list(summary["protocol"]["num_prompts"])
    leading = leading_judge(summary["judges"])
    arms = judged(summary["arms"], leading)
    columns = score_columns(arms)
    grids, problems = _grids(recipe, run, arms, numbers, leading)
    training, ours = recipe_of_training(recipe), name_of(summary)
    strip = picture_strip(grids)
    first_pages = [first_page(grid, recipe.eval.grid_prompts) for grid in grids]
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            name=run.root.resolve().name,
            summary=summary,
            leading=leading,
            views={judge["name"]: _view(summary, judge, splits) for judge in summary["judges"]},
            examined_order=ORDER,
            sentences=judge_sentences(summary),
            forests={split: forest(summary, split, ours) for split in splits},
            strip=strip,
            first_pages=first_pages,
            outside={
                "strip": first_file(source for row in strip.rows for source in row.sources),
                "grid": first_file(
                    cell.source for page in first_pages for row in page.rows for cell in row.cells
                ),
            },
            strip_side=side_shown(recipe.data.image_size, STRIP_SHOWN, STRIP_SHOWN),
            grid_side=side_shown(recipe.data.image_size, ZOOM_SHOWN, THUMB_SHOWN),
            headlines={split: headline_texts(summary, split) for split in splits},
            no_headline=no_headline(summary),
            definitions={METRICS[n].label: METRICS[n].definition for n in columns if n in METRICS},
            splits=splits,
            one_sampler=len({arm.get("engine") for arm in arms}) == 1,
            sources=list(dict.fromkeys(arm["source"] for arm in arms)),
            dialled=bool(recipe.sample.dial),
            cost_plots={split: cost_plot(arms, split, ours) for split in splits},
            bars={split: bars_in_words(arms, split) for split in splits},
            trade_plots={split: trade_plot(arms, split, ours) for split in splits},
            grids=grids,
            rows_per_page=recipe.eval.grid_prompts,
            problems=problems[:MAX_PROBLEMS],
            num_problems=len(problems),
            training=_training(run, arms),
            signal_names=PANELS,
            recipe_yaml=dump(recipe),
            environment=_environment(run),
            loss=asdict(training.loss),
            train=asdict(training.train),
            trained=recipe.run.trained,
            ours=ours,
            finetuned=terms_of_training(recipe).is_finetuning,
            prompt_template=recipe.sample.prompt_template,
            external=recipe.eval.real_reference,
        )
    )


def _view(summary: Summary, judge: JudgeEntry, splits: list[str]) -> JudgeView:
    """All that the page shows of one judge."""
    name = judge["name"]
    arms, verdicts = judged(summary["arms"], name), summary["verdicts"][name]
    return {
        "arms": arms,
        "floors": {kind: judged_scores(floor, name) for kind, floor in summary["floors"].items()},
        "columns": _in_page_order(score_columns(arms)),
        "best": {split: best_guided(arms, split) for split in splits},
        "differences": {split: [v for v in verdicts if v["split"] == split] for split in splits},
        "compared": _compared(verdicts, name_of(summary)),
        "sentences": {
            split: _verdicts(arms, verdicts if judge["may_judge"] else [], split, name_of(summary))
            for split in splits
        },
        "standing": standing_in_words(judge),
    }


def _in_page_order(columns: dict[str, ScoreColumn]) -> dict[str, ScoreColumn]:
    first = {name: columns[name] for name in FIRST_COLUMNS if name in columns}
    return first | columns


def _grids(
    recipe: Recipe,
    run: RunFolder,
    arms: list[JudgedArm],
    numbers: dict[str, SplitNumbers],
    judge: str,
) -> tuple[list[Grid], list[Problem]]:
    """Each split gets an equal part of the size limit."""
    grids, problems = [], []
    for split, of_split in numbers.items():
        budget = Budget(recipe.eval.report_megabytes / len(numbers))
        grid, not_shown = grid_of_split(recipe, run, arms, of_split, judge, split, budget)
        grids.append(grid)
        problems += not_shown
    return grids, problems


def _compared(verdicts: list[VerdictEntry], ours: str) -> list[ComparedMetric]:
    """The metrics of the table of differences."""
    present = differences_of(verdicts[0]) if verdicts else {}
    return [
        {
            "name": name,
            "heading": metric.heading
            + ("" if metric.higher_is_better else f" (negative: {ours} is closer)"),
            "digits": metric.digits,
        }
        for name, metric in METRICS.items()
        if name in present
    ]


def _verdicts(
    arms: list[JudgedArm], verdicts: list[VerdictEntry], split: str, ours: str
) -> VerdictTexts:
    """Outcomes, sentences and cautions; the one against the guided base comes first."""
    passes = {arm["name"]: arm["forwards_per_image"] for arm in arms}
    scores = {arm["name"]: arm["scores"][split] for arm in arms}
    of_split = [verdict for verdict in verdicts if verdict["split"] == split]
    return verdict_texts(of_split, passes, scores, ours=ours)


def _environment(run: RunFolder) -> dict[str, Any]:
    """Of the training; of the last stage where the training did not record it."""
    of_training = environments_of(run.train)
    if of_training:
        return of_training[-1]
    advice = "Delete it, and run a stage of this run again: it writes the file."
    return json_of(run.root / "environment.json", dict[str, Any], advice)


def _training(run: RunFolder, arms: list[JudgedArm]) -> TrainingCurves:
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
        "strip": strip_of(run.train) if "cca" in signals else None,
        "buckets": {
            source: found
            for source in signals
            if (found := read_buckets(folders[source] / "metrics.jsonl"))
        },
    }
