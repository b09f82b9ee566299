"""Which scores a table shows, which arm is the best guided one, and the table in the terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mm_cca.eval.report.wording import prompts_in_words

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
IN_TERMINAL = (
    "alignment",
    "r_at_5",
    "frechet_distance",
    "fid",
    "clip_score",
    "recall",
    "r_at_1",
)
"""The first five of them that a run has fit into 80 columns."""


def scores_of(summary: dict[str, Any]) -> dict[str, tuple[str, str, int]]:
    """Label, hint and digits of every score of the summary, those known first."""
    present: dict[str, dict[str, Any]] = {}
    for arm in summary["arms"]:
        for scores in arm["scores"].values():
            present |= scores
    found = {name: SCORES[name] for name in SCORES if name in present}
    for name, score in present.items():
        kind = name.removeprefix("attribute_")
        if name != kind:
            chance = f"{score['chance']:.2f}"
            hint = f"the own caption fits better than with another {kind}; chance {chance}"
            found[name] = (f"{kind.replace('_', ' ')} right", hint, 3)
        elif name not in SCORES:
            found[name] = (name.replace("_", " "), "", 3)
    return found


def best_guided(summary: dict[str, Any], split: str, source: str = "base") -> str | None:
    """Name of the guided arm of ``source`` with the highest alignment on a split, if any."""
    guided = [a for a in summary["arms"] if a["source"] == source and a["guidance_scale"] != 1.0]
    if not guided:
        return None
    return max(guided, key=lambda a: a["scores"][split]["alignment"]["value"])["name"]


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
    scorer = summary["protocol"]["scorer"]
    table = Table(title=f"{count} {prompts_in_words(split)}, scored by {scorer}")
    table.caption = "* best CFG" + (
        "; in brackets: real images, and what the tokenizer makes of them"
        if summary["floors"]
        else ""
    )
    table.add_column("arm", no_wrap=True)
    present = scores_of(summary)
    chosen = [name for name in IN_TERMINAL if name in present][:5]
    shown = {name: words for name, words in present.items() if name in chosen}
    for label, _, _ in shown.values():
        table.add_column(label.removesuffix(" ×100"), justify="right")
    table.add_column("forwards", justify="right")
    table.add_column("img/s", justify="right")
    for arm in summary["arms"]:
        table.add_row(
            arm["name"] + (" *" if arm["name"] == best else ""),
            *_cells(arm["scores"][split], shown),
            str(arm["forwards_per_image"]),
            f"{1 / arm['seconds_per_image']:.1f}",
            style="bold" if arm["name"] == bold else None,
        )
    for name, floor in summary["floors"].items():
        table.add_row(f"({name})", *_cells(floor[split], shown), "-", "-", style="dim")
    return table


def _cells(scores: dict[str, Any], shown: dict[str, tuple[str, str, int]]) -> list[str]:
    return [f"{scores[name]['value']:.{digits}f}" for name, (_, _, digits) in shown.items()]


def seed_table(summary: dict[str, Any], split: str) -> Table:
    """Means over seeds, with the lowest and the highest seed in brackets."""
    table = Table(title=f"{prompts_in_words(split)}: mean over seeds (lowest to highest)")
    table.add_column("point", no_wrap=True)
    found = scores_of(summary)
    for label, _, _ in found.values():
        table.add_column(label, justify="right")
    for point in summary["over_seeds"]:
        scores = point["scores"][split]
        cells = [
            _spread(scores[key], digits) if key in scores else "-"
            for key, (_, _, digits) in found.items()
        ]
        table.add_row(f"{point['name']} x{len(point['seeds'])}", *cells)
    return table


def _spread(score: dict[str, float], digits: int) -> str:
    value, low, high = (f"{score[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
