"""data.image_size as a list of sizes, and data.buckets: what is read, and what is refused."""

from pathlib import Path

import pytest

from mm_cca.config.keys import REFERENCE, SAMPLE, TOKENS, TRAIN
from mm_cca.config.load import dump
from mm_cca.config.stage_keys import settings_of
from tests.support import runs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return runs.unread_recipe(tmp_path)


def test_a_list_of_one_size_is_that_size(path: Path):
    one, plain = runs.load_recipe(path, "data.image_size=[[16, 16]]"), runs.load_recipe(path)
    assert one == plain
    assert plain.data.buckets == []
    for stage in (TOKENS, REFERENCE, TRAIN, SAMPLE):
        assert "data.buckets" not in settings_of(stage, plain)


@pytest.mark.parametrize(
    "override",
    [
        "data.image_size=[[16, 16], [20, 12], [12, 20]]",
        "data.image_size=[[16, 16], [12, 20], [20, 12]]",
        "data.buckets=[20x12, 12x20]",
    ],
)
def test_the_order_of_buckets_decides_nothing(path: Path, override: str):
    recipe = runs.load_recipe(path, override)
    assert recipe.data.image_size == [16, 16]
    assert recipe.data.buckets == ["12x20", "20x12"]
    for stage in (TOKENS, REFERENCE, TRAIN, SAMPLE):
        assert settings_of(stage, recipe)["data.buckets"] == ["12x20", "20x12"]


def test_a_dumped_recipe_is_the_same(path: Path, tmp_path: Path):
    recipe = runs.load_recipe(path, "data.image_size=[[16, 16], [20, 12]]")
    again = tmp_path / "again.yaml"
    again.write_text(dump(recipe))
    assert runs.load_recipe(again) == recipe


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.buckets=[12x20, 12x20]"], "all values different"),
        (["data.image_size=[[16, 16], [16, 16]]"], "other sizes than data.image_size"),
        (["data.buckets=[16x16]"], "other sizes than data.image_size"),
        (["data.buckets=[auto, 12x20]"], "auto alone"),
        (["data.buckets=[12]"], "auto, or sizes such as 448x576"),
        (["data.buckets=[0x12]"], "auto, or sizes such as 448x576"),
        (["data.buckets=[12x20000]"], "auto, or sizes such as 448x576"),
        (["data.image_size=[[16, 16], [12]]"], "auto, or sizes such as 448x576"),
        (["data.image_size=[[16], [12, 20]]"], "[height, width]"),
        (["data.buckets=auto", "sample.engine=[http://a:1]"], "requests have one size"),
        (["data.buckets=auto", "loss.objective=ddo"], "pictures have one size"),
        (
            ["data.buckets=auto", "loss.gap_floor=-2", "train.reference=cached"],
            "as many columns as an image has codes",
        ),
    ],
)
def test_what_is_refused(path: Path, overrides: list[str], told: str):
    assert told in runs.message_of(path, *overrides)


def test_a_tokenizer_has_one_size():
    told = runs.message_of("emoji-tokenizer", "data.buckets=auto")
    assert "[] in a tokenizer recipe" in told
