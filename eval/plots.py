"""The report's plots, as SVG text."""

import io
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = {"base": "#4c6ef5", "cca": "#e8590c", "control": "#868e96"}
MARKERS = {"base": "o", "cca": "*", "control": "s"}


@dataclass(frozen=True)
class Point:
    """One arm in a plot; ``source`` decides its colour."""

    source: str
    label: str
    x: float
    y: float


def scatter(points: list[Point], x_label: str, y_label: str, *, connect: bool) -> str:
    """An SVG element: arms as points, the guided sweep of each source joined by a line."""
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for source in dict.fromkeys(point.source for point in points):
        mine = [point for point in points if point.source == source]
        axes.plot(
            [p.x for p in mine],
            [p.y for p in mine],
            linestyle="-" if connect and len(mine) > 1 else "none",
            linewidth=1,
            marker=MARKERS[source],
            markersize=15 if source == "cca" else 7,
            color=COLOURS[source],
            label="CCA, no guidance" if source == "cca" else f"{source} (number: CFG scale)",
            zorder=3 if source == "cca" else 2,
        )
        for point in mine:
            axes.annotate(
                point.label,
                (point.x, point.y),
                textcoords="offset points",
                xytext=(7, 5),
                fontsize=8,
                color=COLOURS[source],
            )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.margins(x=0.15, y=0.12)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "mm_cca", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
