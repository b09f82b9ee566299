"""Points of a sweep that differ in nothing but ``train.seed``, as one row: mean and extremes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mm_cca.config.load import dump
from mm_cca.config.schema import Recipe
from mm_cca.config.sweep_grid import Sweep
from mm_cca.eval.report.charts import sweeps, told_of
from mm_cca.eval.report.pages import templates
from mm_cca.eval.report.scatter import PlotPoint, scatter
from mm_cca.eval.report.tables import best_guided, score_table, scores_of, seed_table
from mm_cca.eval.report.wording import prompts_in_words
from mm_cca.runs.files import write_json, write_text
from mm_cca.runs.folder import RunFolder

SEED = "train.seed"


def over_seeds(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for every group of trained arms of several seeds, in the order of the arms.

    Returns:
        ``name`` without the seed, ``seeds``, ``forwards_per_image``, and ``scores`` and ``signals``
        as means, scores with ``low`` and ``high``, the lowest and highest seed.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for arm in arms:
        if SEED in arm.get("values", {}):
            groups.setdefault(_name_without_seed(arm), []).append(arm)
    return [_summed_up(name, mine) for name, mine in groups.items() if len(mine) > 1]


def _name_without_seed(arm: dict[str, Any]) -> str:
    seed = f"seed={arm['values'][SEED]}"
    return str(arm["name"].replace(f",{seed}", "").replace(f"{seed},", "").replace(seed, "cca"))


def _summed_up(name: str, arms: list[dict[str, Any]]) -> dict[str, Any]:
    scores = {
        split: {
            key: _spread([arm["scores"][split][key]["value"] for arm in arms]) for key in by_name
        }
        for split, by_name in arms[0]["scores"].items()
    }
    signals = {
        key: float(np.mean([arm["signals"][key] for arm in arms])) for key in arms[0]["signals"]
    }
    return {
        "name": name,
        "seeds": [arm["values"][SEED] for arm in arms],
        "forwards_per_image": arms[0]["forwards_per_image"],
        "scores": scores,
        "signals": signals,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"value": float(np.mean(values)), "low": min(values), "high": max(values)}


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
        points.append(PlotPoint(arm["source"], series, _label(arm), x, y, told))
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
