"""``mm-cca validate`` looks into the checkpoint's files: config, index, headers, tokenizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mm_cca import cli, load_adapter
from mm_cca.adapters.check import check_checkpoint
from mm_cca.adapters.checkpoint_files import UnreachableError
from mm_cca.config.schema import ModelConfig
from mm_cca.errors import UserError
from mm_cca.testing.tiny import FAMILIES, LAYOUTS, image_tokenizer_of, tokenizer_of, write_tiny
from tests.support import runs
from tests.support.fake_hub import FakeHub, fake_hub

SIDE = {"emu3": 32}
"""Pixels of the tiny families' images; 64 of the others."""


def _config(family: str, folder: Path) -> ModelConfig:
    return ModelConfig(
        adapter=family,
        path=str(folder),
        dtype="float32",
        image_tokenizer=image_tokenizer_of(family, folder),
        tokenizer=tokenizer_of(family, folder),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_checked_without_its_weights(family: str, layout: str, tmp_path: Path):
    """The numbers of the weights may all be wrong: they aren't read."""
    write_tiny(family, tmp_path / "tiny", side=4, layout=layout)
    config, side = _config(family, tmp_path / "tiny"), SIDE.get(family, 64)
    found = check_checkpoint(config, [side, side])
    model = load_adapter(
        family,
        config.path,
        image_tokenizer=config.image_tokenizer,
        tokenizer=config.tokenizer,
    )
    assert found == sum(parameter.numel() for parameter in model.module.parameters())


def test_deepseeks_layout_is_checked_too(tmp_path: Path):
    write_tiny("janus", tmp_path / "tiny", side=4, layout="deepseek")
    assert check_checkpoint(_config("janus", tmp_path / "tiny"), [64, 64]) > 0


@pytest.fixture(scope="module")
def emu3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one weight file, whose weights a test may change."""
    folder = tmp_path_factory.mktemp("check") / "emu3"
    write_tiny("emu3", folder, side=4, layout="transformers")
    return folder


def _changed(source: Path, target: Path, *, lack: str = "", cut: str = "") -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(target / "model.safetensors")
    kept = {n: w[:-1].clone() if n == cut else w for n, w in weights.items() if n != lack}
    assert lack in weights or cut in weights
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


WEIGHT = "text_model.model.layers.1.mlp.down_proj.weight"


def test_a_weight_that_is_missing_or_of_another_shape(emu3: Path, tmp_path: Path):
    missing = _changed(emu3, tmp_path / "missing", lack=WEIGHT)
    with pytest.raises(UserError, match=r"lacks 1 weights, such as .*layers\.1\.mlp\.down_proj"):
        check_checkpoint(_config("emu3", missing), [32, 32])
    smaller = _changed(emu3, tmp_path / "smaller", cut=WEIGHT)
    with pytest.raises(UserError, match=r"down_proj.weight has shape \[31, 64\].*\[32, 64\]"):
        check_checkpoint(_config("emu3", smaller), [32, 32])


def test_a_size_the_checkpoint_cannot_draw(emu3: Path):
    with pytest.raises(UserError, match=r"data\.image_size is \[30, 32\]; allowed"):
        check_checkpoint(_config("emu3", emu3), [30, 32])


def test_the_verb_checks_a_folder(emu3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    values = runs.tiny_recipe(tmp_path, emu3, runs.two_splits(tmp_path / "data.parquet"))
    recipe = str(runs.write_recipe(tmp_path / "recipe.yaml", values))
    assert cli.main(["validate", recipe]) == 0
    assert f"model.path {emu3} fits the adapter emu3: 0.00" in capsys.readouterr().out
    assert cli.main(["validate", recipe, "--recipe-only"]) == 0
    assert "fits the adapter" not in capsys.readouterr().out
    bad = _changed(emu3, tmp_path / "bad", lack=WEIGHT)
    assert cli.main(["validate", recipe, f"model.path={bad}"]) == 2
    assert "lacks 1 weights" in capsys.readouterr().err


@pytest.fixture(scope="module")
def hub(emu3: Path, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("hub")
    (root / "org").mkdir()
    (root / "org" / "good").symlink_to(emu3)
    _changed(emu3, root / "org" / "bad", cut=WEIGHT)
    write_tiny("janus", root / "org" / "other", side=4)
    with fake_hub(root) as served:
        yield served


def _validate(hub: FakeHub, tmp_path: Path, name: str, **environment: str):
    values = runs.tiny_recipe(tmp_path, tmp_path, tmp_path / "no-data")
    values["model"]["path"] = f"org/{name}"
    recipe = runs.write_recipe(tmp_path / "recipe.yaml", values)
    return subprocess.run(
        [sys.executable, "-m", "mm_cca.cli", "validate", str(recipe)],
        env=os.environ
        | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_hub_name_is_checked_by_headers(hub: FakeHub, tmp_path: Path):
    """What is sent of the weights is at most the 100,000 bytes that huggingface_hub asks for."""
    hub.served.clear()
    done = _validate(hub, tmp_path, "good")
    assert done.returncode == 0, done.stderr
    assert "model.path org/good fits the adapter emu3" in done.stdout
    size = (hub.root / "org" / "good" / "model.safetensors").stat().st_size
    assert hub.served["model.safetensors"] <= 100_001 < size


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bad", "down_proj.weight has shape [31, 64]"),
        ("other", "set model.adapter to janus"),
        ("none", "neither a folder nor a repository on the hub"),
    ],
)
def test_a_hub_name_that_does_not_fit(hub: FakeHub, tmp_path: Path, name: str, told: str):
    done = _validate(hub, tmp_path, name)
    assert done.returncode == 2
    assert told in done.stderr
    assert f"org/{name}" in done.stderr
    assert "Traceback" not in done.stderr
    assert str(tmp_path) not in done.stderr


def test_a_folder_that_is_not_there_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    values = runs.tiny_recipe(tmp_path, tmp_path / "none", tmp_path / "no-data")
    assert cli.main(["validate", str(runs.write_recipe(tmp_path / "recipe.yaml", values))]) == 0
    assert (
        f"the files of model.path {tmp_path / 'none'} were not checked" in capsys.readouterr().out
    )


def test_a_hub_that_cannot_be_reached_is_a_note(hub: FakeHub, tmp_path: Path):
    done = _validate(hub, tmp_path, "good", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "the files of model.path org/good were not checked" in done.stdout


def test_without_a_network_what_was_downloaded_is_checked(
    emu3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In the hub's cache, as machines with GPUs have it."""
    from huggingface_hub import constants

    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "1"
    shutil.copytree(emu3, snapshot)
    (tmp_path / "models--org--tiny" / "refs").mkdir()
    (tmp_path / "models--org--tiny" / "refs" / "main").write_text("1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = _config("emu3", emu3)
    config.path = "org/tiny"
    assert check_checkpoint(config, [32, 32]) > 0
    config.adapter = "janus"
    with pytest.raises(UserError, match=r"set model\.adapter to emu3"):
        check_checkpoint(config, [32, 32])
    config.path = "org/never"
    with pytest.raises(UnreachableError, match="never downloaded here"):
        check_checkpoint(config, [32, 32])
