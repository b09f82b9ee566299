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


Curves = Mapping[str, Sequence[float]]
Bands = Mapping[str, Sequence[Sequence[float]]]


def draw_gaps(
    path: Path,
    curves: tuple[Curves, Curves],
    bands: tuple[Bands, Bands],
    title: str,
) -> None:
    """Write a PNG.

    Args:
        path: the file.
        curves: what ``code_gaps.by_row`` and ``by_relevance`` return.
        bands: what ``code_gap_bands.band_by_row`` and ``band_by_relevance`` return.
        title: of the figure.
    """
    rows, bins = curves
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2)
    for name, label in LINES.items():
        _curve(left, range(1, len(rows[name]) + 1), rows[name], bands[0][name], label)
    _label(left, "row of codes", "nats per code")
    left.set_ylim(bottom=0)
    for name, label in CURVES.items():
        _curve(right, bins["relevance"], bins[name], bands[1][name], label)
    right.axhline(0, linewidth=0.8, color="grey")
    _label(right, "relevance of the code to its caption (nats)", "gap: tuned minus base (nats)")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")


def _curve(
    axes: Axes, x: Sequence[float], y: Sequence[float], band: Sequence[Sequence[float]], label: str
) -> None:
    (line,) = axes.plot(x, y, marker="o", markersize=3, label=label)
    low, high = zip(*band, strict=True)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.2)
    axes.legend(fontsize=7, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
