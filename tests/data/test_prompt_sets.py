"""The built-in prompts: each has the one attribute that ``eval.attributes`` scores."""

from collections import Counter
from pathlib import Path

import pytest

from mm_cca.config.shipped import PROMPT_SETS
from mm_cca.data.prompt_files import read_prompts
from mm_cca.errors import UserError
from mm_cca.negatives import load_words, variants
from tests.support import runs

LINES = runs.json_lines(PROMPT_SETS["attributes"])
KINDS = ("colour", "number", "size", "position", "material", "style")


def test_enough_of_every_kind_and_no_repeats():
    counts = Counter(line["kind"] for line in LINES)
    assert tuple(counts) == KINDS
    assert min(counts.values()) >= 48
    assert len({line["text"] for line in LINES}) == len(LINES) == 300


def test_a_prompt_has_one_attribute():
    words = load_words(None)
    edits = {line["text"]: variants(line["text"], words) for line in LINES}
    kinds = {line["text"]: [line["kind"]] for line in LINES}
    assert {text: list(by_kind) for text, by_kind in edits.items()} == kinds
    assert all(texts for by_kind in edits.values() for texts in by_kind.values())


def test_values_of_a_kind_are_equally_frequent():
    """A prompt's variants have the other values, so its own value is the word that none has."""
    words = load_words(None)
    for kind in ("colour", "number", "material"):
        texts = [line["text"] for line in LINES if line["kind"] == kind]
        values = Counter(
            next(word for word in text.split() if word not in " ".join(variants(text, words)[kind]))
            for text in texts
        )
        assert len(set(values.values())) == 1, values


def test_a_built_in_set_by_name():
    assert read_prompts("attributes") == [line["text"] for line in LINES]


def test_an_unknown_name_lists_the_built_in_sets(tmp_path: Path):
    with pytest.raises(UserError, match="a built-in set: attributes"):
        read_prompts("atributes")
    recipe = runs.unread_recipe(tmp_path)
    message = runs.message_of(recipe, "sample.prompts=a.pdf", "eval.metrics=[alignment]")
    assert "a built-in set: attributes" in message
