"""The report's plot of arms: points with tooltips, lines that join sweeps."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox, BboxBase

from mm_cca.eval.report.svg import COLOURS, POINT, canvas, svg_of, svg_style

MARKERS = {"base": "o", "cca": "*", "control": "s"}
PLACES = (
    ((9, -3), "left"),
    ((-9, -3), "right"),
    ((5, 7), "left"),
    ((5, -13), "left"),
    ((-5, 7), "right"),
    ((-5, -13), "right"),
    ((0, 12), "center"),
    ((0, -18), "center"),
)
"""Positions of a label, in points from its mark, best first."""


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
    """

    source: str
    series: str
    label: str
    x: float
    y: float
    tooltip: str
    is_main: bool = False


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
        _mark(axes, points)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.17, y=0.13)
        if x_ticks is not None:
            axes.set_xticks(x_ticks, [f"{tick:g}" for tick in x_ticks])
        figure.legend(loc="outside lower center", ncols=2)
        _place_labels(figure, axes, points)
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


def _place_labels(figure: Figure, axes: Axes, points: list[PlotPoint]) -> None:
    """Beside each mark, at the first position with least overlap that stays inside the figure."""
    figure.draw_without_rendering()
    taken = [_around(axes, point) for point in points]
    for point in sorted(points, key=lambda p: not p.is_main):
        label = axes.annotate(
            point.label,
            (point.x, point.y),
            textcoords="offset points",
            xytext=(0, 0),
            fontsize=8,
            color=COLOURS[point.source],
            zorder=4,
        )
        label.set_in_layout(False)
        taken.append(_settle(label, taken, figure.bbox))


def _settle(label: Annotation, taken: list[Bbox], room: BboxBase) -> Bbox:
    best: tuple[float, Bbox, tuple[tuple[int, int], str]] | None = None
    for place in PLACES:
        box = _put(label, place)
        overlaps = sum(box.overlaps(other) for other in taken)
        outside = max(0.0, room.x0 - box.x0, box.x1 - room.x1)
        if best is None or overlaps + outside < best[0]:
            best = (overlaps + outside, box, place)
    assert best is not None
    _put(label, best[2])
    return best[1]


def _put(label: Annotation, place: tuple[tuple[int, int], str]) -> Bbox:
    label.set_position(place[0])
    label.set_horizontalalignment(place[1])  # type: ignore[arg-type]
    return label.get_window_extent()


def _around(axes: Axes, point: PlotPoint) -> Bbox:
    x, y = axes.transData.transform((point.x, point.y))
    half = 6 if point.is_main else 3
    return Bbox.from_extents(x - half, y - half, x + half, y + half)
