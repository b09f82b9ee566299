"""Training curves of metrics.jsonl, and whether training was healthy."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from mm_cca.config.read_files import is_there, json_lines_of, unreadable
from mm_cca.eval.report.svg import COLLAPSE, COLOURS, HEALTHY, canvas, svg_of, svg_style
from mm_cca.training.health import COLLAPSE as COLLAPSED

HEALTHY_GAP = -0.5
"""The lowest positive gap of a healthy run, in nats per code."""
LAST_SHARE = 0.1
MAX_POINTS = 300
PANELS = {
    "loss": "loss",
    "positive_gap": "positive gap, nats per code",
    "negative_gap": "negative gap, nats per code",
    "margin": "margin, nats per code",
    "accuracy": "accuracy",
    "kl": "KL, nats per code",
}
PER_IMAGE = ("positive_gap", "negative_gap", "margin", "kl")
"""Signals that metrics.jsonl holds per image."""


@dataclass(frozen=True)
class Series:
    """One signal of one training: [n] steps and values."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        """Mean over the last tenth of the steps."""
        return float(self.values[-max(1, round(LAST_SHARE * len(self.values))) :].mean())


Signals = dict[str, Series]


def read_steps(path: Path) -> list[dict[str, float | None]]:
    """The lines of a metrics.jsonl, each with ``step``; none if there is no file.

    Raises:
        UserError: it is damaged.
    """
    if not is_there(path):
        return []
    advice = "Restore it, or delete it to do without the training curves."
    lines = json_lines_of(path, dict[str, float | None], advice)
    if any(line.get("step") is None for line in lines):
        raise unreadable(path, "a line has no step", advice)
    return lines


def read_signals(path: Path, num_codes: int) -> Signals:
    """The panels' signals of a metrics.jsonl, gaps divided by the codes of an image.

    With buckets each step says how many codes its images have; ``num_codes`` is for other runs.
    """
    return _signals_of(read_steps(path), num_codes)


def _signals_of(lines: Sequence[dict[str, float | None]], num_codes: int) -> Signals:
    signals = {}
    for name in PANELS:
        known = [
            (line["step"], line[name], _codes_in(line) or num_codes)
            for line in lines
            if line.get(name) is not None
        ]
        if known:
            steps, values, codes = (
                np.array(column, dtype=np.float64) for column in zip(*known, strict=True)
            )
            signals[name] = Series(steps, values / (codes if name in PER_IMAGE else 1))
    return signals


def _codes_in(line: dict[str, float | None]) -> int | None:
    rows, columns = line.get("grid_rows"), line.get("grid_columns")
    return None if rows is None or columns is None else int(rows * columns)


@dataclass(frozen=True)
class BucketNumbers:
    """How the images of one size ended a training.

    Attributes:
        rows: of codes.
        columns: of codes.
        steps: that had images of this size.
        last: signal -> mean over the last tenth of these steps; gaps in nats per code.
    """

    rows: int
    columns: int
    steps: int
    last: dict[str, float]


def read_buckets(path: Path) -> list[BucketNumbers]:
    """The numbers of each image size in a metrics.jsonl; none without ``data.buckets``."""
    by_grid: dict[tuple[int, int], list[dict[str, float | None]]] = {}
    for line in read_steps(path):
        rows, columns = line.get("grid_rows"), line.get("grid_columns")
        if rows is not None and columns is not None:
            by_grid.setdefault((int(rows), int(columns)), []).append(line)
    return [
        BucketNumbers(
            *grid,
            len(lines),
            {name: one.last for name, one in _signals_of(lines, grid[0] * grid[1]).items()},
        )
        for grid, lines in sorted(by_grid.items(), key=lambda item: item[0][0] / item[0][1])
    ]


def smoothed(values: np.ndarray, span: int) -> np.ndarray:
    """[n] -> [n] means over ``span`` values around each, fewer at both ends."""
    sums = np.concatenate([[0.0], values.cumsum()])
    places = np.arange(len(values))
    first = np.maximum(0, places - span // 2)
    after = np.minimum(len(values), places + span // 2 + 1)
    return (sums[after] - sums[first]) / (after - first)


def span_of(count: int) -> int:
    """Over how many steps a smooth line averages."""
    return max(1, count // 40)


def panels(trainings: dict[str, Signals]) -> dict[str, str]:
    """Signal -> SVG element, for every signal that some training has."""
    return {
        name: _panel(name, {source: s[name] for source, s in trainings.items() if name in s})
        for name in PANELS
        if any(name in signals for signals in trainings.values())
    }


def _panel(name: str, series: dict[str, Series]) -> str:
    with svg_style(name):
        figure = canvas(3.7, 2.5)
        axes = figure.add_subplot()
        for source, one in series.items():
            colour, every = COLOURS[source], max(1, len(one.steps) // MAX_POINTS)
            smooth = smoothed(one.values, span_of(len(one.values)))
            steps = one.steps[::every]
            axes.plot(steps, one.values[::every], color=colour, linewidth=0.7, alpha=0.35)
            axes.plot(steps, smooth[::every], color=colour, linewidth=1.7, label=source)
        if name == "positive_gap":
            # The limits come from the data alone: the band may be far away.
            low, high = axes.get_ylim()
            axes.axhspan(HEALTHY_GAP, 0, color=HEALTHY, alpha=0.13, linewidth=0)
            axes.axhline(COLLAPSED, color=COLLAPSE, linestyle="--", linewidth=1)
            axes.set_ylim(low, high)
        axes.set_title(PANELS[name], fontsize=9, loc="left")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(series) > 1:
            axes.legend()
        ends = ", ".join(f"{source} ends at {one.last:.3g}" for source, one in series.items())
        return svg_of(figure, f"Training curve: {PANELS[name]}; {ends}", {})


def health(signals: Signals) -> str | None:
    """One sentence on how a contrastive training ended; None where there are no gaps."""
    if not {"positive_gap", "negative_gap"} <= signals.keys():
        return None
    positive, negative = signals["positive_gap"].last, signals["negative_gap"].last
    ended = f"positive gap {positive:+.2f}, negative gap {negative:+.2f} nats per code"
    return f"This run ended with {ended}: {judged(positive, negative)}."


def judged(positive: float, negative: float) -> str:
    """An assessment of the gaps, in nats per code, at the end of training."""
    if positive < COLLAPSED:
        return "collapsed; raise loss.beta, or lower loss.lambda_ or train.learning_rate"
    if negative > positive - 0.5:
        return "positive and negative captions are barely separated yet; train longer"
    if positive < HEALTHY_GAP:
        return "lower than usual; check the images"
    return "healthy"


def count_steps(trainings: Sequence[Signals]) -> int:
    """Steps of the longest training."""
    return max((len(one.steps) for s in trainings for one in s.values()), default=0)
