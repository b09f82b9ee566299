"""The demo at 64x64 pixels: its recipes, and every stage with 256 codes on a tiny checkpoint."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mm_cca.adapters.base import grid_of
from mm_cca.adapters.emu3 import Emu3
from mm_cca.config.load import load_config
from mm_cca.config.schema import Recipe, TokenizerRecipe
from mm_cca.config.shipped import SHIPPED, command_for, how_to_make, shipped_recipes
from mm_cca.demo import small_emu3
from mm_cca.demo.jobs import _new_vq
from tests.conftest import write_checkpoint
from tests.support import runs

RECIPES = ("emoji64-tokenizer", "emoji64-pretrain", "emoji64-anneal", "emoji64")


@pytest.fixture(scope="module")
def assembled() -> tuple[Emu3, list[str]]:
    """What emoji64-tokenizer writes, but with an untrained tokenizer; and all captions."""
    recipe = load_config("emoji64-tokenizer")
    assert isinstance(recipe, TokenizerRecipe)
    config = recipe.tokenizer
    captions = pq.read_table(SHIPPED["emoji"], columns=["caption"])["caption"].to_pylist()
    vq = _new_vq(config)
    words = small_emu3.build_tokenizer(captions, config.text_vocab_size, config.num_codes)
    shape = small_emu3.DecoderShape(
        hidden_size=config.decoder_hidden_size,
        intermediate_size=config.decoder_intermediate_size,
        num_layers=config.decoder_layers,
        num_heads=config.decoder_heads,
    )
    side = recipe.data.image_size[0]
    processor = small_emu3.build_processor(words, side, vq.spatial_scale_factor)
    return Emu3(small_emu3.assemble(vq, words, shape, config.seed), processor), captions


def test_the_model_has_256_codes_and_8_to_12_million_parameters(
    assembled: tuple[Emu3, list[str]],
):
    model, _ = assembled
    grid = grid_of(model, load_config("emoji64").data.image_size)
    assert grid == (16, 16)
    assert model.layout(grid).num_codes == 256
    decoder = [p for name, p in model.module.named_parameters() if "vqmodel" not in name]
    assert 8_000_000 <= sum(p.numel() for p in decoder) <= 12_000_000


def test_every_caption_fits_before_the_image(assembled: tuple[Emu3, list[str]]):
    model, captions = assembled
    grid = (16, 16)
    room = model.max_tokens - len(model.layout(grid).tokens)
    assert max(len(ids) for ids in model.prompt_ids(captions, grid)) <= room


def test_each_recipe_continues_from_the_one_before():
    made = [f"runs/{RECIPES[0]}/model", *(f"runs/{name}/train/model" for name in RECIPES[1:3])]
    for name, path in zip(RECIPES[1:], made, strict=True):
        recipe = load_config(name)
        assert isinstance(recipe, Recipe)
        assert recipe.model.path == path
    for name, path in zip(RECIPES[:3], made, strict=True):
        assert load_config(name).run.dir == f"runs/{name}"
        assert command_for(path) == f"mm-cca run {name}"
        assert all(f"mm-cca run {name}" in _text(later) for later in RECIPES[RECIPES.index(name) :])


def test_no_constant_of_the_demo_is_changed():
    small, large = load_config("emoji"), load_config("emoji64")
    assert isinstance(small, Recipe)
    assert isinstance(large, Recipe)
    assert large.loss == small.loss
    # Checkpoints are more frequent, because a step takes longer; they decide no result.
    assert _without(large.train, "save_every") == _without(small.train, "save_every")
    assert _without(large.sample, "batch_size") == _without(small.sample, "batch_size")


def test_only_a_missing_path_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = "runs/emoji64-data/emoji.parquet"
    assert how_to_make(path) == " Make it with: python -m mm_cca.demo.build_emoji --size 64"
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    assert how_to_make(path) == ""
    assert [command_for(other) for other in ("runs/mine/model", "runs", "owner/name")] == [None] * 3


def test_all_stages_with_256_codes(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "emu3", [1, 2, 2], 64)
    data = runs.two_splits(tmp_path / "data.parquet", 8, 8)
    values = runs.tiny_recipe(tmp_path, checkpoint, data)
    values["data"] |= {"image_size": [64, 64], "heldout_split": "heldout"}
    values["train"]["max_steps"] = 1
    values["sample"]["num_images"] = 4
    path = runs.write_recipe(tmp_path / "recipe.yaml", values)
    runs.do(path, stages=["prepare", "train", "sample", "eval", "report"])
    grids = runs.grids_of(tmp_path / "run" / "report.html")
    assert [len(grid["captions"]) for grid in grids] == [4, 4]
    assert [column["name"] for column in grids[0]["columns"]] == [
        "real",
        "base",
        "base+cfg2",
        "cca",
    ]


def _text(name: str) -> str:
    return shipped_recipes()[name].read_text()


def _without(group: object, name: str) -> dict[str, object]:
    return {key: value for key, value in vars(group).items() if key != name}
