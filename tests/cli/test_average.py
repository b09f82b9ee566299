"""``mm-cca average``: the mean of trained weights, and what can't be averaged."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from mm_cca import cli
from mm_cca.cli.commands.average import average_runs
from mm_cca.errors import UserError
from mm_cca.runs.digests import model_digests, recorded_base, weights_digest
from mm_cca.runs.folder import open_run
from mm_cca.sampling.weights import load_source
from mm_cca.testing.tiny import write_tiny
from tests.support import runs
from tests.support.training import weights

LORA = ["train.tuning=lora", "train.reference=lora", "train.lora_rank=2"]


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a, b (full), lora-a and lora-b (LoRAs of other ranks) in one folder."""
    folder = tmp_path_factory.mktemp("average")
    values = runs.tiny_recipe(folder, tiny_folder, runs.two_splits(folder / "data.parquet"))
    values["run"] |= {"tokens_dir": str(folder / "tokens"), "stages": ["prepare", "train"]}
    values["train"].update(max_steps=2, learning_rate=0.01)
    path = runs.write_recipe(folder / "recipe.yaml", values)
    for name, keys in (
        ("a", ["train.seed=0"]),
        ("b", ["train.seed=1"]),
        ("lora-a", [*LORA, "train.seed=0"]),
        ("lora-b", [*LORA, "train.seed=1", "train.lora_rank=3", "train.lora_alpha=6"]),
    ):
        runs.do(path, *keys, f"run.dir={folder / name}")
    return folder


def model_of(run: Path, *, dial: float = 1.0) -> torch.nn.Module:
    recipe, folder = open_run(run)
    return load_source(recipe, folder, "cca", dial=dial).module


@pytest.mark.parametrize(("options", "shares"), [([], (0.5, 0.5)), ([3.0, 1.0], (0.75, 0.25))])
def test_the_mean_of_full_weights(
    trained: Path, tmp_path: Path, options: list[float], shares: tuple[float, float]
):
    words = ["average", str(trained / "a"), str(trained / "b"), "--into", str(tmp_path / "mean")]
    words += ["--weights", *map(str, options)] if options else []
    assert cli.main(words) == 0
    a, b, mean = (
        weights(run / "train" / "model")
        for run in (trained / "a", trained / "b", tmp_path / "mean")
    )
    assert a.keys() == mean.keys()
    moved = [name for name in a if not torch.equal(a[name], b[name])]
    assert len(moved) > 5
    for name, value in mean.items():
        if name in moved:
            expected = shares[0] * a[name].double() + shares[1] * b[name].double()
            assert torch.allclose(value.double(), expected, rtol=0, atol=1e-6)
        else:
            assert torch.equal(value, a[name])
    assert any("vqmodel" in name for name in set(mean) - set(moved))
    recorded = json.loads((tmp_path / "mean" / "averaged.json").read_text())["runs"]
    assert [run["weight"] for run in recorded] == list(shares)
    assert [Path(run["run"]).name for run in recorded] == ["a", "b"]
    assert [run["training"]["train.seed"] for run in recorded] == [0, 1]


def updates_of(run: Path) -> dict[str, torch.Tensor]:
    """What a LoRA adds to the weight of each of its layers."""
    return {
        name: module.get_delta_weight("default")
        for name, module in model_of(run).named_modules()
        if isinstance(module, LoraLayer)
    }


@torch.no_grad()
def test_the_mean_of_loras_is_the_mean_of_their_products(trained: Path, tmp_path: Path):
    runs_of = [trained / "lora-a", trained / "lora-b"]
    average_runs(runs_of, tmp_path / "mean", [1.0, 3.0])
    a, b, mean = (updates_of(run) for run in (*runs_of, tmp_path / "mean"))
    assert len(mean) > 3
    for name, update in mean.items():
        assert a[name].abs().max() > 1e-4
        expected = 0.25 * a[name].double() + 0.75 * b[name].double()
        assert torch.allclose(update.double(), expected, rtol=0, atol=1e-6)
    loaded = open_run(tmp_path / "mean")[0].train
    assert (loaded.tuning, loaded.lora_rank, loaded.lora_alpha) == ("lora", 5, 5)
    layers = model_of(tmp_path / "mean", dial=0.5).modules()
    scales = {layer.scaling["default"] for layer in layers if isinstance(layer, LoraLayer)}
    assert scales == {0.5}


@torch.no_grad()
def test_a_mean_of_means(trained: Path, tmp_path: Path):
    for kind in ("", "lora-"):
        a, b = trained / f"{kind}a", trained / f"{kind}b"
        average_runs([a, b], tmp_path / f"{kind}one", [1.0, 1.0])
        average_runs([tmp_path / f"{kind}one", a], tmp_path / f"{kind}two", None)
        average_runs([a, b], tmp_path / f"{kind}three", [3.0, 1.0])
    two, three = (weights(tmp_path / n / "train" / "model") for n in ("two", "three"))
    assert all(torch.allclose(x, three[n], rtol=0, atol=1e-6) for n, x in two.items())
    assert cli.main(["export", str(tmp_path / "two"), str(tmp_path / "model")]) == 0
    card = ModelCard.load(tmp_path / "model" / "README.md").text
    assert "- 0.5: `one`, itself an average of 2" in card
    two, three = (updates_of(tmp_path / f"lora-{n}") for n in ("two", "three"))
    assert all(torch.allclose(x, three[n], rtol=0, atol=1e-6) for n, x in two.items())


@pytest.mark.parametrize("kind", ["", "lora-"])
def test_it_is_sampled_and_exported_like_a_run(trained: Path, tmp_path: Path, kind: str):
    mean = tmp_path / "mean"
    average_runs([trained / f"{kind}a", trained / f"{kind}b"], mean, None)
    assert cli.main(["run", str(mean / "recipe.yaml")]) == 0
    inside = runs.files_of(mean / "samples" / "cca")
    keys = [f"run.dir={tmp_path / 'other'}", f"run.trained={mean}", *(LORA if kind else [])]
    runs.do(trained / "recipe.yaml", *keys, stages=["sample"])
    outside = runs.files_of(tmp_path / "other" / "samples" / "cca")
    pictures = [name for name in inside if name.endswith(".png")]
    assert len(pictures) == 6
    assert all(inside[name] == outside[name] for name in pictures)
    settings = json.loads(inside["stage.json"])["settings"]["train"]["averaged"]
    assert [Path(name).name for name in settings] == [f"{kind}a", f"{kind}b"]
    assert cli.main(["export", str(mean), str(tmp_path / "model")]) == 0
    card = ModelCard.load(tmp_path / "model" / "README.md").text
    assert "**Average of 2 trainings**" in card
    assert f"- 0.5: `{kind}b`, objective `cca`, seed 1, 2 steps" in card
    assert str(trained) not in card.split("## Recipe")[0].replace(f"`{trained}/data.parquet`", "")
    with pytest.raises(UserError, match="was made with another recipe"):
        runs.do(mean / "recipe.yaml", stages=["train"])


def test_the_base_of_a_training_is_recorded(trained: Path, tiny_folder: Path):
    module = load_source(*open_run(trained / "a"), "base").module
    assert recorded_base(trained / "a" / "train") == weights_digest(module)
    assert recorded_base(trained / "lora-a" / "train") == weights_digest(module)


def message(folders: Sequence[Path], target: Path, given: list[float] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        average_runs(folders, target, given)
    assert not target.exists()
    return str(caught.value)


def test_runs_that_are_not_of_one_model(trained: Path, tmp_path: Path):
    a, lora, target = trained / "a", trained / "lora-a", tmp_path / "mean"
    shown = message([a, lora], target)
    assert f"train.tuning: 'full' in {a}, 'lora' in {lora}" in shown
    other = Path(shutil.copytree(trained / "b", tmp_path / "other"))
    (other / "train" / "base.json").write_text('{"weights_sha256": "123"}')
    shown = message([a, other], target)
    assert f"{a} and {other} can't be averaged" in shown
    assert f"'123' in {other}" in shown
    assert shown.count("  - ") == 1


def test_without_a_recorded_base_its_path_is_compared(trained: Path, tmp_path: Path):
    a, other = trained / "a", Path(shutil.copytree(trained / "b", tmp_path / "other"))
    (other / "train" / "base.json").unlink()
    average_runs([a, other], tmp_path / "mean", None)
    assert recorded_base(tmp_path / "mean" / "train") is None
    recipe = (other / "recipe.yaml").read_text()
    path = next(line for line in recipe.splitlines() if line.startswith("  path: "))
    (other / "recipe.yaml").write_text(recipe.replace(path, "  path: someone/else", 1))
    assert f"'someone/else' in {other}" in message([a, other], tmp_path / "second")


def test_another_size_of_the_model(trained: Path, tmp_path: Path):
    """Without digests and with the same path, the tensors themselves are compared."""
    write_tiny("emu3", tmp_path / "tiny", side=2, layout="transformers")
    other = Path(shutil.copytree(trained / "b", tmp_path / "other"))
    (other / "train" / "base.json").unlink()
    stage = json.loads((other / "train" / "stage.json").read_text())
    del stage["weights"]
    (other / "train" / "stage.json").write_text(json.dumps(stage))
    shutil.copy(tmp_path / "tiny" / "model.safetensors", other / "train" / "model")
    shown = message([trained / "a", other], tmp_path / "mean")
    assert f"{trained / 'a' / 'train' / 'model'} and {other / 'train' / 'model'} can't" in shown


def test_unfinished_and_other_runs(trained: Path, tmp_path: Path):
    a, target = trained / "a", tmp_path / "mean"
    unfinished = Path(shutil.copytree(trained / "b", tmp_path / "unfinished"))
    stage = json.loads((unfinished / "train" / "stage.json").read_text())
    (unfinished / "train" / "stage.json").write_text(json.dumps(stage | {"done": False}))
    assert "unfinished/train/model does not exist or is incomplete" in message(
        [a, unfinished], target
    )
    assert "it has no recipe.yaml" in message([a, tmp_path / "nowhere"], target)
    assert "is one run; give two or more" in message([a], target)
    assert "are the same run" in message([a, trained / "b", a], target)
    for given in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        assert "allowed: 2 numbers above 0" in message([a, trained / "b"], target, given)
    keys = [f"run.dir={tmp_path / 'sampled'}", f"run.trained={a}"]
    runs.do(trained / "recipe.yaml", *keys, stages=["sample"])
    assert f"average {a}, whose models it sampled" in message([a, tmp_path / "sampled"], target)


def test_nothing_is_overwritten(trained: Path):
    before = runs.files_of(trained / "lora-a")
    with pytest.raises(UserError, match="exists already"):
        average_runs([trained / "a", trained / "b"], trained / "lora-a", None)
    assert runs.files_of(trained / "lora-a") == before


def test_lora_of_another_kind(trained: Path, tmp_path: Path):
    other = Path(shutil.copytree(trained / "lora-b", tmp_path / "other"))
    path = other / "train" / "model" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    stage = other / "train" / "stage.json"
    digests = {"weights": model_digests(path.parent)}
    stage.write_text(json.dumps(json.loads(stage.read_text()) | digests))
    assert "its LoRA has use_dora" in message([trained / "lora-a", other], tmp_path / "mean")


def test_peft_reads_the_mean_of_loras(trained: Path, tmp_path: Path):
    average_runs([trained / "lora-a", trained / "lora-b"], tmp_path / "mean", None)
    base = load_source(*open_run(trained / "a"), "base").module
    assert PeftModel.from_pretrained(base, str(tmp_path / "mean" / "train" / "model"))
    saved = load_file(tmp_path / "mean" / "train" / "model" / "adapter_model.safetensors")
    assert {min(value.shape) for value in saved.values()} == {5}
