"""Liquid's prompts, files and images, on tiny weights; the rest is in test_appended_codes.py."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from mm_cca import load_adapter
from mm_cca.adapters.base import Defaults
from mm_cca.adapters.liquid import Liquid
from mm_cca.errors import UserError
from tests.support.closeness import assert_close
from tests.support.hub_folders import copy_of, read_json

GRID = (4, 4)
PROMPTS = ["red owl, noto style", "a", "small  café owl\nand 3 “hands”"]
SAID = " Generate an image based on this description.<boi>"


@pytest.fixture(scope="module")
def folder(both_folders: Path) -> Path:
    return both_folders / "liquid"


def _load(folder: Path) -> Liquid:
    model = load_adapter("liquid", str(folder), image_tokenizer=str(folder / "vqgan.ckpt"))
    model.module.eval()
    assert isinstance(model, Liquid)
    return model


@pytest.fixture(scope="module")
def model(folder: Path) -> Liquid:
    """Not changed by any test."""
    return _load(folder)


def test_ids_are_those_of_the_folders_own_tokenizer(model: Liquid, folder: Path):
    """``tokenizer.json`` as it lies there, without transformers: it puts BOS first."""
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for prompt in PROMPTS:
        (ours,) = model.prompt_ids([prompt], GRID)
        assert ours == raw.encode(prompt + SAID).ids
        assert ours[0] == 2
        assert ours[-1] == 7, "<boi> stands where Gemma has <unused0>"
    assert model.unconditional_ids([5, 6], GRID) == [2, 9, 7]
    assert model.unconditional_ids([], GRID, "blurry") == model.prompt_ids(["blurry"], GRID)[0]
    assert model.text_ids(["red owl"]) == [raw.encode("red owl").ids]


def test_gemmas_own_file_has_the_same_words_but_not_the_added_tokens(hub_folders: Path):
    """Liquid's authors changed the JSON files only, so tokenizer.model alone is not enough."""
    folder = hub_folders / "liquid"
    model = _load(folder)
    gemma = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for prompt in PROMPTS:
        assert [2, *gemma.encode(prompt)] == model.text_ids([prompt])[0]
    assert [gemma.id_to_piece(i) for i in (7, 8, 9)] == ["<unused0>", "<unused1>", "<unused2>"]


def test_a_folder_with_gemmas_own_file_alone(hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, "liquid", tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing: download the folder again"):
        _load(folder)


def test_the_old_name_of_the_activation_means_tanh(model: Liquid, hub_folders: Path):
    """Which the hub's config.json has; today's classes write the new one."""
    assert read_json(hub_folders / "liquid" / "config.json")["hidden_act"] == "gelu"
    x = torch.linspace(-3, 3, 50)
    found = model.module.model.layers[0].mlp.act_fn(x)
    assert_close(found, F.gelu(x, approximate="tanh"), 1e-6)


@torch.no_grad()
def test_images_by_the_authors_formula(model: Liquid):
    """``/ 255 * 2 - 1``, and the nearest entry of the codebook."""
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    vq = model.module.vqmodel
    latents = vq.quant_conv(vq.encoder((pixels.double() / 255 * 2 - 1).float()))
    entries = vq.quantize.embedding.weight
    for image in range(2):
        for row, column in [(0, 0), (1, 3), (3, 2)]:
            distances = (entries - latents[image, :, row, column]).square().sum(dim=1)
            code = model.encode(pixels.to(torch.uint8))[image, 4 * row + column]
            assert code == distances.argmin()


def test_the_authors_defaults():
    assert Liquid.defaults == Defaults(7.0, 0.99, 4096, 0.96)
    assert Liquid.side * 16 == 512


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ("decoder.", "lacks 'quantize.embedding.weight'"),
        ("encoder.", "holds no image decoder"),
    ],
)
def test_half_an_image_tokenizer(folder: Path, tmp_path: Path, kept: str, told: str):
    weights = torch.load(folder / "vqgan.ckpt")["state_dict"]
    half = {n: x for n, x in weights.items() if n.startswith(kept)}
    torch.save({"state_dict": half}, tmp_path / "vqgan.ckpt")
    with pytest.raises(UserError, match=told):
        load_adapter("liquid", str(folder), image_tokenizer=str(tmp_path / "vqgan.ckpt"))
