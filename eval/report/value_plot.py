"""A sweep's plots of alignment over the values of one swept key."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from mm_cca.config.metrics import LEAD, METRICS
from mm_cca.eval.report.svg import COLOURS, POINT, canvas, svg_of, svg_style
from mm_cca.eval.report.sweep_seeds import SEED
from mm_cca.eval.report.tables import best_guided
from mm_cca.eval.report.wording import prompts_in_words
from mm_cca.eval.summary_types import JudgedArm, Score


def value_plots(arms: Sequence[JudgedArm], split: str) -> list[str]:
    """An SVG element for every swept key with two or more values.

    Args:
        arms: of a sweep, seeds pooled; plotted are the points without guidance and dial, and the
            base with and without guidance as lines across.
        split: its name.
    """
    points = [arm for arm in arms if "values" in arm and _is_plain(arm)]
    keys = dict.fromkeys(key for arm in points for key in arm["values"] if key != SEED)
    return [
        _plot(arms, points, key, split)
        for key in keys
        if len({shown(arm["values"][key]) for arm in points if key in arm["values"]}) > 1
    ]


def _is_plain(arm: JudgedArm) -> bool:
    return arm["guidance_scale"] == 1.0 and arm["dial"] in (None, 1.0) and "+" not in arm["name"]


def shown(value: Any) -> str:
    """A value as a tick's label."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plot(arms: Sequence[JudgedArm], points: Sequence[JudgedArm], key: str, split: str) -> str:
    values = _in_order({shown(arm["values"][key]): arm["values"][key] for arm in points})
    name = f"{prompts_in_words(split)}: {METRICS[LEAD].heading} over {key}"
    with svg_style(name):
        figure = canvas(4.9, 3.7)
        axes = figure.add_subplot()
        _mark_points(axes, points, key, values, split)
        _across(axes, arms, split)
        axes.set_xticks(list(range(len(values))), values)
        axes.set_xlabel(key)
        axes.set_ylabel(METRICS[LEAD].heading)
        axes.margins(x=0.12, y=0.13)
        figure.legend(loc="outside lower center", ncols=2)
        tooltips = {number: _told(arm, split) for number, arm in enumerate(points)}
        return svg_of(figure, f"Plot of {name}", tooltips)


def _in_order(values: dict[str, Any]) -> list[str]:
    """Numbers by size, anything else as it came; evenly spaced, as values often are powers."""
    kinds = {type(value) for value in values.values()}
    if kinds <= {int, float}:  # bool is an int to isinstance
        return sorted(values, key=lambda text: float(values[text]))
    return list(values)


def _mark_points(
    axes: Axes, points: Sequence[JudgedArm], key: str, values: list[str], split: str
) -> None:
    """Every point with its interval, or the range of its seeds; those of equal other values are
    joined, and stand a little beside those of others."""
    others = list(dict.fromkeys(_others(arm, key) for arm in points))
    for number, arm in enumerate(points):
        place = others.index(_others(arm, key))
        x = values.index(shown(arm["values"][key])) + 0.08 * (place - (len(others) - 1) / 2)
        score: Score = arm["scores"][split][LEAD]
        if "low" in score and "high" in score:
            ends = [score["low"], score["high"]]
            axes.plot([x, x], ends, color=COLOURS["cca"], linewidth=1.4, zorder=2)
        axes.plot(
            [x],
            [score["value"]],
            linestyle="none",
            marker="*",
            markersize=10,
            color=COLOURS["cca"],
            label="points of the sweep" if number == 0 else None,
            zorder=3,
            gid=f"{POINT}{number}",
        )
    for place, other in enumerate(others):
        joined = sorted(
            (values.index(shown(arm["values"][key])), arm["scores"][split][LEAD]["value"])
            for arm in points
            if _others(arm, key) == other
        )
        shift = 0.08 * (place - (len(others) - 1) / 2)
        axes.plot(
            [x + shift for x, _ in joined],
            [y for _, y in joined],
            color=COLOURS["cca"],
            linewidth=0.8,
            zorder=1,
        )


def _others(arm: JudgedArm, key: str) -> str:
    return str({name: value for name, value in arm["values"].items() if name not in (key, SEED)})


def _across(axes: Axes, arms: Sequence[JudgedArm], split: str) -> None:
    """The base, and its best guided arm, with intervals."""
    best = best_guided(arms, split)
    for arm in arms:
        if arm["name"] not in ("base", best):
            continue
        score = arm["scores"][split][LEAD]
        style = "--" if arm["name"] == best else ":"
        label = f"{arm['name']} (shade: interval)"
        axes.axhline(score["value"], color=COLOURS["base"], linestyle=style, label=label)
        if "low" in score and "high" in score:
            axes.axhspan(score["low"], score["high"], color=COLOURS["base"], alpha=0.12, zorder=0)


def _told(arm: JudgedArm, split: str) -> str:
    score, digits = arm["scores"][split][LEAD], METRICS[LEAD].digits
    told = f"{arm['name']}: {METRICS[LEAD].label} {score['value']:.{digits}f}"
    if "low" not in score or "high" not in score:
        return told
    return f"{told}, {score['low']:.{digits}f} to {score['high']:.{digits}f}"
