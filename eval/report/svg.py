"""Matplotlib figures as SVG elements that take their colours, light or dark, from the page.

Matplotlib has fixed colours only, so it draws with placeholders, which are replaced in the SVG text
by the CSS variables of style.css.
"""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#0a0b00"
COLOURS = {"base": "#0a0b01", "cca": "#0a0b02", "control": "#0a0b03"}
HEALTHY, COLLAPSE = "#0a0b04", "#0a0b05"
VARIABLES = {
    INK: "currentColor",
    COLOURS["base"]: "var(--base)",
    COLOURS["cca"]: "var(--cca)",
    COLOURS["control"]: "var(--control)",
    HEALTHY: "var(--good)",
    COLLAPSE: "var(--bad)",
}
TEXT_AND_LINES = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
POINT = "mm-cca-point-"
"""Groups whose id is this and a number get a title and keyboard focus."""


@contextmanager
def svg_style(name: str) -> Iterator[None]:
    """Matplotlib's settings for a figure; ``name`` makes its ids unique in the page."""
    style: dict[Any, object] = {
        **dict.fromkeys(TEXT_AND_LINES, INK),
        "grid.color": INK,
        "grid.alpha": 0.15,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "svg.hashsalt": f"mm_cca {name}",
        "svg.fonttype": "none",
    }
    with mpl.rc_context(style):
        yield


def canvas(width: float, height: float) -> Figure:
    """An empty figure of ``width`` x ``height`` inches that needs no window system."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # this canvas can measure text
    return figure


def svg_of(figure: Figure, label: str, titles: Mapping[int, str]) -> str:
    """The figure as an SVG element.

    Args:
        figure: plotted inside ``svg_style``.
        label: text for screen readers.
        titles: tooltips of the groups ``POINT`` with these numbers.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for placeholder, variable in VARIABLES.items():
        text = text.replace(placeholder, variable)
    text = text.replace("'DejaVu Sans'", "system-ui")
    text = re.sub(rf'<g id="{POINT}(\d+)">', lambda m: _focusable(titles[int(m[1])]), text)
    used = set(re.findall(r'#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", text)
    role = "group" if titles else "img"
    return text.replace("<svg ", f'<svg role="{role}" aria-label="{escape(label)}" ', 1)


def _focusable(title: str) -> str:
    text = escape(title)
    return f'<g class="point" tabindex="0" role="img" aria-label="{text}"><title>{text}</title>'
