"""Folders and image tokenizers that the emu3p5 adapter refuses: another kind, missing, damaged."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mm_cca import load_adapter
from mm_cca.adapters.base import UnifiedModel
from mm_cca.errors import UserError
from mm_cca.testing.tiny import image_tokenizer_of

WORDS = "tokenizer_emu3_ibq"


@pytest.fixture(scope="module")
def folder(hub_folders: Path) -> Path:
    return hub_folders / "emu3p5"


def load(folder: Path, **more: object) -> UnifiedModel:
    where = {"image_tokenizer": image_tokenizer_of("emu3p5", folder)} | more
    model = load_adapter("emu3p5", str(folder), **where)
    model.module.eval()
    return model


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "Emu3", "vocab_size": 184622}, r"Emu3 \(vocabulary 184622\), not Emu3\.5"),
        ({"model_type": "emu3"}, "set model.adapter to emu3"),
        ({"model_type": "Emu3p5VisionVQ"}, "is the image tokenizer: set it as"),
        ({"vocab_size": 5}, r"missing or has no model_type"),
        ([1, 2], "can't be read by the adapter 'emu3p5'"),
    ],
)
def test_another_kind_of_folder(config: object, told: str, folder: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=told):
        load(tmp_path, image_tokenizer=image_tokenizer_of("emu3p5", folder))


def test_without_an_image_tokenizer(folder: Path):
    with pytest.raises(UserError, match=r"image_tokenizer is null; allowed.*VisionTokenizer"):
        load(folder, image_tokenizer=None)


def test_without_words(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns(WORDS))
    with pytest.raises(UserError, match=rf"no tokenizer in .*src/{WORDS}: copy that folder"):
        load(tmp_path / "copy")


@pytest.mark.parametrize("rows", [slice(0, 32), slice(0, 60)])
def test_an_image_tokenizer_with_another_codebook(folder: Path, tmp_path: Path, rows: slice):
    images = _copy_of_images(folder, tmp_path)
    tensors = load_file(images / "model.safetensors")
    name = "quantize.embedding.weight"
    save_file(tensors | {name: tensors[name][rows].clone()}, images / "model.safetensors")
    config = json.loads((images / "config.json").read_text()) | {"codebook_size": rows.stop}
    (images / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"is not \d+ text.*{rows.stop} codes.*same family"):
        load(folder, image_tokenizer=str(images))


def _copy_of_images(folder: Path, tmp_path: Path) -> Path:
    source = Path(str(image_tokenizer_of("emu3p5", folder)))
    return Path(shutil.copytree(source, tmp_path / "images"))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda at: (at / "config.json").unlink(), "missing or has no model_type"),
        (lambda at: (at / "config.json").write_text("[1]"), "can't be read"),
        (
            lambda at: (at / "config.json").write_text('{"model_type": "Emu3VisionVQ"}'),
            "holds a 'Emu3VisionVQ', not Emu3.5's image tokenizer",
        ),
        (
            lambda at: (at / "config.json").write_text('{"model_type": "Emu3p5VisionVQ"}'),
            "config.json lacks embed_dim, codebook_size, .*download it again",
        ),
        (lambda at: (at / "model.safetensors").unlink(), "lacks 243 weights, such as decoder"),
        (
            lambda at: (at / "config.json").write_text(
                (at / "config.json").read_text().replace('"ch": 32', '"ch": 64')
            ),
            r"decoder\.conv_in\.bias has shape \[128\], but config.json describes \[256\]",
        ),
        (lambda at: (at / "model.safetensors").write_bytes(b"garbage"), "can't be read"),
    ],
)
def test_a_damaged_image_tokenizer(folder: Path, tmp_path: Path, damage, told: str):
    images = _copy_of_images(folder, tmp_path)
    damage(images)
    with pytest.raises(UserError, match=rf"model\.image_tokenizer '.*{told}"):
        load(folder, image_tokenizer=str(images))


def test_a_file_instead_of_a_folder(folder: Path, tmp_path: Path):
    (tmp_path / "vqgan.ckpt").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"model\.image_tokenizer.*can't be read.*folder that holds"
    ):
        load(folder, image_tokenizer=str(tmp_path / "vqgan.ckpt"))
