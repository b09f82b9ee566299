"""A run on Janus in DeepSeek's layout is the run on transformers' layout of the same weights.

Stock classes can't read the first, so the second, which they do read, says what is right.
"""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import JanusForConditionalGeneration

from mm_cca import load_adapter
from mm_cca.cli.commands.export import export_model
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.weights import load_source
from tests.support import runs
from tests.support.checkpoints import weights_of
from tests.support.closeness import assert_close

STAGES = ("prepare", "train", "sample")
LAYER = "model.language_model.layers.0.mlp.up_proj.weight"


def _run(folder: Path, base: Path, tuning: str) -> Path:
    """A recipe of a finished run in ``folder/run``."""
    folder.mkdir()
    values = runs.tiny_recipe(folder, base, runs.two_splits(folder / "data.parquet"))
    values["model"]["adapter"] = "janus"
    values["data"].update(image_size=[64, 64], heldout_split="heldout")
    values["train"] |= {"tuning": tuning, "max_steps": 2}
    values["train"] |= {"reference": "lora", "lora_rank": 2} if tuning == "lora" else {}
    values["sample"].update(num_images=4)
    recipe = runs.write_recipe(folder / "recipe.yaml", values)
    runs.do(recipe, stages=STAGES)
    return recipe


@pytest.fixture(scope="module", params=["lora", "full"])
def tuning(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def both(tuning: str, hub_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Recipes of the run on DeepSeek's layout and of that on transformers'."""
    root = tmp_path_factory.mktemp("runs")
    return [_run(root / name, hub_folders / name, tuning) for name in ("deepseek", "janus")]


def test_losses_are_the_same(both: list[Path]):
    own, hub = (runs.metrics(recipe.parent / "run" / "train") for recipe in both)
    assert own == hub
    assert own[0]["loss"] != own[1]["loss"]


def test_what_was_trained_is_the_same(both: list[Path], tuning: str, hub_folders: Path):
    own, hub = (weights_of(recipe.parent / "run" / "train" / "model") for recipe in both)
    assert own.keys() == hub.keys()
    for name, weight in own.items():
        assert_close(weight, hub[name], 0)
    if tuning == "full":
        base = load_adapter("janus", str(hub_folders / "deepseek")).module
        assert not torch.equal(own[LAYER], base.get_parameter(LAYER))


def test_pictures_are_the_same(both: list[Path]):
    own, hub = (
        {file.relative_to(recipe.parent): file.read_bytes() for file in _pictures(recipe)}
        for recipe in both
    )
    assert own == hub
    assert {name.parts[2] for name in own} == {"base", "base+cfg2", "cca"}
    assert len(set(own.values())) > 4


def _pictures(recipe: Path) -> list[Path]:
    return sorted((recipe.parent / "run").glob("samples/*/*.png"))


def test_an_export_is_read_by_stock_classes(
    both: list[Path], tuning: str, hub_folders: Path, tmp_path: Path
):
    """In transformers' layout; a LoRA also by peft, on the base in transformers' layout."""
    recipe, base = both[0], hub_folders / "janus"
    export_model(recipe.parent / "run", tmp_path / "out", merge=tuning == "lora")
    stock = JanusForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ours = load_source(runs.load_recipe(recipe), RunFolder.of(runs.load_recipe(recipe)), "cca")
    trained = ours.module.merge_and_unload() if tuning == "lora" else ours.module
    found, expected = stock.state_dict(), trained.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close(value, expected[name], 0)
    if tuning == "lora":
        plain = JanusForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
        adapter = str(recipe.parent / "run" / "train" / "model")
        with_peft = PeftModel.from_pretrained(plain, adapter).merge_and_unload()
        assert_close(with_peft.get_parameter(LAYER), expected[LAYER], 0)
        assert load_file(f"{adapter}/adapter_model.safetensors")
