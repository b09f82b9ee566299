"""The report's plots of arms: each arm's point, and which points a line joins."""

from collections.abc import Sequence

from mm_cca.config.metrics import LEAD, METRICS
from mm_cca.eval.report.scatter import PlotPoint, scatter
from mm_cca.eval.report.tables import ScoreColumn, score_columns
from mm_cca.eval.report.wording import CCA, prompts_in_words
from mm_cca.eval.summary_types import JudgedArm, Score

FORWARDS = "forwards"


def cost_plot(arms: Sequence[JudgedArm], split: str, ours: str = CCA) -> str:
    """Alignment against forward passes; ``ours`` is what the trained model is called."""
    return scatter(
        _points(arms, split, FORWARDS, LEAD, ours),
        "forward passes per image",
        METRICS[LEAD].heading,
        about=prompts_in_words(split),
        lines=[],
        x_ticks=sorted({arm["forwards_per_image"] for arm in arms}),
    )


def trade_plot(arms: Sequence[JudgedArm], split: str, ours: str = CCA) -> str | None:
    """Fidelity against diversity, along every sweep of guidance; None where one lacks.

    ``ours`` is what the trained model is called.
    """
    axes = _trade_axes(arms)
    if axes is None:
        return None
    return scatter(
        _points(arms, split, axes["diversity"], axes["fidelity"], ours),
        axis_label(axes["diversity"]),
        axis_label(axes["fidelity"]),
        about=prompts_in_words(split),
        lines=guidance_lines(arms),
    )


def _trade_axes(arms: Sequence[JudgedArm]) -> dict[str, str] | None:
    """The metrics of diversity and fidelity."""
    columns, axes = score_columns(arms), {}
    for axis in ("diversity", "fidelity"):
        plotted = [name for name in columns if name in METRICS and METRICS[name].axis == axis]
        if not plotted:
            return None
        # Against reconstructions, if they are there: the decoder without the tokenizer's loss.
        axes[axis] = min(plotted, key=lambda name: METRICS[name].reference == "real")
    return axes


def bars_in_words(arms: Sequence[JudgedArm], split: str) -> str:
    """What the bars of the plot of fidelity against diversity are, or why there are none."""
    axes = _trade_axes(arms) or {}
    if any(interval_of(arm, split, axis) for arm in arms for axis in axes.values()):
        return (
            "Bars: 95 % intervals over prompts (jackknife); arms whose bars overlap may differ by "
            "chance only."
        )
    return (
        "No intervals: the scores are of an older mm_cca, or the prompts too few; small "
        "differences may be chance."
    )


def axis_label(name: str) -> str:
    """A metric's heading with what its axis shows, and its direction where that is down."""
    metric = METRICS[name]
    notes = [metric.axis or "", "" if metric.higher_is_better else "lower is better"]
    note = ", ".join(note for note in notes if note)
    return f"{metric.heading} ({note})" if note else metric.heading


def interval_of(arm: JudgedArm, split: str, axis: str) -> tuple[float, float] | None:
    """The ends of a score's interval; None where it has none, as forward passes."""
    score = arm["scores"][split].get(axis)
    if score is None or "low" not in score or "high" not in score:
        return None
    return score["low"], score["high"]


def tooltip_of(arms: Sequence[JudgedArm], arm: JudgedArm, split: str) -> str:
    """An arm's scores, for the tooltip of its point."""
    columns = score_columns(arms)
    scores = [
        f"{columns[name].heading} {columns[name].text(score['value'])}{_ends(columns[name], score)}"
        for name, score in arm["scores"][split].items()
    ]
    passes = f"{arm['forwards_per_image']} forward passes per image"
    return f"{arm['name']}: {', '.join(scores)}, {passes}"


def _ends(column: ScoreColumn, score: Score) -> str:
    if "low" not in score or "high" not in score:
        return ""
    return f" ({column.text(score['low'])} to {column.text(score['high'])})"


def _points(arms: Sequence[JudgedArm], split: str, x: str, y: str, ours: str) -> list[PlotPoint]:
    points = []
    for arm in arms:
        values = {name: score["value"] for name, score in arm["scores"][split].items()}
        values[FORWARDS] = arm["forwards_per_image"]
        label = _label(arm["name"])
        points.append(
            PlotPoint(
                source=arm["source"],
                series=_series(arm["source"], label, ours),
                label=label,
                x=values[x],
                y=values[y],
                tooltip=tooltip_of(arms, arm, split),
                is_main=label == "cca",
                x_interval=interval_of(arm, split, x),
                y_interval=interval_of(arm, split, y),
            )
        )
    return points


def _series(source: str, label: str, ours: str) -> str:
    if source != "cca":
        return f"{source} (number: CFG scale)"
    return f"{ours}, no guidance" if label == "cca" else f"{ours} with another dial, or guided"


def _label(name: str) -> str:
    """``base``, ``3``, ``3 neg1``, ``dial 0.5``, ``CFG 3``: the colour shows the source."""
    source, *parts = name.split("+")
    scale = "CFG " if source == "cca" else ""
    words = [part.replace("cfg", scale).replace("dial", "dial ") for part in parts]
    return " ".join(words) if words else source


def guidance_lines(arms: Sequence[JudgedArm]) -> list[list[int]]:
    """Indices of the arms that each line joins, in its order.

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


def _model(arm: JudgedArm) -> str:
    return f"{arm['source']} {arm.get('values')}"


def _is_plain(arm: JudgedArm) -> bool:
    return arm["guidance_scale"] == 1.0 and arm["dial"] in (None, 1.0)
