"""The report's plot of arms: points with tooltips, lines that join sweeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox, BboxBase

from mm_cca.eval.report.svg import COLOURS, POINT, canvas, svg_of, svg_style

MARKERS = {"base": "o", "cca": "*", "control": "s"}
DIRECTIONS = (
    ((1, 0), "left"),
    ((-1, 0), "right"),
    ((0.6, 1), "left"),
    ((0.6, -1), "left"),
    ((-0.6, 1), "right"),
    ((-0.6, -1), "right"),
    ((0, 1.4), "center"),
    ((0, -1.4), "center"),
)
"""Where a label may lie as seen from its mark, best first."""
DISTANCES = (9.0, 15.0, 22.0)
"""Between mark and label, in points, best first."""
LABEL_SIZE = 8
ON_LABEL, ON_MARK, ON_LINE = 4.0, 3.0, 2.0
"""How bad it is to cover each. What costs nothing is taken at once."""


@dataclass(frozen=True)
class PlotPoint:
    """One arm in a plot.

    Attributes:
        source: decides its colour.
        series: its entry in the legend.
        label: text next to it.
        x: coordinate.
        y: coordinate.
        tooltip: text shown on hover or focus.
        is_main: with a large mark.
        x_interval: its ends, where there is one.
        y_interval: as well.
    """

    source: str
    series: str
    label: str
    x: float
    y: float
    tooltip: str
    is_main: bool = False
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


def scatter(
    points: list[PlotPoint],
    x_label: str,
    y_label: str,
    *,
    about: str,
    lines: list[list[int]],
    x_ticks: Sequence[float] | None = None,
) -> str:
    """An SVG element: arms as points; each of ``lines`` joins those points in its order.

    ``about`` names the prompts; with the axes it identifies the plot in a page.
    """
    name = f"{about}: {y_label} against {x_label}"
    with svg_style(name):
        figure = canvas(4.9, 3.7)
        axes = figure.add_subplot()
        for line in lines:
            _join(axes, [points[number] for number in line])
        for point in points:
            _bars(axes, point)
        _mark(axes, points)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.17, y=0.13)
        if x_ticks is not None:
            axes.set_xticks(x_ticks, [f"{tick:g}" for tick in x_ticks])
        figure.legend(loc="outside lower center", ncols=2)
        _place_labels(figure, axes, points, lines)
        return svg_of(
            figure, f"Plot of {name}", {n: point.tooltip for n, point in enumerate(points)}
        )


def _join(axes: Axes, joined: list[PlotPoint]) -> None:
    axes.plot(
        [p.x for p in joined],
        [p.y for p in joined],
        linewidth=1,
        color=COLOURS[joined[-1].source],
        # The dial joins two models; guidance stays with one.
        linestyle="-" if len({p.source for p in joined}) == 1 else "--",
        zorder=1,
    )


def _mark(axes: Axes, points: list[PlotPoint]) -> None:
    in_legend: set[str] = set()
    for number, point in enumerate(points):
        axes.plot(
            [point.x],
            [point.y],
            linestyle="none",
            marker=MARKERS[point.source],
            markersize=14 if point.is_main else 7,
            color=COLOURS[point.source],
            label=None if point.series in in_legend else point.series,
            zorder=3 if point.source == "cca" else 2,
            gid=f"{POINT}{number}",
        )
        in_legend.add(point.series)


def _bars(axes: Axes, point: PlotPoint) -> None:
    """Thin lines from end to end of the intervals."""
    style: dict[str, Any] = {"color": COLOURS[point.source], "linewidth": 0.8, "alpha": 0.55}
    if point.x_interval is not None:
        axes.hlines(point.y, *point.x_interval, zorder=1, **style)
    if point.y_interval is not None:
        axes.vlines(point.x, *point.y_interval, zorder=1, **style)


def _place_labels(
    figure: Figure, axes: Axes, points: list[PlotPoint], lines: list[list[int]]
) -> None:
    """Beside each mark, off other labels, marks and lines as far as there is room."""
    figure.draw_without_rendering()
    marks = [_around(axes, point) for point in points]
    strokes = _strokes(axes, points, lines)
    labels: list[Bbox] = []
    for point in sorted(points, key=lambda p: not p.is_main):
        label = axes.annotate(
            point.label,
            (point.x, point.y),
            textcoords="offset points",
            xytext=(0, 0),
            fontsize=LABEL_SIZE,
            color=COLOURS[point.source],
            va="center",
            zorder=4,
        )
        label.set_in_layout(False)
        labels.append(_settle(label, labels, marks, strokes, figure.bbox))


def _strokes(axes: Axes, points: list[PlotPoint], lines: list[list[int]]) -> list[Path]:
    """Every line and interval of the plot, in pixels."""
    ends = [((points[a].x, points[a].y), (points[b].x, points[b].y)) for a, b in _pairs(lines)]
    for point in points:
        if point.x_interval is not None:
            low, high = point.x_interval
            ends.append(((low, point.y), (high, point.y)))
        if point.y_interval is not None:
            low, high = point.y_interval
            ends.append(((point.x, low), (point.x, high)))
    return [Path(axes.transData.transform(pair)) for pair in ends]


def _pairs(lines: list[list[int]]) -> list[tuple[int, int]]:
    return [pair for line in lines for pair in pairwise(line)]


def _settle(
    label: Annotation,
    labels: list[Bbox],
    marks: list[Bbox],
    strokes: list[Path],
    room: BboxBase,
) -> Bbox:
    best: tuple[float, Bbox, tuple[float, float], str] | None = None
    for distance in DISTANCES:
        for (right, up), side in DIRECTIONS:
            offset = (right * distance, up * distance)
            box = _put(label, offset, side)
            cost = ON_LABEL * sum(box.overlaps(other) for other in labels)
            cost += ON_MARK * sum(box.overlaps(mark) for mark in marks)
            cost += ON_LINE * sum(path.intersects_bbox(box, filled=False) for path in strokes)
            cost += max(0.0, room.x0 - box.x0, box.x1 - room.x1)
            if best is None or cost < best[0]:
                best = (cost, box, offset, side)
    assert best is not None
    _put(label, best[2], best[3])
    return best[1]


def _put(label: Annotation, offset: tuple[float, float], side: str) -> Bbox:
    label.set_position(offset)
    label.set_horizontalalignment(side)  # type: ignore[arg-type]
    return label.get_window_extent().padded(2)


def _around(axes: Axes, point: PlotPoint) -> Bbox:
    x, y = axes.transData.transform((point.x, point.y))
    half = 6 if point.is_main else 3
    return Bbox.from_extents(x - half, y - half, x + half, y + half)
