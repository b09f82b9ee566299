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
    """One arm in a plot.

    Attributes:
        source: decides its colour.
        series: what the legend calls it and its like.
        label: what is written beside it.
    """

    source: str
    series: str
    label: str
    x: float
    y: float


def scatter(points: list[Point], x_label: str, y_label: str, *, lines: list[list[int]]) -> str:
    """An SVG element: arms as points; each of ``lines`` joins those points in its order."""
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for line in lines:
        joined = [points[number] for number in line]
        axes.plot(
            [p.x for p in joined],
            [p.y for p in joined],
            linewidth=1,
            color=COLOURS[joined[-1].source],
            # The dial leads from one model to another, guidance away from the same one.
            linestyle="-" if len({p.source for p in joined}) == 1 else "--",
            zorder=1,
        )
    named: set[str] = set()
    for point in points:
        axes.plot(
            [point.x],
            [point.y],
            linestyle="none",
            marker=MARKERS[point.source],
            markersize=15 if point.label == "cca" else 7,
            color=COLOURS[point.source],
            label=None if point.series in named else point.series,
            zorder=3 if point.source == "cca" else 2,
        )
        named.add(point.series)
        axes.annotate(
            point.label,
            (point.x, point.y),
            textcoords="offset points",
            xytext=(7, 5),
            fontsize=8,
            color=COLOURS[point.source],
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
