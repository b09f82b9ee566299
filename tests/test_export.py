"""A finished run as a folder for others: plain transformers and peft read it."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import Emu3ForConditionalGeneration, GenerationConfig

from mm_cca import cli, load_adapter
from mm_cca.errors import UserError
from mm_cca.export import export_model
from mm_cca.tiny import write_tiny
from tests import runs

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
    assert load_adapter("emu3", str(tmp_path / "out")).num_codes == 64


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


def test_the_card_names_base_data_scores_and_licence(full: Path, base: Path, tmp_path: Path):
    export_model(full, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == str(base)
    assert card.data.library_name == "transformers"
    for told in ("data.parquet", "Apache-2.0", "without guidance", "| train | cca |", "lambda_"):
        assert told in card.text, told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{empty}", "{new}"], "is no run folder"),
        (["{full}", "{full}"], "exists already"),
        (["{full}", "{new}", "--merge"], "--merge is for a LoRA"),
    ],
)
def test_mistakes(
    words: list[str], told: str, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    places = {"empty": tmp_path, "new": tmp_path / "new", "full": full}
    assert cli.main(["export", *(word.format(**places) for word in words)]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_untrained_run(full: Path, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text((full / "recipe.yaml").read_text())
    with pytest.raises(UserError, match="run `mm-cca train RECIPE` to the end first"):
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
