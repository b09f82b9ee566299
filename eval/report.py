"""report.json, report.html (one self-contained file) and the table in the terminal."""

import base64
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from accelerate import PartialState
from mm_cca.eval.plots import Point, scatter
from mm_cca.eval.protocol import real_images
from PIL import Image
from rich.console import Console
from rich.table import Table

from mm_cca.arms import Prompt, prompts_of
from mm_cca.config import dump
from mm_cca.errors import UserError
from mm_cca.run import RunFolder, write_json, write_text
from mm_cca.schema import Recipe

SCORES = {
    "alignment": ("alignment ×100", "higher is better", 1),
    "r_at_1": ("R@1", "higher is better", 3),
    "r_at_5": ("R@5", "higher is better", 3),
    "frechet_distance": ("FD", "lower is better", 2),
    "kernel_distance": ("KD", "lower is better", 3),
    "precision": ("precision", "higher is better", 3),
    "recall": ("recall", "higher is better: diversity", 3),
    "clip_score": ("CLIP score", "higher is better", 2),
    "density": ("density", "higher is better: fidelity", 3),
    "coverage": ("coverage", "higher is better: diversity", 3),
    "cmmd": ("CMMD", "lower is better", 3),
    "fid": ("FID", "lower is better", 2),
    "kid": ("KID", "lower is better", 4),
    "inception_score": ("IS", "higher is better", 2),
}
CELL = 64


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
    write_json(run.root / "report.json", summary)
    write_text(run.report, render(recipe, run, summary))
    print_table(summary, run.report)


def render(recipe: Recipe, run: RunFolder, summary: dict[str, Any]) -> str:
    """The HTML of a summary."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    splits = list(summary["protocol"]["num_prompts"])
    best = {split: best_guided(summary, split) for split in splits}
    return environment.get_template("report.html.j2").render(
        summary=summary,
        scores=scores_of(summary),
        splits=splits,
        best=best,
        dialled=bool(recipe.sample.dial),
        cost_plots={s: _cost_plot(summary, s) for s in splits},
        trade_plots={s: _trade_plot(summary, s) for s in splits},
        grids={s: _grid(recipe, run, summary, s, best[s]) for s in splits},
        recipe_yaml=dump(recipe),
        environment=json.loads((run.root / "environment.json").read_text()),
        loss=asdict(recipe.loss),
        train=asdict(recipe.train),
    )


def scores_of(summary: dict[str, Any]) -> dict[str, tuple[str, str, int]]:
    """Label, hint and digits of every score of the summary, attributes last."""
    found = dict(SCORES)
    for arm in summary["arms"]:
        for scores in arm["scores"].values():
            for name in scores:
                kind = name.removeprefix("attribute_")
                if name != kind:
                    chance = scores[name]["chance"]
                    hint = (
                        f"the own caption fits better than with another {kind}; chance {chance:.2f}"
                    )
                    found[name] = (f"{kind.replace('_', ' ')} right", hint, 3)
    return found


def best_guided(summary: dict[str, Any], split: str, source: str = "base") -> str | None:
    """Name of the guided arm of ``source`` with the highest alignment on a split, if any."""
    guided = [a for a in summary["arms"] if a["source"] == source and a["guidance_scale"] != 1.0]
    if not guided:
        return None
    return max(guided, key=lambda a: a["scores"][split]["alignment"]["value"])["name"]


def _points(summary: dict[str, Any], split: str, x: str, y: str) -> list[Point]:
    points = []
    for arm in summary["arms"]:
        values = {name: s["value"] for name, s in arm["scores"][split].items()}
        values["forwards"] = arm["forwards_per_image"]
        label = _label(arm["name"])
        series = _series(arm["source"], label)
        points.append(Point(arm["source"], series, label, values[x], values[y]))
    return points


def _series(source: str, label: str) -> str:
    if source != "cca":
        return f"{source} (number: CFG scale)"
    return "CCA, no guidance" if label == "cca" else "CCA with another dial, or guided"


def _label(name: str) -> str:
    """``base``, ``3``, ``3 neg1``, ``dial 0.5``, ``CFG 3``: the colour says which source."""
    source, *parts = name.split("+")
    scale = "CFG " if source == "cca" else ""
    words = [part.replace("cfg", scale).replace("dial", "dial ") for part in parts]
    return " ".join(words) if words else source


def sweeps(arms: list[dict[str, Any]]) -> list[list[int]]:
    """Places of the arms that a line joins, in its order.

    One line for every model and negative prompt, from no guidance to the most; one along each
    model's dial, on which the base is 0 and the trained model 1. Points of a sweep are models.
    """
    guided: dict[tuple[str, str], list[int]] = {}
    dialled: dict[str, list[int]] = {}
    base = [number for number, arm in enumerate(arms) if arm["name"] == "base"]
    plain = {_model(arm): number for number, arm in enumerate(arms) if _is_plain(arm)}
    for number, arm in enumerate(arms):
        model = _model(arm)
        start = [plain[model]] if model in plain else []
        if arm["guidance_scale"] != 1.0:
            prompt = arm["name"].partition("+neg")[2]
            guided.setdefault((model, prompt), start).append(number)
        elif not _is_plain(arm):
            dialled.setdefault(model, [*base, *start]).append(number)
    lines = [sorted(line, key=lambda n: arms[n]["guidance_scale"]) for line in guided.values()]
    return lines + [sorted(line, key=lambda n: arms[n]["dial"] or 0.0) for line in dialled.values()]


def _model(arm: dict[str, Any]) -> str:
    return f"{arm['source']} {arm.get('values')}"


def _is_plain(arm: dict[str, Any]) -> bool:
    return arm["guidance_scale"] == 1.0 and arm["dial"] in (None, 1.0)


def _cost_plot(summary: dict[str, Any], split: str) -> str:
    return scatter(
        _points(summary, split, "forwards", "alignment"),
        "forward passes per image",
        "alignment ×100",
        lines=[],
    )


def _trade_plot(summary: dict[str, Any], split: str) -> str:
    return scatter(
        _points(summary, split, "recall", "frechet_distance"),
        "recall (diversity)",
        "FD (fidelity, lower is better)",
        lines=sweeps(summary["arms"]),
    )


def _grid(
    recipe: Recipe, run: RunFolder, summary: dict[str, Any], split: str, best: str | None
) -> dict[str, Any]:
    """Rows of pictures: one prompt each, the real image first, then every arm with one noise."""
    prompts = [p for p in prompts_of(recipe, run) if p.split == split][: recipe.eval.grid_prompts]
    names = [a["name"] for a in summary["arms"] if a["guidance_scale"] == 1.0 or a["name"] == best]
    best_control = best_guided(summary, split, "control")
    if best_control is not None:
        names.append(best_control)
    real = list(real_images(recipe, run, split, [p.row for p in prompts]))
    rows = []
    for prompt, truth in zip(prompts, real, strict=True):
        cells = [_png(truth), *(_png(_drawn(run, name, prompt)) for name in names)]
        rows.append({"caption": prompt.caption, "cells": cells})
    return {"columns": ["real", *names], "rows": rows}


def _drawn(run: RunFolder, name: str, prompt: Prompt) -> Image.Image:
    with Image.open(run.samples / name / f"{prompt.index:06d}.png") as image:
        return image.convert("RGB")


def _png(image: Image.Image) -> str:
    """A data URI, at most 256 pixels wide."""
    if image.width > 256:
        image = image.resize((256, round(256 * image.height / image.width)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def print_table(summary: dict[str, Any], report: Path) -> None:
    """The arm table and the path of the report."""
    console = Console()
    for split in summary["protocol"]["num_prompts"]:
        console.print(score_table(summary, split, bold="cca", best=best_guided(summary, split)))
    console.print(f"report: {report}", soft_wrap=True)


def score_table(
    summary: dict[str, Any], split: str, *, bold: str | None, best: str | None
) -> Table:
    """The arms of a split, one of them in bold, the best guided one with a star."""
    count = summary["protocol"]["num_prompts"][split]
    table = Table(title=f"{split}: {count} prompts, scored by {summary['protocol']['scorer']}")
    table.caption = "* best CFG; in brackets: real images, and what the tokenizer makes of them"
    table.add_column("arm", no_wrap=True)
    for heading in ("alignment", "R@1", "R@5", "FD", "recall", "forwards", "img/s"):
        table.add_column(heading, justify="right")
    for arm in summary["arms"]:
        s = {name: score["value"] for name, score in arm["scores"][split].items()}
        table.add_row(
            arm["name"] + (" *" if arm["name"] == best else ""),
            f"{s['alignment']:.1f}",
            f"{s['r_at_1']:.3f}",
            f"{s['r_at_5']:.3f}",
            f"{s['frechet_distance']:.2f}",
            f"{s['recall']:.3f}",
            str(arm["forwards_per_image"]),
            f"{1 / arm['seconds_per_image']:.1f}",
            style="bold" if arm["name"] == bold else None,
        )
    for name, floor in summary["floors"].items():
        s = {key: score["value"] for key, score in floor[split].items()}
        table.add_row(
            f"({name})",
            f"{s['alignment']:.1f}",
            f"{s['r_at_1']:.3f}",
            f"{s['r_at_5']:.3f}",
            f"{s['frechet_distance']:.2f}",
            f"{s['recall']:.3f}",
            "-",
            "-",
            style="dim",
        )
    return table
