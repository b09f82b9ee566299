"""Every family goes the whole way, on a tiny checkpoint in its real layout."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    ChameleonForConditionalGeneration,
    Emu3ForConditionalGeneration,
    GemmaForCausalLM,
    JanusForConditionalGeneration,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from mm_cca import cli, load_adapter
from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import grid_of
from mm_cca.cli.commands.export import export_model
from mm_cca.config.shipped import ADAPTERS
from mm_cca.errors import UserError
from mm_cca.testing.tiny import FAMILIES, LAYOUTS, image_tokenizer_of, tokenizer_of, write_tiny
from tests.support import runs
from tests.support.checkpoints import stock_lumina
from tests.support.closeness import assert_close

STOCK = {
    "emu3": Emu3ForConditionalGeneration,
    "emu3p5": Qwen3ForCausalLM,
    "chameleon": ChameleonForConditionalGeneration,
    "janus": JanusForConditionalGeneration,
    "liquid": GemmaForCausalLM,
    "simplear": Qwen2ForCausalLM,
}
APART = ("emu3p5", "liquid", "simplear")
"""Their image tokenizer is never in the checkpoint's folder."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(
    request: pytest.FixtureRequest, family: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / family
    write_tiny(family, folder, side=4, layout=request.param)
    return folder


@pytest.fixture(scope="module")
def tuning(folder: Path) -> str:
    """Each kind with one of the layouts, as neither knows of the other."""
    return "full" if folder.parent.name.startswith(LAYOUTS[0]) else "lora"


@pytest.fixture(scope="module")
def prepared(family: str, folder: Path) -> Path:
    """A recipe whose token cache is made."""
    data = runs.two_splits(folder.parent / "data.parquet")
    values = runs.tiny_recipe(folder.parent, folder, data)
    values["model"]["adapter"] = family
    values["model"]["image_tokenizer"] = image_tokenizer_of(family, folder)
    values["model"]["tokenizer"] = tokenizer_of(family, folder)
    side = 32 if family == "emu3" else 64
    values["data"].update(image_size=[side, side], heldout_split="heldout")
    values["run"]["tokens_dir"] = str(folder.parent / "tokens")
    values["train"].update(max_steps=2)
    values["sample"].update(num_images=4)
    path = runs.write_recipe(folder.parent / "recipe.yaml", values)
    runs.do(path, stages=["prepare"])
    return path


def test_whole_pipeline(family: str, folder: Path, prepared: Path, tmp_path: Path, tuning: str):
    keys = [f"run.dir={tmp_path / 'run'}", f"train.tuning={tuning}"]
    if tuning == "lora":
        keys += ["train.reference=lora", "train.lora_rank=2"]
    runs.do(prepared, *keys, stages=["train", "sample", "eval", "report"])
    first, second = runs.metrics(tmp_path / "run" / "train")
    assert abs(first["positive_gap"]) <= 1e-3
    assert first["loss"] != second["loss"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {arm["name"] for arm in report["arms"]} == {"base", "base+cfg2", "cca"}
    reloaded = _reload(family, folder, tmp_path / "run" / "train" / "model", tuning)
    before = _stock(family, folder, folder).state_dict()
    after = reloaded.state_dict()
    moved = [n for n, x in before.items() if not torch.equal(x, after[n])]
    assert moved, "training changed no weight that stock classes read"
    assert not [n for n in moved if "vqmodel" in n or "vision_model" in n]


def test_an_exported_run_is_read_by_stock_classes(
    family: str, folder: Path, prepared: Path, tmp_path: Path, tuning: str
):
    keys = [f"run.dir={tmp_path / 'run'}", f"train.tuning={tuning}"]
    if tuning == "lora":
        keys += ["train.reference=lora", "train.lora_rank=2"]
    runs.do(prepared, *keys, stages=["train"])
    expected = _reload(family, folder, tmp_path / "run" / "train" / "model", tuning).state_dict()
    export_model(tmp_path / "run", tmp_path / "out")
    _same_weights(_reload(family, folder, tmp_path / "out", tuning), expected)
    whole = tmp_path / "out"
    if tuning == "lora":
        whole = tmp_path / "merged"
        export_model(tmp_path / "run", whole, merge=True)
        _same_weights(_reload(family, folder, whole, "full"), expected)
    base = _stock(family, folder, folder).state_dict()
    assert [name for name, value in base.items() if not torch.equal(value, expected[name])]
    assert (whole / "README.md").exists()
    # It draws again: the decoder, which stock Chameleon does not know, came along.
    recipe = runs.load_recipe(prepared)
    tokenizer = recipe.model.image_tokenizer
    again = load_adapter(family, str(whole), image_tokenizer=tokenizer)  # with its text tokenizer
    first = load_checkpoint(recipe.model)
    assert again.prompt_ids(["a red owl"], (4, 4)) == first.prompt_ids(["a red owl"], (4, 4))
    grid = grid_of(again, recipe.data.image_size)
    codes = torch.arange(grid[0] * grid[1])[None] % again.codebook_size
    assert torch.equal(again.decode(codes, grid), first.decode(codes, grid))


def _same_weights(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close(value, expected[name], 0)


def _reload(family: str, base: Path, model: Path, tuning: str) -> torch.nn.Module:
    """With plain transformers, or plain peft on the plain base."""
    if tuning == "full":
        return _stock(family, model, base)
    return PeftModel.from_pretrained(_stock(family, base, base), str(model)).merge_and_unload()


def _stock(family: str, folder: Path, base: Path) -> torch.nn.Module:
    """In float32 whatever the folder's type is; Lumina-mGPT's norms are not stock's."""
    if family == "lumina-mgpt":
        return stock_lumina(folder, base / "vqgan.ckpt")
    return STOCK[family].from_pretrained(folder, dtype=torch.float32)


def test_a_full_fine_tune_keeps_the_image_decoder(family: str, prepared: Path, tmp_path: Path):
    """Chameleon's stock classes know none, so it must be written by us."""
    keys = [f"run.dir={tmp_path / 'run'}", "train.max_steps=1"]
    runs.do(prepared, *keys, stages=["train"])
    names = load_file(tmp_path / "run" / "train" / "model" / "model.safetensors").keys()
    kept = any("vqmodel" in name and "decoder" in name for name in names)
    assert kept != (family in APART)


def test_a_size_the_checkpoint_cannot_draw(prepared: Path, tmp_path: Path):
    keys = [f"run.dir={tmp_path / 'run'}", f"run.tokens_dir={tmp_path / 'tokens'}"]
    with pytest.raises(UserError, match=r"data\.image_size is \[60, 60\]; allowed"):
        runs.do(prepared, *keys, "data.image_size=[60,60]", stages=["prepare"])
    assert not list((tmp_path / "tokens").rglob("*.arrow"))


def test_a_prompt_that_leaves_no_room(folder: Path, prepared: Path, tmp_path: Path):
    rows = runs.rows_of(4, split="train")
    rows[2]["caption"] = "owl " * 300
    data = runs.write_parquet(tmp_path / "long.parquet", rows)
    keys = [f"run.dir={tmp_path / 'run'}", f"run.tokens_dir={tmp_path / 'tokens'}"]
    keys += [f"data.path={data}", "data.heldout_split=null"]
    with pytest.raises(UserError, match=r"The first is row 2: caption too long: \d+ tokens"):
        runs.do(prepared, *keys, stages=["prepare"])


def test_codes_outside_the_codebook(
    family: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An image tokenizer that does not belong to the decoder, caught at its first batch."""
    module, name = ADAPTERS[family].split(":")
    adapter = getattr(import_module(module), name)
    encode = adapter.encode
    monkeypatch.setattr(adapter, "encode", lambda self, pixels: encode(self, pixels) + 64)
    keys = [f"run.dir={tmp_path / 'run'}", f"run.tokens_dir={tmp_path / 'tokens'}"]
    with pytest.raises(UserError, match=r"gave codes \d+ to \d+, but the decoder has 0 to 63"):
        runs.do(prepared, *keys, stages=["prepare"])


def test_tiny_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["tiny", "janus", str(tmp_path / "x"), "--side", "2"]) == 0
    assert (tmp_path / "x" / "config.json").exists()
    assert cli.main(["tiny", "janus", str(tmp_path / "x")]) == 2
    assert "holds a checkpoint already" in capsys.readouterr().err
    assert cli.main(["tiny", "janus", str(tmp_path / "y"), "--side", "0"]) == 2
    assert "allowed: 1 to 256 codes" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main(["tiny", "janus", str(tmp_path / "file" / "z")]) == 2
    assert "can't be written" in capsys.readouterr().err
