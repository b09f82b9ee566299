"""sweep.json, sweep.html and the sweep's tables in the terminal: all points next to the base."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mm_cca.config.load import dump
from mm_cca.config.metrics import LEAD, METRICS, SWEEP_VERDICTS
from mm_cca.config.schema import Recipe
from mm_cca.config.sweep_grid import Sweep
from mm_cca.eval.per_prompt import PER_PROMPT, read_per_prompt
from mm_cca.eval.report.charts import axis_label, guidance_lines, interval_of, tooltip_of
from mm_cca.eval.report.curves import read_steps
from mm_cca.eval.report.pages import templates
from mm_cca.eval.report.panel_text import ORDER, judge_lines, warning_lines
from mm_cca.eval.report.scatter import PlotPoint, scatter
from mm_cca.eval.report.sweep_pictures import PictureTable, picture_table
from mm_cca.eval.report.sweep_seeds import name_without_seed, over_seeds, pooled_arms
from mm_cca.eval.report.tables import best_guided, score_columns, score_table, seed_table
from mm_cca.eval.report.thumbnails import EXACT_SIDE, Budget
from mm_cca.eval.report.value_plot import value_plots
from mm_cca.eval.report.wording import BADGES, prompts_in_words
from mm_cca.eval.summary_files import SUMMARY, read_summary
from mm_cca.eval.summary_types import (
    ArmEntry,
    BestArms,
    JudgedArm,
    Summary,
    SweepSummary,
    SweepVerdict,
    judged,
    leading_judge,
)
from mm_cca.runs.files import write_json, write_text
from mm_cca.runs.folder import RunFolder

LAST_STEPS = 20


def write_sweep(sweep: Sweep, diverged: dict[str, str], verdicts: list[SweepVerdict]) -> None:
    """Write ``sweep.json`` and ``sweep.html`` and print the table.

    Args:
        sweep: every point but the diverged ones is scored.
        diverged: name -> reason.
        verdicts: of the points against the best guided base.
    """
    base = _summary(sweep.base)
    arms = list(base["arms"])
    warnings = dict.fromkeys(base["warnings"])
    for name, recipe in sweep.points.items():
        if name not in diverged:
            point = _summary(recipe)
            arms += _arms_of_point(name, recipe, sweep, point)
            warnings |= dict.fromkeys(point["warnings"])
    views = {judge["name"]: judged(arms, judge["name"]) for judge in base["judges"]}
    summary: SweepSummary = {
        "judges": base["judges"],
        "arms": arms,
        "over_seeds": {judge: over_seeds(view) for judge, view in views.items()},
        "diverged": diverged,
        "floors": base["floors"],
        "warnings": list(warnings),
        "protocol": base["protocol"],
        "best": {
            judge: {split: _best(view, split) for split in base["protocol"]["num_prompts"]}
            for judge, view in views.items()
        },
        "verdicts": verdicts,
    }
    write_json(sweep.root / "sweep.json", summary)
    write_text(sweep.root / "sweep.html", _render(sweep, summary))
    _print(summary, sweep.root / "sweep.html")


def _arms_of_point(name: str, recipe: Recipe, sweep: Sweep, point: Summary) -> list[ArmEntry]:
    signals = _last_signals(RunFolder.of(recipe).train / "metrics.jsonl")
    arms = []
    for arm in point["arms"]:
        arm["name"] = arm["name"].replace("cca", name, 1)
        arm["values"] = sweep.values[name].values
        arm["signals"] = signals
        arms.append(arm)
    return arms


def _summary(recipe: Recipe) -> Summary:
    return read_summary(RunFolder.of(recipe).eval / SUMMARY)


def _last_signals(path: Path) -> dict[str, float]:
    """Means of the training signals over the last steps."""
    lines = read_steps(path)[-LAST_STEPS:]
    means = {}
    for name in ("positive_gap", "negative_gap", "accuracy", "kl"):
        values = [value for line in lines if (value := line.get(name)) is not None]
        if values:
            means[name] = sum(values) / len(values)
    return means


def _best(arms: list[JudgedArm], split: str) -> BestArms:
    """The point without guidance and the guided arms with the highest alignment."""
    points = [arm for arm in arms if "values" in arm and arm["guidance_scale"] == 1.0]
    best = max(points, key=lambda arm: arm["scores"][split][LEAD]["value"], default=None)
    return {
        "point": None if best is None else best["name"],
        "base": best_guided(arms, split, "base"),
        "control": best_guided(arms, split, "control"),
    }


def _render(sweep: Sweep, summary: SweepSummary) -> str:
    splits = list(summary["protocol"]["num_prompts"])
    leading = leading_judge(summary["judges"])
    views = {judge["name"]: judged(summary["arms"], judge["name"]) for judge in summary["judges"]}
    arms, verdicts = pooled_arms(views[leading]), summary["verdicts"]
    return (
        templates()
        .get_template("sweep.html.j2")
        .render(
            summary=summary,
            leading=leading,
            views=views,
            examined_order=ORDER,
            by_point=by_point(verdicts),
            columns={judge: score_columns(view) for judge, view in views.items()},
            splits=splits,
            plots={
                split: [
                    *value_plots(arms, split),
                    _plot(arms, split, LEAD, _on_axis("fidelity")),
                    _plot(arms, split, _on_axis("diversity"), _on_axis("fidelity")),
                ]
                for split in splits
            },
            pictures=_pictures(sweep, summary, leading),
            exact=max(sweep.base.data.image_size) <= EXACT_SIDE,
            metrics=METRICS,
            unjudged=unjudged(verdicts),
            judged_metrics=[name for name in SWEEP_VERDICTS if name in _metrics_of(verdicts)],
            confidences=sorted({f"{100 * v['confidence']:.3g}" for v in verdicts}),
            difference=_difference,
            badges=BADGES,
            recipe_yaml=dump(sweep.base),
        )
    )


def _pictures(sweep: Sweep, summary: SweepSummary, judge: str) -> dict[str, list[PictureTable]]:
    """By split: of the base, its best guided arm, and every point's first seed; if there are more
    seeds, a second table of those."""
    base = RunFolder.of(sweep.base)
    numbers = read_per_prompt(base.eval / PER_PROMPT)
    budget = Budget(sweep.base.eval.report_megabytes)
    tables = {}
    for split, of_split in numbers.items():
        best = summary["best"][judge][split]["base"]
        of_base = [name for name in ("base", best) if name in of_split["judges"][judge]]
        folders = {name: base.samples / name for name in of_base if name is not None}
        others: dict[str, Path] = {}
        for name, recipe in sweep.points.items():
            if name not in summary["diverged"]:
                shown = name_without_seed(name, sweep.values[name].values)
                samples = RunFolder.of(recipe).samples / "cca"
                if folders.setdefault(shown, samples) != samples:
                    others[name] = samples
        each = [folders, others] if others else [folders]
        tables[split] = [picture_table(columns, of_split, budget) for columns in each]
    return tables


def by_point(
    verdicts: Sequence[SweepVerdict],
) -> dict[tuple[str, str], dict[str, list[SweepVerdict]]]:
    """Judge and split -> point -> its verdicts, of which alignment's comes first."""
    found: dict[tuple[str, str], dict[str, list[SweepVerdict]]] = {}
    for verdict in verdicts:
        points = found.setdefault((verdict["judge"], verdict["split"]), {})
        points.setdefault(verdict["point"], []).append(verdict)
    return found


def _difference(verdict: SweepVerdict) -> str:
    """With its interval, for a cell of a table."""
    digits = METRICS[verdict["metric"]].digits
    value, low, high = (
        f"{verdict['difference'][key]:+z.{digits}f}" for key in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def _metrics_of(verdicts: Sequence[SweepVerdict]) -> set[str]:
    return {verdict["metric"] for verdict in verdicts}


def unjudged(verdicts: Sequence[SweepVerdict]) -> list[str]:
    """Labels of the metrics that have no verdict on any point, though others have one."""
    present = _metrics_of(verdicts)
    return (
        [METRICS[name].label for name in SWEEP_VERDICTS if name not in present] if present else []
    )


def _on_axis(axis: str) -> str:
    """The metric of a sweep's plots that shows fidelity or diversity."""
    return next(n for n, metric in METRICS.items() if metric.on_sweep_page and metric.axis == axis)


def _plot(arms: list[JudgedArm], split: str, x: str, y: str) -> str:
    points = []
    for arm in arms:
        scores = arm["scores"][split]
        is_point = "values" in arm
        points.append(
            PlotPoint(
                source=arm["source"],
                series="points of the sweep"
                if is_point
                else f"{arm['source']} (number: CFG scale)",
                label=_label(arm),
                x=scores[x]["value"],
                y=scores[y]["value"],
                tooltip=tooltip_of(arms, arm, split),
                x_interval=interval_of(arm, split, x),
                y_interval=interval_of(arm, split, y),
            )
        )
    return scatter(
        points,
        axis_label(x),
        axis_label(y),
        about=prompts_in_words(split),
        lines=guidance_lines(arms),
    )


def _label(arm: JudgedArm) -> str:
    if "values" in arm or arm["guidance_scale"] == 1.0:
        return arm["name"]
    return f"{arm['guidance_scale']:g}"


def _print(summary: SweepSummary, path: Path) -> None:
    console = Console()
    for judge, by_split in summary["best"].items():
        for split, best in by_split.items():
            table = score_table(summary, judge, split, bold=best["point"], best=best["base"])
            console.print(table)
            if summary["over_seeds"][judge]:
                console.print(seed_table(summary, judge, split))
    for line in [*judge_lines(summary["judges"]), *warning_lines(summary["warnings"])]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    for name, reason in summary["diverged"].items():
        console.print(f"{name} diverged: {reason.splitlines()[0]}", soft_wrap=True)
    console.print(f"sweep: {path}", soft_wrap=True)
