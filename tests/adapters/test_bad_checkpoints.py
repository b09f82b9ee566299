"""Folders that an adapter must refuse: another family, another layout, weights that are missing."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from mm_cca import load_adapter
from mm_cca.config.shipped import ADAPTERS
from mm_cca.errors import UserError
from mm_cca.testing.tiny_checkpoints import write_tiny
from tests.support.third_party import checkpoint_paths


@pytest.mark.parametrize(
    ("adapter", "folder", "told"),
    [
        ("emu3", "janus", "set model.adapter to janus"),
        ("janus", "chameleon", "set model.adapter to chameleon or lumina-mgpt"),
        ("chameleon", "third-party", "no adapter reads that family"),
    ],
)
def test_a_folder_of_another_family_is_refused(adapter: str, folder: str, told: str, folders: Path):
    with pytest.raises(UserError, match=told):
        load_adapter(adapter, str(folders / folder))


@pytest.mark.parametrize("adapter", ["emu3", "janus"])
def test_an_image_tokenizer_where_none_is_wanted(adapter: str, folders: Path):
    with pytest.raises(UserError, match=rf"allowed for {adapter}: null"):
        load_adapter(adapter, str(folders / adapter), image_tokenizer="vqgan.ckpt")


@pytest.mark.parametrize(
    ("model_type", "adapter", "told"),
    [("Emu3", "emu3", "convert_emu3_weights_to_hf"), ("multi_modality", "janus", "convert_janus")],
)
def test_the_authors_own_layout_says_how_to_convert_it(
    model_type: str, adapter: str, told: str, tmp_path: Path
):
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    with pytest.raises(UserError, match=told):
        load_adapter(adapter, str(tmp_path))


@pytest.mark.parametrize("family", ADAPTERS)
def test_a_config_that_does_not_match_its_weights(family: str, folders: Path, tmp_path: Path):
    where = checkpoint_paths(folders, family)
    for file in Path(str(where["path"])).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = (tmp_path / "config.json").read_text()
    assert '"intermediate_size": 64' in text
    (tmp_path / "config.json").write_text(
        text.replace('"intermediate_size": 64', '"intermediate_size": 96')
    )
    with pytest.raises(UserError, match=f"can't be read by the adapter '{family}'"):
        load_adapter(family, str(tmp_path), image_tokenizer=where["image_tokenizer"])


@pytest.mark.parametrize("family", ADAPTERS)
def test_missing_vq_weights_are_refused(family: str, folders: Path, tmp_path: Path):
    from safetensors.torch import save_file

    for file in (folders / family).iterdir():
        if file.name != "vqgan.ckpt":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    kept = {n: x for n, x in weights.items() if "vqmodel" not in n}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks \d+ weights|does not fit|no image decoder"):
        load_adapter(family, str(tmp_path))


def test_an_unknown_tiny_family(tmp_path: Path):
    with pytest.raises(UserError, match="allowed: emu3, chameleon, janus, lumina-mgpt"):
        write_tiny("show-o", tmp_path / "x")


def test_a_tiny_checkpoint_overwrites_nothing(folders: Path):
    with pytest.raises(UserError, match="holds a checkpoint already"):
        write_tiny("janus", folders / "janus")
