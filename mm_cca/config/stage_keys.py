"""The keys of a recipe that decide the result of a stage."""

import hashlib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from mm_cca.config.declarations import Declared, declared
from mm_cca.config.keys import TRAIN, Decides, value_of
from mm_cca.config.paths import is_file
from mm_cca.config.schema import AnyRecipe, Recipe, TrainConfig

CONTENT = " (content)"
"""Ends the name of a setting that is the digest of what a path names; see ``Stage.settings``."""
STEPS_DONE = "steps"
"""The number of steps in the settings of a training; it may be raised (see ``Stage.grows``)."""


def settings_of(
    stage: Decides,
    recipe: AnyRecipe,
    texts: Mapping[str, Iterable[str]] | None = None,
    contents: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The keys that decide a stage's result, with their values.

    Keys without effect in this recipe are left out; files are represented by the sha256 of their
    content.

    Args:
        stage: such as ``keys.TRAIN``.
        recipe: a validated recipe.
        texts: key -> texts read from its file, for keys with ``content="texts"``.
        contents: key -> digest of what its path names, so that it may be moved.
    """
    settings: dict[str, Any] = {}
    for name, entry in declared(type(recipe)).items():
        if not _decides(stage, entry, recipe):
            continue
        value = value_of(recipe, name)
        if entry.rules.content is None:
            settings[name] = value
            if contents is not None and name in contents:
                settings[name + CONTENT] = contents[name]
        elif entry.rules.content == "texts":
            read = None if value is None or texts is None else texts[name]
            settings[f"{name} (sha256)"] = value if read is None else texts_digest(read)
        elif entry.rules.content == "words":
            settings[f"{name} (sha256)"] = _words_digest(value)
        else:
            settings[f"{name} (sha256)"] = _file_digest(value)
    return settings


def training_settings(recipe: Recipe, contents: Mapping[str, str] | None = None) -> dict[str, Any]:
    """``settings_of`` a training, and its number of steps."""
    steps = {STEPS_DONE: num_steps(recipe.train)}
    return settings_of(TRAIN, recipe, contents=contents) | steps


def num_steps(train: TrainConfig) -> int:
    """The number of optimizer steps of the whole training."""
    return train.stop_after or train.max_steps


def keys_of(stage: Decides, schema: type = Recipe) -> set[str]:
    """Dotted names of the keys that decide a stage in at least some recipes."""
    return {
        name
        for name, entry in declared(schema).items()
        if any(decision.stage == stage.stage for decision in entry.rules.decides)
    }


def reason_of(name: str) -> str:
    """Why a change of a key is refused, if its declaration says so; otherwise empty."""
    entry = declared(Recipe).get(name)
    return "" if entry is None else entry.rules.reason


def is_default(name: str, value: Any) -> bool:
    """Whether a setting is a key of a finetune recipe at its default."""
    entry = declared(Recipe).get(name.removesuffix(" (sha256)"))
    return entry is not None and not entry.required and bool(value == entry.default)


def _decides(stage: Decides, entry: Declared, recipe: AnyRecipe) -> bool:
    return any(
        decision.stage == stage.stage
        and (decision.condition is None or decision.condition.holds(recipe))
        for decision in entry.rules.decides
    )


def _file_digest(name: str | None) -> str | None:
    """sha256 of a file; a value that is not a file (``captions``) is returned unchanged."""
    if name is None or not is_file(name):
        return name
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def _words_digest(name: str | None) -> str:
    """sha256 of the built-in attribute words and the file that extends them."""
    digest = hashlib.sha256()
    digest.update(resources.files("mm_cca.negatives").joinpath("words.yaml").read_bytes())
    if name is not None:
        digest.update(Path(name).read_bytes())
    return digest.hexdigest()


def texts_digest(texts: Iterable[str]) -> str:
    """sha256 of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()
