"""``mm-cca validate`` looks into the checkpoint's files: config, index, headers, tokenizer."""

import shutil
from pathlib import Path

import pytest

from mm_cca import cli, load_adapter
from mm_cca.adapters.check import check_checkpoint
from mm_cca.adapters.checkpoint_files import UnreachableError
from mm_cca.config.schema import ModelConfig
from mm_cca.errors import UserError
from mm_cca.testing.tiny import FAMILIES, LAYOUTS, image_tokenizer_of, tokenizer_of, write_tiny
from tests.support import runs
from tests.support.checkpoints import changed_weights

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


WEIGHT = "text_model.model.layers.1.mlp.down_proj.weight"


def test_a_weight_that_is_missing_or_of_another_shape(emu3: Path, tmp_path: Path):
    missing = changed_weights(emu3, tmp_path / "missing", lack=WEIGHT)
    with pytest.raises(UserError, match=r"lacks 1 weights, such as .*layers\.1\.mlp\.down_proj"):
        check_checkpoint(_config("emu3", missing), [32, 32])
    smaller = changed_weights(emu3, tmp_path / "smaller", cut=WEIGHT)
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
    bad = changed_weights(emu3, tmp_path / "bad", lack=WEIGHT)
    assert cli.main(["validate", recipe, f"model.path={bad}"]) == 2
    assert "lacks 1 weights" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    values = runs.tiny_recipe(tmp_path, tmp_path / "none", tmp_path / "no-data")
    assert cli.main(["validate", str(runs.write_recipe(tmp_path / "recipe.yaml", values))]) == 0
    assert (
        f"the files of model.path {tmp_path / 'none'} were not checked" in capsys.readouterr().out
    )


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
