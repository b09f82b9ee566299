"""The forest plot of the verdict: every comparison's difference and interval, judge by judge."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from mm_cca.config.metrics import METRICS, Metric
from mm_cca.eval.report.svg import COLLAPSE, HEALTHY, INK, POINT, canvas, svg_of, svg_style
from mm_cca.eval.report.wording import (
    AHEAD,
    BEHIND,
    LEVEL,
    difference_in_words,
    outcome,
    prompts_in_words,
)
from mm_cca.eval.summary_types import Interval, Summary, VerdictEntry, differences_of

MARKERS = {"o": "●", "s": "■", "D": "◆", "^": "▲", "v": "▼", "p": "⬟"}
"""Matplotlib's marker of every judge in turn, and the same as text."""
INKS = {AHEAD: HEALTHY, BEHIND: COLLAPSE, LEVEL: INK}
WIDTH = 2.3
ROW, STEP = 0.17, 0.105
"""Inches for a comparison's name, and for each of its intervals."""


class ForestMark(NamedTuple):
    """One interval: ``marker`` says whose it is, ``tooltip`` everything."""

    marker: str
    difference: Interval
    tooltip: str


def markers_of(judges: Sequence[str]) -> dict[str, str]:
    """Judge -> matplotlib's marker; after the last they start over."""
    markers = list(MARKERS)
    return {name: markers[number % len(markers)] for number, name in enumerate(judges)}


def forest(summary: Summary, split: str, name: str) -> dict[str, str]:
    """SVG by metric: the comparisons of the headline, with every judge that may judge.

    Args:
        summary: of the run.
        split: whose verdicts are shown.
        name: what the trained model is called.
    """
    judges = [judge["name"] for judge in summary["judges"] if judge["may_judge"]]
    markers = markers_of(judges)
    headline = [entry for entry in summary["headline"] if entry["split"] == split]
    panels: dict[str, dict[str, list[ForestMark]]] = {}
    for metric in METRICS:
        rows: dict[str, list[ForestMark]] = {}
        for ours, rival in order_of(headline):
            if any((e["metric"], e["ours"], e["rival"]) == (metric, ours, rival) for e in headline):
                marks = [
                    _mark(verdict, judge, METRICS[metric], metric, markers[judge])
                    for judge in judges
                    for verdict in summary["verdicts"][judge]
                    if (verdict["split"], verdict["ours"], verdict["rival"]) == (split, ours, rival)
                ]
                rows[row_name(ours, rival, name)] = marks
        if rows:
            panels[metric] = rows
    return {metric: _panel(METRICS[metric], rows, split) for metric, rows in panels.items()}


def order_of(entries: Sequence[Mapping[str, object]]) -> list[tuple[str, str]]:
    """The kinds that are compared, each pair once, that with the guided base first."""
    pairs = list(dict.fromkeys((str(e["ours"]), str(e["rival"])) for e in entries))
    first = pairs[0][0] if pairs else ""
    return sorted(pairs, key=lambda pair: (pair[0] != first, pair[1] != "guided base"))


def row_name(ours: str, rival: str, name: str) -> str:
    """The trained model is named only where another of its arms than the plain one is meant."""
    if ours == "cca":
        return f"against {rival}"
    return f"{ours_in_words(ours, name)} against {rival}"


def ours_in_words(ours: str, name: str) -> str:
    """The arms of the trained model that are compared, in which it is called ``name``."""
    if ours == "cca":
        return f"{name} without guidance"
    if ours == "guided cca":
        return f"{name} with guidance"
    return ours.replace("cca", name)


def _mark(verdict: VerdictEntry, judge: str, metric: Metric, name: str, marker: str) -> ForestMark:
    difference = differences_of(verdict)[name]
    compared = verdict["compared"][name]
    told = difference_in_words(difference, metric, verdict["confidence"])
    sides = f"{' or '.join(compared['arm'])} against {' or '.join(compared['against'])}"
    return ForestMark(marker, difference, f"{judge}, {metric.heading}: {sides}: {told}")


def _panel(metric: Metric, rows: Mapping[str, Sequence[ForestMark]], split: str) -> str:
    """Better is to the right, whatever the metric's direction."""
    title = f"{prompts_in_words(split)}: differences in {metric.heading}"
    height = 0.62 + sum(ROW + STEP * len(marks) for marks in rows.values())
    titles: dict[int, str] = {}
    with svg_style(title):
        figure = canvas(WIDTH, height)
        axes = figure.add_subplot()
        place = 0.0
        for row, marks in rows.items():
            axes.annotate(
                row, (0, place), xycoords=("axes fraction", "data"), fontsize=8, va="center"
            )
            place += ROW
            for mark in marks:
                _draw(axes, mark, place - STEP / 4, metric, len(titles))
                titles[len(titles)] = mark.tooltip
                place += STEP
        _dress(axes, metric, place)
        return svg_of(figure, f"Forest plot, {title}", titles)


def _draw(axes: Axes, mark: ForestMark, place: float, metric: Metric, number: int) -> None:
    """Interval and mark are one line, so that they are one thing to point at."""
    difference = mark.difference
    ink = INKS[outcome(difference, higher_is_better=metric.higher_is_better)]
    axes.plot(
        [difference["low"], difference["value"], difference["high"]],
        [place] * 3,
        color=ink,
        linewidth=1.4,
        marker=mark.marker,
        markersize=5,
        markevery=[1],
        gid=f"{POINT}{number}",
    )


def _dress(axes: Axes, metric: Metric, bottom: float) -> None:
    axes.axvline(0, color=INK, linewidth=0.9, alpha=0.6, zorder=0)
    axes.set_ylim(bottom + STEP / 2, -ROW * 0.7)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=4)
    if not metric.higher_is_better:
        axes.invert_xaxis()
    axes.set_title(metric.heading, fontsize=9, loc="left", fontweight="bold")
    axes.set_xlabel("← worse\u2003better →", fontsize=8)
