"""The figure of ``mm-cca gaps``: where along the image, and on which codes, a model moved."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mm_cca.runs.files import atomic_path

DPI = 150
LINES = {
    "kl_caption_to_none": "KL(base with caption, without)",
    "kl_guidance_to_base": "KL(guided base, base)",
    "kl_model_to_base": "KL(tuned model, base)",
    "kl_guidance_to_model": "KL(guided base, tuned model)",
}
CURVES = {"own": "own caption", "wrong": "another image's caption"}


def draw_gaps(
    path: Path,
    rows: Mapping[str, Sequence[float]],
    bins: Mapping[str, Sequence[float]],
    title: str,
) -> None:
    """Write a PNG.

    Args:
        path: the file.
        rows: what ``code_gaps.by_row`` returns.
        bins: what ``code_gaps.by_relevance`` returns.
        title: of the figure.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2)
    for name, label in LINES.items():
        left.plot(range(1, len(rows[name]) + 1), rows[name], marker="o", markersize=3, label=label)
    _label(left, "row of codes", "nats per code")
    left.set_ylim(bottom=0)
    for name, label in CURVES.items():
        right.plot(bins["relevance"], bins[name], marker="o", markersize=3, label=label)
    right.axhline(0, linewidth=0.8, color="grey")
    _label(right, "relevance of the code to its caption (nats)", "gap: tuned minus base (nats)")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.2)
    axes.legend(fontsize=7, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
