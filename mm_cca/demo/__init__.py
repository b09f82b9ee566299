"""The embedded default: emoji drawings, their builder, and the tiny models trained on them."""

from pathlib import Path

_FOLDER = Path(__file__).parent
SHIPPED = {
    "emoji": _FOLDER / "emoji.parquet",
    "emu3-emoji": _FOLDER / "emu3-emoji",
    "emoji-clip": _FOLDER / "emoji-clip",
}


def shipped(name: str) -> str:
    """The path of a shipped data set or checkpoint; any other name comes back as it is."""
    return str(SHIPPED.get(name, name))
