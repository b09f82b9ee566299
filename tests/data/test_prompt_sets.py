"""The prompts that come with the package: what each says is what ``eval.attributes`` asks about."""

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


def test_enough_of_every_kind_and_none_twice():
    counts = Counter(line["kind"] for line in LINES)
    assert tuple(counts) == KINDS
    assert min(counts.values()) >= 48
    assert len({line["text"] for line in LINES}) == len(LINES) == 300


def test_a_prompt_has_one_attribute():
    words = load_words(None)
    found = {line["text"]: variants(line["text"], words) for line in LINES}
    kinds = {line["text"]: [line["kind"]] for line in LINES}
    assert {text: list(each) for text, each in found.items()} == kinds
    assert all(texts for each in found.values() for texts in each.values())


def test_values_of_a_kind_come_equally_often():
    """Each prompt's variants are the other values, so the own one is what no variant has."""
    words = load_words(None)
    for kind in ("colour", "number", "material"):
        mine = [line["text"] for line in LINES if line["kind"] == kind]
        values = Counter(
            next(word for word in text.split() if word not in " ".join(variants(text, words)[kind]))
            for text in mine
        )
        assert len(set(values.values())) == 1, values


def test_its_name_is_enough():
    assert read_prompts("attributes") == [line["text"] for line in LINES]


def test_another_name_is_told_what_there_is(tmp_path: Path):
    with pytest.raises(UserError, match="a set that is shipped: attributes"):
        read_prompts("atributes")
    recipe = runs.unread_recipe(tmp_path)
    told = runs.message_of(recipe, "sample.prompts=a.pdf", "eval.metrics=[alignment]")
    assert "a built-in set: attributes" in told
