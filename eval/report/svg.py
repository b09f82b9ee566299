"""Matplotlib figures as SVG elements that take their colours, and so light and dark, from the page.

Matplotlib only knows fixed colours, so it draws with stand-ins; in the SVG text they become CSS
variables of style.css.
"""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape

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
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
POINT = "mm-cca-point-"
"""A group with this id and a number becomes one that has a title and takes the keyboard's focus."""


@contextmanager
def inked(name: str) -> Iterator[None]:
    """Draw inside this; ``name`` makes the ids of the figure differ from those of other figures."""
    look = {
        **dict.fromkeys(INKED, INK),
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
    with mpl.rc_context(look):
        yield


def canvas(width: float, height: float) -> Figure:
    """An empty figure, in inches, that needs no window system."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # this one can measure texts
    return figure


def svg_of(figure: Figure, label: str, titles: Mapping[int, str]) -> str:
    """The figure as an SVG element.

    Args:
        figure: drawn inside ``inked``.
        label: what a screen reader says instead of it.
        titles: what is said of the groups ``POINT`` with these numbers.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, variable)
    text = text.replace("'DejaVu Sans'", "system-ui")
    text = re.sub(rf'<g id="{POINT}(\d+)">', lambda m: _focusable(titles[int(m[1])]), text)
    used = set(re.findall(r'#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", text)
    role = (
        f'role="group" aria-label="{escape(label)}"'
        if titles
        else (f'role="img" aria-label="{escape(label)}"')
    )
    return text.replace("<svg ", f"<svg {role} ", 1)


def _focusable(title: str) -> str:
    said = escape(title)
    return f'<g class="point" tabindex="0" role="img" aria-label="{said}"><title>{said}</title>'
