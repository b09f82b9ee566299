"""All points of a sweep beside the base's guided sweep: one table, one plot of each kind."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from mm_cca.config.load import dump
from mm_cca.config.schema import Recipe
from mm_cca.config.sweep_grid import Sweep
from mm_cca.eval.charts import sweeps, told_of
from mm_cca.eval.page import templates
from mm_cca.eval.plots import Point, scatter
from mm_cca.eval.seeds import over_seeds
from mm_cca.eval.tables import best_guided, score_table, scores_of, seed_table
from mm_cca.eval.wording import prompts_in_words
from mm_cca.runs.files import write_json, write_text
from mm_cca.runs.folder import RunFolder

LAST_STEPS = 20


def write_sweep(sweep: Sweep, diverged: dict[str, str]) -> None:
    """Write ``sweep.json`` and ``sweep.html`` and print the table.

    Args:
        sweep: every point but the diverged ones is scored.
        diverged: name -> reason.
    """
    base = _summary(sweep.base)
    arms = list(base["arms"])
    for name, recipe in sweep.points.items():
        if name in diverged:
            continue
        signals = _last_signals(RunFolder.of(recipe).train / "metrics.jsonl")
        for arm in _summary(recipe)["arms"]:
            renamed = arm["name"].replace("cca", name, 1)
            values = sweep.values[name].values
            arms.append(arm | {"name": renamed, "values": values, "signals": signals})
    summary = {
        "arms": arms,
        "over_seeds": over_seeds(arms),
        "diverged": diverged,
        "floors": base["floors"],
        "protocol": base["protocol"],
        "best": {split: _best(arms, split) for split in base["protocol"]["num_prompts"]},
    }
    write_json(sweep.root / "sweep.json", summary)
    write_text(sweep.root / "sweep.html", _render(sweep, summary))
    _print(summary, sweep.root / "sweep.html")


def _summary(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RunFolder.of(recipe).eval / "summary.json").read_text())
    return found


def _last_signals(path: Path) -> dict[str, float]:
    """Means of the training signals over the last steps."""
    lines = [json.loads(line) for line in path.read_text().splitlines()][-LAST_STEPS:]
    means = {}
    for name in ("positive_gap", "negative_gap", "accuracy", "kl"):
        values = [line[name] for line in lines if line.get(name) is not None]
        if values:
            means[name] = sum(values) / len(values)
    return means


def _best(arms: list[dict[str, Any]], split: str) -> dict[str, str | None]:
    """The point without guidance and the guided arm of the base with the highest alignment."""
    points = [arm for arm in arms if "values" in arm and arm["guidance_scale"] == 1.0]
    best = max(points, key=lambda a: a["scores"][split]["alignment"]["value"], default=None)
    return {
        "point": None if best is None else best["name"],
        "base": best_guided({"arms": arms}, split, "base"),
        "control": best_guided({"arms": arms}, split, "control"),
    }


def _render(sweep: Sweep, summary: dict[str, Any]) -> str:
    splits = list(summary["protocol"]["num_prompts"])
    return (
        templates()
        .get_template("sweep.html.j2")
        .render(
            summary=summary,
            scores=scores_of(summary),
            splits=splits,
            plots={
                split: [
                    _plot(summary, split, "alignment", "alignment ×100"),
                    _plot(summary, split, "recall", "recall (diversity)"),
                ]
                for split in splits
            },
            recipe_yaml=dump(sweep.base),
        )
    )


def _plot(summary: dict[str, Any], split: str, score: str, label: str) -> str:
    points = []
    for arm in summary["arms"]:
        values = {name: s["value"] for name, s in arm["scores"][split].items()}
        series = (
            "points of the sweep" if "values" in arm else f"{arm['source']} (number: CFG scale)"
        )
        x, y = values[score], values["frechet_distance"]
        told = told_of(summary, arm, split)
        points.append(Point(arm["source"], series, _label(arm), x, y, told))
    return scatter(
        points,
        label,
        "FD (lower is better)",
        about=prompts_in_words(split),
        lines=sweeps(summary["arms"]),
    )


def _label(arm: dict[str, Any]) -> str:
    if "values" in arm or arm["guidance_scale"] == 1.0:
        return str(arm["name"])
    return f"{arm['guidance_scale']:g}"


def _print(summary: dict[str, Any], path: Path) -> None:
    console = Console()
    for split, best in summary["best"].items():
        console.print(score_table(summary, split, bold=best["point"], best=best["base"]))
        if summary["over_seeds"]:
            console.print(seed_table(summary, split))
    for name, reason in summary["diverged"].items():
        console.print(f"{name} diverged: {reason.splitlines()[0]}", soft_wrap=True)
    console.print(f"sweep: {path}", soft_wrap=True)
