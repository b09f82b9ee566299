"""Checkpoint folders as a stranger may publish them, made by rule from a good tiny one.

See tests/adapters/test_hostile_checkpoints.py. ``told`` says that a folder must be refused; any
other may be used as it is, but must end neither in a traceback nor never.
"""

from collections.abc import Iterator
from pathlib import Path

from tests.support.hostile_case import Hostile
from tests.support.hostile_configs import configs
from tests.support.hostile_texts import processors, templates, tokenizers
from tests.support.hostile_weights import pickles, weights


def hostile(folder: Path, family: str) -> Iterator[Hostile]:
    """Every case for a folder of a family, in whatever layout."""
    yield from configs(folder)
    yield from weights(folder)
    yield from pickles(folder)
    yield from tokenizers(folder)
    if (folder / "chat_template.jinja").exists():
        yield from templates(told=family == "janus")
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            yield from processors(name)
