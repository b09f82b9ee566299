"""``mm-cca validate`` of hub names: small files and headers are downloaded, no weights."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mm_cca import cli
from tests.support import runs
from tests.support.checkpoints import INDEX, SINGLE, changed_weights, weights_of
from tests.support.fake_hub import FakeHub, fake_hub, use_hub

WEIGHT = "text_model.model.layers.1.mlp.down_proj.weight"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SHARDS = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
NOT_CHECKED = "Note: the weights of model.path org/{} were not checked: they are no .safetensors"


@pytest.fixture(scope="module")
def hub(
    folders: Path, hub_folders: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeHub]:
    root = tmp_path_factory.mktemp("hub")
    (root / "org").mkdir()
    for name, folder in {
        "good": folders / "emu3",
        "other": hub_folders / "janus",
        "deepseek": hub_folders / "deepseek",
        "Emu3-Chat-hf": folders / "emu3",
    }.items():
        (root / "org" / name).symlink_to(folder)
    changed_weights(folders / "emu3", root / "org" / "bad", cut=WEIGHT)
    _with_bin(folders / "emu3", root / "org" / "bin")
    _with_bin(folders / "janus", root / "org" / "bin-of-janus")
    _in_two(_with_bin(folders / "emu3", root / "org" / "two"))
    _in_two(_with_bin(folders / "emu3", root / "org" / "one-of-two")).unlink()
    no_words = _with_bin(folders / "emu3", root / "org" / "no-words")
    for file in no_words.iterdir():
        if "token" in file.name:
            file.unlink()
    both = Path(shutil.copytree(folders / "emu3", root / "org" / "both"))
    (both / BIN_INDEX).write_text(json.dumps({"weight_map": {WEIGHT: SHARDS[0]}}))
    (both / SHARDS[0]).write_bytes(b"never opened")
    with fake_hub(root) as served:
        yield served


def _with_bin(source: Path, target: Path) -> Path:
    """As many fine-tunes are: with the pickled file that older training scripts wrote."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(SINGLE, INDEX))
    torch.save(weights_of(source), target / BIN)
    return target


def _in_two(folder: Path) -> Path:
    """Divide the weights of a folder; the second file."""
    (folder / BIN).rename(folder / SHARDS[0])
    shutil.copy(folder / SHARDS[0], folder / SHARDS[1])
    places = {"one": SHARDS[0], "two": SHARDS[1]}
    (folder / BIN_INDEX).write_text(json.dumps({"weight_map": places}))
    return folder / SHARDS[1]


@pytest.fixture
def recipe(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    use_hub(hub.url, tmp_path / "cache", monkeypatch)
    hub.served.clear()
    values = runs.tiny_recipe(tmp_path, tmp_path, tmp_path / "no-data")
    values["data"]["image_size"] = [32, 32]
    return str(runs.write_recipe(tmp_path / "recipe.yaml", values))


@pytest.mark.parametrize("name", ["good", "both"])
def test_a_hub_name_is_checked_by_headers(
    name: str, recipe: str, hub: FakeHub, capsys: pytest.CaptureFixture[str]
):
    """What is sent of the weights is at most the 100,000 bytes that huggingface_hub asks for."""
    assert cli.main(["validate", recipe, f"model.path=org/{name}"]) == 0
    assert f"model.path org/{name} fits the adapter emu3" in capsys.readouterr().out
    size = (hub.root / "org" / name / SINGLE).stat().st_size
    assert hub.served[SINGLE] <= 100_001 < size
    assert not [file for file in hub.served if file.endswith(".bin")]


@pytest.mark.parametrize(
    ("name", "adapter", "told"),
    [
        ("bad", "emu3", "down_proj.weight has shape [31, 64]"),
        ("other", "emu3", "set model.adapter to janus"),
        ("none", "emu3", "neither a folder nor a repository on the hub"),
        ("bin-of-janus", "emu3", "set model.adapter to janus"),
        ("bin", "janus", "set model.adapter to emu3"),
        ("deepseek", "emu3", "set model.adapter to janus"),
        ("one-of-two", "emu3", f"such as {SHARDS[1]}: download the folder again"),
        ("no-words", "emu3", "tokenizer.json is missing"),
        ("Emu3-Chat-hf", "emu3", "is Emu3-Chat by its name"),
    ],
)
def test_a_hub_name_that_does_not_fit(
    name: str,
    adapter: str,
    told: str,
    recipe: str,
    hub: FakeHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    path = f"org/{name}"
    assert cli.main(["validate", recipe, f"model.path={path}", f"model.adapter={adapter}"]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert path in shown
    assert "Traceback" not in shown
    assert str(tmp_path) not in shown
    assert not [file for file in hub.served if file.endswith(".bin")]


@pytest.mark.parametrize(
    ("name", "adapter"), [("bin", "emu3"), ("two", "emu3"), ("deepseek", "janus")]
)
def test_weights_without_headers_are_a_note(
    name: str, adapter: str, recipe: str, hub: FakeHub, capsys: pytest.CaptureFixture[str]
):
    """Everything else is compared, and of the weights nothing is downloaded."""
    keys = [f"model.path=org/{name}", f"model.adapter={adapter}"]
    assert cli.main(["validate", recipe, *keys]) == 0
    shown = capsys.readouterr().out
    assert NOT_CHECKED.format(name) in shown
    assert "fits the adapter" not in shown
    assert "tokenizer.json" in hub.served
    assert not [file for file in hub.served if file.endswith(".bin")]


def test_a_hub_that_cannot_be_reached_is_a_note(
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    use_hub("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    assert cli.main(["validate", recipe, "model.path=org/good"]) == 0
    assert "the files of model.path org/good were not checked" in capsys.readouterr().out
