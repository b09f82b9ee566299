"""Values and files that no recipe may hold: told in one message, quickly, whatever the key.

A sample of all combinations runs by default; ``MM_CCA_ALL_FAULTS=1 pytest tests/config`` runs all.
"""

import os
import random
from pathlib import Path

import pytest

from mm_cca.config.declarations import declared
from mm_cca.config.load import load_config
from mm_cca.config.schema import JOBS
from mm_cca.errors import UserError
from tests.support.bad_values import TOO_LONG, VALUES, files
from tests.support.runs import load_recipe, unread_recipe

RECIPES = {"finetune": "emoji", "scorer": "emoji-scorer", "tokenizer": "emoji-tokenizer"}
KEYS = [(RECIPES[job], key) for job, schema in JOBS.items() for key in declared(schema)]
ALL = bool(os.environ.get("MM_CCA_ALL_FAULTS"))
LONGEST = 7_000
"""Characters of a message; the command line of an override may be a part of it."""


def _told(recipe: str, override: str) -> str | None:
    """The message, or None if the value is taken; any other exception is the test's failure."""
    try:
        load_config(recipe, [override])
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("recipe", "key"), KEYS, ids=str)
def test_any_value_is_taken_or_told(recipe: str, key: str):
    # Too long for a path is always among them: what asks the disk about a value raises for it.
    values = VALUES if ALL else [TOO_LONG, *random.Random(key).sample(VALUES, 3)]
    for value in values:
        message = _told(recipe, f"{key}={value}")
        assert message is None or len(message) < LONGEST, (key, value[:40])


@pytest.mark.parametrize(
    "value",
    ['"\\0"', '"???"', "${data.path}", "${oc.env:HOME}", '"\\ud800"', "{a: 1}", "{}", "[[1]]"],
)
@pytest.mark.parametrize("key", ["run.dir", "data.image_column", "sample.dial", "train.seed"])
def test_no_key_takes(key: str, value: str):
    message = _told("emoji", f"{key}={value}")
    assert message is not None
    assert key in message


@pytest.mark.parametrize("value", ["1" + "0" * 32, "1" + "0" * 400, "1e30", ".inf", ".nan"])
@pytest.mark.parametrize(
    "key",
    [name for name, entry in declared(JOBS["finetune"]).items() if entry.item in (int, float)],
)
def test_no_number_is_without_a_limit(key: str, value: str):
    assert _told("emoji", f"{key}={value}") is not None


def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "not for a stranger's recipe")
    message = _told("emoji", "run.dir=${oc.env:SECRET}")
    assert message is not None
    assert "stranger" not in message


@pytest.mark.parametrize(("name", "content"), list(files()), ids=[name for name, _ in files()])
def test_a_file_that_is_no_recipe_is_told(name: str, content: bytes, tmp_path: Path):
    path = tmp_path / f"{name}.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=name):
        load_config(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_recipe_that_is_no_file(make, tmp_path: Path):
    make(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="not a file"):
        load_config(str(tmp_path / "pipe.yaml"))


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "/dev/zero", ""])
def test_a_name_that_is_no_recipe(name: str):
    with pytest.raises(UserError, match="not a file"):
        load_config(name)


def test_a_key_that_appears_twice_is_named(tmp_path: Path):
    path = tmp_path / "twice.yaml"
    path.write_text("run:\n  dir: a\n  dir: b\n")
    with pytest.raises(UserError, match=r"the key dir appears twice(.|\n)*line 3"):
        load_config(str(path))


@pytest.mark.parametrize("path", ["/dev/zero", "."])
def test_attribute_words_from_no_file(path: str):
    assert "not a file" in str(_told("emoji", f"data.attribute_words={path}"))


@pytest.mark.parametrize("text", ["12:30", "010", "2024-01-01", "no"])
def test_texts_that_yaml_1_1_takes_for_something_else(text: str, tmp_path: Path):
    recipe = load_recipe(unread_recipe(tmp_path), f"run.dir={text}")
    assert recipe.run.dir == text
