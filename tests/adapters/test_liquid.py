"""The liquid adapter against stock Gemma and Chameleon's image tokenizer, on tiny weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import GemmaForCausalLM

from mm_cca import load_adapter
from mm_cca.adapters.base import FREE, Defaults
from mm_cca.adapters.check import check_checkpoint
from mm_cca.adapters.liquid import Liquid
from mm_cca.config.schema import ModelConfig
from mm_cca.errors import UserError
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.sampler import SamplingSettings, sample_codes
from mm_cca.testing.tiny import image_tokenizer_of, write_tiny
from tests.support import naive
from tests.support.closeness import assert_close

GRID = (4, 4)
PROMPTS = ["red owl, noto style", "a", "small  café owl\nand 3 “hands”"]
SAID = " Generate an image based on this description.<boi>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "liquid"
    write_tiny("liquid", folder, side=4)
    return folder


@pytest.fixture
def model(folder: Path) -> Liquid:
    model = load_adapter("liquid", str(folder), image_tokenizer=str(folder / "vqgan.ckpt"))
    model.module.eval()
    assert isinstance(model, Liquid)
    return model


@pytest.fixture(scope="module")
def stock(folder: Path) -> GemmaForCausalLM:
    return GemmaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


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


def test_codes_follow_the_tokenizers_vocabulary(model: Liquid, folder: Path):
    first = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    rows = model.image_head(whole_vocabulary=True).row_of_code
    assert rows.tolist() == [first + code for code in range(64)]
    assert (model.layout(GRID).tokens == FREE).all()
    assert model.layout(GRID).num_codes == 16


@pytest.mark.parametrize("whole", [False, True])
@torch.no_grad()
def test_logps_equal_stock_gemmas(model: Liquid, stock: GemmaForCausalLM, whole: bool):
    codes = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(1))
    rows = model.prompt_ids(PROMPTS, GRID)
    policy = CodeLogProbs(model, model.layout(GRID), whole_vocabulary=whole).eval()
    ours = policy(*left_pad(rows, model.pad_id), codes).per_code
    first = len(model._processor)
    image_ids = None if whole else torch.arange(first, first + 64)
    for row, ids in enumerate(rows):
        span = (codes[row] + first).tolist()
        expected = naive.span_logps(stock, ids, span, list(range(16)), image_ids)
        assert_close(ours[row], torch.tensor(expected), 1e-4)


@torch.no_grad()
def test_guided_greedy_codes_equal_two_plain_passes(model: Liquid, stock: GemmaForCausalLM):
    """The authors' loop: ``uncond + (cond - uncond) * scale`` of the logits, image rows only."""
    settings = SamplingSettings(guidance_scale=7.0)
    greedy = sample_codes(
        model,
        PROMPTS,
        GRID,
        torch.zeros(3, 16).numpy(),
        settings,
        pick=lambda logits, _: logits.argmax(dim=-1),
    )[0]
    first = len(model._processor)
    for row, prompt in enumerate(model.prompt_ids(PROMPTS, GRID)):
        cond, uncond, expected = list(prompt), [2, 9, 7], []
        for _ in range(16):
            c, u = (stock(torch.tensor([ids])).logits[0, -1, first:] for ids in (cond, uncond))
            expected.append(int((u + (c - u) * 7.0).argmax()))
            cond.append(first + expected[-1])
            uncond.append(first + expected[-1])
        assert greedy[row].tolist() == expected


def test_the_old_name_of_the_activation_means_tanh(model: Liquid, folder: Path):
    assert json.loads((folder / "config.json").read_text())["hidden_act"] == "gelu"
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


@pytest.mark.parametrize("grid", [(4, 5), (33, 33)])
def test_a_grid_that_it_was_not_trained_on(model: Liquid, grid: tuple[int, int]):
    with pytest.raises(UserError, match=r"squares of up to \[512, 512\]"):
        model.layout(grid)


def test_a_saved_folder_has_the_bases_own_files(model: Liquid, folder: Path, tmp_path: Path):
    """transformers 4, which the authors' code needs, would not understand those of today's."""
    model.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    base = json.loads((folder / "config.json").read_text())
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved == base | {"torch_dtype": "float32"}
    assert not [n for n in load_file(tmp_path / "model.safetensors") if "vqmodel" in n]


def test_without_an_image_tokenizer(folder: Path):
    with pytest.raises(UserError, match=r"holds no image tokenizer. Set model.image_tokenizer"):
        load_adapter("liquid", str(folder))


def _changed(folder: Path, target: Path, name: str, old: str, new: str) -> str:
    shutil.copytree(folder, target)
    text = (target / name).read_text()
    assert old in text
    (target / name).write_text(text.replace(old, new))
    return str(target)


def test_plain_gemma_is_refused(folder: Path, tmp_path: Path):
    path = _changed(folder, tmp_path / "x", "tokenizer.json", "<boi>", "<unused0>")
    text = (tmp_path / "x" / "tokenizer_config.json").read_text()
    (tmp_path / "x" / "tokenizer_config.json").write_text(text.replace("<boi>", "<unused0>"))
    with pytest.raises(UserError, match=r"no <boi>\. This is the plain gemma"):
        load_adapter("liquid", path, image_tokenizer=str(folder / "vqgan.ckpt"))


def test_a_vocabulary_without_room_for_the_codes(folder: Path, tmp_path: Path):
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    path = _changed(
        folder, tmp_path / "x", "config.json", f'"vocab_size": {rows}', f'"vocab_size": {rows - 64}'
    )
    with pytest.raises(UserError, match=f"a vocabulary of {rows - 64} tokens, but .* are {rows}"):
        load_adapter("liquid", path, image_tokenizer=str(folder / "vqgan.ckpt"))


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


@pytest.mark.parametrize("other", ["janus", "simplear"])
def test_folders_of_other_families(folder: Path, folders: Path, other: str):
    with pytest.raises(UserError, match=f"set model.adapter to {other}"):
        load_adapter("liquid", str(folders / other), image_tokenizer=str(folder / "vqgan.ckpt"))
    tokenizer = image_tokenizer_of(other, folders / other)
    with pytest.raises(UserError, match=r"set model\.adapter to liquid"):
        load_adapter(other, str(folder), image_tokenizer=tokenizer)


def test_validate_reads_no_weights(folder: Path, model: Liquid):
    config = ModelConfig("liquid", str(folder), image_tokenizer=str(folder / "vqgan.ckpt"))
    assert check_checkpoint(config, [64, 64]) == sum(p.numel() for p in model.module.parameters())
