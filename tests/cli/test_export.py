"""Exported models: plain transformers and peft load them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from transformers import Emu3ForConditionalGeneration, GenerationConfig

from mm_cca import cli, load_adapter
from mm_cca.cli.commands.export import export_model
from mm_cca.errors import UserError
from mm_cca.modeling.lora import bake_lora
from mm_cca.testing.tiny import write_tiny
from tests.support import runs
from tests.support.closeness import assert_close

STAGES = ["prepare", "train", "sample", "eval", "report"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "emu3"
    write_tiny("emu3", folder, side=2)
    return folder


def _run(base: Path, folder: Path, **train: object) -> Path:
    values = runs.tiny_recipe(folder, base, runs.two_splits(base.parent / "data.parquet"))
    values["train"].update(max_steps=2, **train)
    values["sample"]["num_images"] = 4
    runs.do(runs.write_recipe(folder / "recipe.yaml", values), stages=STAGES)
    return folder / "run"


@pytest.fixture(scope="module")
def full(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run(base, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"tuning": "lora", "reference": "lora", "lora_rank": 2}
    return _run(base, tmp_path_factory.mktemp("lora"), **options)


def test_full_fine_tune_is_a_plain_folder_with_guidance_off(full: Path, base: Path, tmp_path: Path):
    assert GenerationConfig.from_pretrained(base).guidance_scale == 3.0
    export_model(full, tmp_path / "out")
    model = Emu3ForConditionalGeneration.from_pretrained(tmp_path / "out")
    trained = Emu3ForConditionalGeneration.from_pretrained(full / "train" / "model").state_dict()
    state = model.state_dict()
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[name], value) for name, value in trained.items())
    assert model.generation_config.guidance_scale == 1.0
    assert load_adapter("emu3", str(tmp_path / "out")).codebook_size == 64


def test_lora_stays_an_adapter(lora: Path, base: Path, tmp_path: Path):
    export_model(lora, tmp_path / "out")
    stock = Emu3ForConditionalGeneration.from_pretrained(base)
    assert PeftModel.from_pretrained(stock, str(tmp_path / "out"))
    assert not (tmp_path / "out" / "model.safetensors").exists()


@torch.no_grad()
def test_merged_lora_gives_the_logits_of_the_adapter(lora: Path, base: Path, tmp_path: Path):
    export_model(lora, tmp_path / "out", merge=True)
    merged = Emu3ForConditionalGeneration.from_pretrained(tmp_path / "out")
    stock = Emu3ForConditionalGeneration.from_pretrained(base)
    ids = torch.tensor([[1, 5, 9, 40]])
    before = stock(input_ids=ids).logits
    model = PeftModel.from_pretrained(stock, str(lora / "train" / "model"))
    expected = model(input_ids=ids).logits
    difference = (merged(input_ids=ids).logits - expected).abs()
    assert difference.max() < 1e-4, f"max {difference.max():.3g}, mean {difference.mean():.3g}"
    assert (before - expected).abs().max() > difference.max()
    assert merged.generation_config.guidance_scale == 1.0


def _state(folder: Path) -> dict[str, torch.Tensor]:
    return Emu3ForConditionalGeneration.from_pretrained(folder).state_dict()


@torch.no_grad()
def _logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=torch.tensor([[1, 5, 9, 40]])).logits


@pytest.mark.parametrize("dial", ["0.5", "1.5", "0"])
def test_dialled_full_fine_tune_is_a_plain_folder(
    full: Path, base: Path, tmp_path: Path, dial: str
):
    assert cli.main(["export", str(full), str(tmp_path / "out"), "--dial", dial]) == 0
    found, start, end = _state(tmp_path / "out"), _state(base), _state(full / "train" / "model")
    moved = [name for name in start if not torch.equal(start[name], end[name])]
    assert len(moved) > 5
    assert found.keys() == start.keys()
    for name, value in found.items():
        expected = start[name] + float(dial) * (end[name] - start[name])
        assert_close(value, expected, 1e-6 if name in moved else 0)
    card = ModelCard.load(tmp_path / "out" / "README.md").text
    assert f"base + {dial} * (trained - base)" in card
    assert GenerationConfig.from_pretrained(tmp_path / "out").guidance_scale == 1.0


@pytest.mark.parametrize("dial", ["0.3", "1.7", "0"])
def test_dialled_lora_needs_nothing_but_peft(lora: Path, base: Path, tmp_path: Path, dial: str):
    """The same logits as peft's own scaling of the adapter as it was trained, bit for bit."""
    assert cli.main(["export", str(lora), str(tmp_path / "out"), "--dial", dial]) == 0
    stock = Emu3ForConditionalGeneration.from_pretrained(base)
    before = _logits(stock)
    found = _logits(PeftModel.from_pretrained(stock, str(tmp_path / "out")))
    model = PeftModel.from_pretrained(
        Emu3ForConditionalGeneration.from_pretrained(base), str(lora / "train" / "model")
    )
    trained = _logits(model)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scale_layer(float(dial))
    assert_close(found, _logits(model), 0)
    if dial == "0":
        assert_close(found, before, 0)
    else:
        assert (found - before).abs().max() > 1e-4
        assert (found - trained).abs().max() > 1e-4
    assert f"base + {dial} * (trained - base)" in (tmp_path / "out" / "README.md").read_text()


def test_dialled_lora_can_be_merged(lora: Path, base: Path, tmp_path: Path):
    export_model(lora, tmp_path / "adapter", dial=1.5)
    export_model(lora, tmp_path / "merged", merge=True, dial=1.5)
    stock = Emu3ForConditionalGeneration.from_pretrained(base)
    found = _logits(Emu3ForConditionalGeneration.from_pretrained(tmp_path / "merged"))
    before = _logits(stock)
    expected = _logits(PeftModel.from_pretrained(stock, str(tmp_path / "adapter")))
    assert_close(found, expected, 1e-4)
    assert (before - expected).abs().max() > 1e-3


def test_a_layer_with_an_alpha_of_its_own_is_dialled_too(lora: Path, tmp_path: Path):
    shutil.copytree(lora / "train" / "model", tmp_path / "model")
    path = tmp_path / "model" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha_pattern": {"q_proj": 6}}))
    bake_lora(tmp_path / "model", 0.5)
    config = LoraConfig.from_pretrained(str(tmp_path / "model"))
    assert (config.lora_alpha, config.alpha_pattern) == (16.0, {"q_proj": 3.0})


def test_the_card_of_dial_1_does_not_mention_a_dial(full: Path, tmp_path: Path):
    export_model(full, tmp_path / "out")
    assert "Dial" not in ModelCard.load(tmp_path / "out" / "README.md").text


def test_the_card_names_base_data_scores_and_licence(full: Path, base: Path, tmp_path: Path):
    export_model(full, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model is None, "the hub refuses a folder as the base's name"
    assert f"`{base}`" in card.text
    assert card.data.library_name == "transformers"
    for text in ("data.parquet", "Apache-2.0", "without guidance", "| train | cca |", "lambda_"):
        assert text in card.text, text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{empty}", "{new}"], "is not a run folder"),
        (["{full}", "{full}"], "exists already"),
        (["{full}", "{new}", "--merge"], "--merge is for a LoRA"),
        (["{full}", "{new}", "--dial", "-0.5"], "--dial is -0.5; allowed: 0 (the base) or more"),
        (["{full}", "{new}", "--dial", "nan"], "--dial is nan; allowed"),
    ],
)
def test_mistakes(
    words: list[str], message: str, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    places = {"empty": tmp_path, "new": tmp_path / "new", "full": full}
    assert cli.main(["export", *(word.format(**places) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("words", [[], ["--dial", "0.5"], ["--for-engine"]])
def test_a_truncated_model(
    words: list[str], full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = Path(shutil.copytree(full, tmp_path / "run"))
    file = run / "train" / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert cli.main(["export", str(run), str(tmp_path / "out"), *words]) == 2
    told = capsys.readouterr().err
    assert "model.safetensors is not the file that was written" in told
    assert f"delete {run / 'train'} and train again" in told
    assert not (tmp_path / "out").exists()


def test_an_untrained_run(full: Path, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text((full / "recipe.yaml").read_text())
    with pytest.raises(UserError, match="train the cca model to the end first"):
        export_model(tmp_path, tmp_path / "out")


def test_a_full_disk_leaves_nothing_half_written(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fails(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ModelCard, "save", fails)
    with pytest.raises(UserError, match=r"can't be written.*No space left"):
        export_model(full, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
