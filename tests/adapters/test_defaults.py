"""Defaults belong to a family: every one's, against the table that names the authors' source."""

from importlib import import_module
from pathlib import Path

import pytest

from mm_cca.adapters.base import Defaults
from mm_cca.config.shipped import ADAPTERS

TABLE = Path(__file__).parents[2] / "mm_cca" / "adapters" / "README.md"
VALUES = {
    "emu3": Defaults(3.0, 1.0, 2048, None),
    "emu3p5": Defaults(5.0, 1.0, 5120, None),
    "chameleon": Defaults(3.0, 0.7, None, 0.9),
    "janus": Defaults(5.0, 1.0, None, None),
    "lumina-mgpt": Defaults(4.0, 1.0, 2000, None),
    "liquid": Defaults(7.0, 0.99, 4096, 0.96),
    "simplear": Defaults(6.0, 1.0, None, None),
}
"""Copied from the authors' files, which the table names."""


def _rows() -> dict[str, list[str]]:
    text = TABLE.read_text().split("## How the authors sample")[1]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return {row[0]: row[1:] for row in rows}


def test_the_table_has_every_family_and_a_source():
    assert list(_rows()) == list(VALUES) == list(ADAPTERS)
    assert all(len(row) == 5 and "/" in row[4] for row in _rows().values())


@pytest.mark.parametrize("family", ADAPTERS)
def test_defaults_of_a_family(family: str):
    module, name = ADAPTERS[family].split(":")
    adapter = getattr(import_module(module), name)
    assert adapter.name == family
    assert vars(adapter)["defaults"] == VALUES[family], "its own, not those of a parent class"
    scale, temperature, top_k, top_p, _ = _rows()[family]
    assert VALUES[family] == Defaults(
        float(scale),
        float(temperature),
        int(top_k) if top_k else None,
        float(top_p) if top_p else None,
    )
