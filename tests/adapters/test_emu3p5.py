"""The emu3p5 adapter against stock transformers and slow, obvious code, on tiny random weights."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import ChameleonVQVAEConfig, Qwen3Config, Qwen3ForCausalLM

from mm_cca import load_adapter
from mm_cca.adapters.base import FREE, UnifiedModel
from mm_cca.adapters.emu3p5 import PRESETS, Emu3p5
from mm_cca.adapters.ibq import IBQ
from mm_cca.config.shipped import shipped_recipes
from mm_cca.errors import UserError
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.sampler import SamplingSettings, sample_codes
from mm_cca.testing.tiny import image_tokenizer_of
from tests.support.closeness import assert_close

GRID = (3, 5)
PROMPTS = ["red owl, noto style", "a", "small waving hand and three green owls"]
WORDS = "tokenizer_emu3_ibq"


@pytest.fixture(scope="module")
def folder(both_folders: Path) -> Path:
    return both_folders / "emu3p5"


def load(folder: Path, **more: object) -> UnifiedModel:
    where = {"image_tokenizer": image_tokenizer_of("emu3p5", folder)} | more
    model = load_adapter("emu3p5", str(folder), **where)
    model.module.eval()
    return model


@pytest.fixture
def model(folder: Path) -> UnifiedModel:
    return load(folder)


@pytest.fixture(scope="module")
def stock(folder: Path) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _pictures(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), generator=generator).to(torch.uint8)


def test_prompt_and_unconditional_form(model: UnifiedModel):
    """As in example_config_t2i.py, then the size that their logits processor forces."""
    decode = model._processor.decode
    size = "<|image start|>3*5<|image token|>"
    assert decode(model.prompt_ids(["red owl"], GRID)[0]) == (
        "<|extra_203|>You are a helpful assistant for t2i task. USER: red owl ASSISTANT: "
        "<|extra_100|>" + size
    )
    assert decode(model.unconditional_ids([], GRID)) == (
        "<|extra_203|>You are a helpful assistant. USER:  ASSISTANT: <|extra_100|>" + size
    )
    assert model.unconditional_ids([], GRID, "blurry") == model.prompt_ids(["blurry"], GRID)[0]
    assert decode(model.text_ids(["owl"])[0]) == "<|extra_203|>owl"


def test_braces_in_a_caption_stay_as_they_are(model: UnifiedModel):
    text = model._processor.decode(model.prompt_ids(["{prompt} {x} owl"], GRID)[0])
    assert "USER: {prompt} {x} owl ASSISTANT" in text


def test_every_layout_has_the_same_words(folders: Path, hub_folders: Path):
    both = (load(root / "emu3p5") for root in (folders, hub_folders))
    one, other = (model.prompt_ids([*PROMPTS, "café 12"], GRID) for model in both)
    assert one == other


def test_layout_is_rows_with_ends_but_none_after_the_last(model: UnifiedModel):
    end = model._processor.get_vocab()["<|extra_200|>"]
    assert model.layout((2, 3)).tokens.tolist() == [*[FREE] * 3, end, *[FREE] * 3]
    first = model._processor.get_vocab()["<|image end|>"] + 1
    assert model.image_head(whole_vocabulary=True).row_of_code.tolist() == list(
        range(first, first + 64)
    )
    assert model.pixels_per_code == 16


@torch.no_grad()
def _stock_logits(stock: Qwen3ForCausalLM, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = stock(torch.tensor([ids])).logits[0, -1].double()
    return logits


@pytest.mark.parametrize("whole", [False, True])
@torch.no_grad()
def test_logps_equal_a_loop_through_the_stock_model(model: UnifiedModel, stock, whole: bool):
    codes = torch.randint(64, (3, 15), generator=torch.Generator().manual_seed(1))
    rows = model.prompt_ids(PROMPTS, GRID)
    policy = CodeLogProbs(model, model.layout(GRID), whole_vocabulary=whole).eval()
    ours = policy(*left_pad(rows, model.pad_id), codes).logps
    first = stock.config.vocab_size - 64
    expected = []
    for prompt, image in zip(rows, codes.tolist(), strict=True):
        total, ids = 0.0, list(prompt)
        for slot in model.layout(GRID).tokens.tolist():
            if slot == FREE:
                logits = _stock_logits(stock, ids)
                code = image.pop(0)
                allowed = logits if whole else logits[first:]
                total += float(allowed.log_softmax(-1)[code + first if whole else code])
                ids.append(first + code)
            else:
                ids.append(slot)
        expected.append(total)
    assert_close(ours, torch.tensor(expected), 1e-4)


@torch.no_grad()
def test_guided_greedy_codes_are_those_of_two_passes(model: UnifiedModel, stock):
    """A padded batch with a cache against one image at a time without."""
    ours, _ = sample_codes(
        model,
        PROMPTS,
        GRID,
        np.zeros((3, 15)),
        SamplingSettings(guidance_scale=5.0),
        pick=lambda logits, _: logits.argmax(dim=-1),
    )
    first = stock.config.vocab_size - 64
    expected = []
    for prompt in model.prompt_ids(PROMPTS, GRID):
        cond, uncond = list(prompt), model.unconditional_ids(prompt, GRID)
        image = []
        for slot in model.layout(GRID).tokens.tolist():
            token = slot
            if slot == FREE:
                one, other = (_stock_logits(stock, x).log_softmax(-1) for x in (cond, uncond))
                token = first + int((other + 5.0 * (one - other))[first:].argmax())
                image.append(token - first)
            cond, uncond = [*cond, token], [*uncond, token]
        expected.append(image)
    assert ours.tolist() == expected
    assert len(ours.unique()) > 5


def _as_apertus(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder half under the names of ``Apertus1p5VisionTokenizerModel``."""
    renamed = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".down.")
        level, _, inner = rest.partition(".")
        kind, _, number = inner.partition(".")
        if part == "encoder" and kind in ("block", "attn"):
            index, _, leaf = number.partition(".")
            kind = {"block": "resnet", "attn": "attention"}[kind]
            renamed[f"encoder.stages.{level}.layers.{index}.{kind}.{leaf}"] = tensor
        elif part == "encoder" and kind == "downsample":
            renamed[f"encoder.stages.{level}.{inner}"] = tensor
        elif not name.startswith(("decoder.", "post_quant_conv.")):
            renamed[name] = tensor
    return renamed


@pytest.mark.skipif(
    "Apertus1p5VisionTokenizerModel" not in dir(transformers), reason="transformers before 5.24"
)
@torch.no_grad()
def test_codes_are_those_of_the_stock_encoder(model: UnifiedModel, folder: Path):
    config = transformers.Apertus1p5VisionTokenizerConfig(
        codebook_size=64,
        embed_dim=16,
        latent_channels=16,
        base_channels=32,
        num_res_blocks=1,
    )
    stock = transformers.Apertus1p5VisionTokenizerModel(config).eval()
    file = Path(str(image_tokenizer_of("emu3p5", folder))) / "model.safetensors"
    stock.load_state_dict(_as_apertus(load_file(file)))
    pixels = _pictures(64, 96)
    expected = stock.encode(pixels.float() / 127.5 - 1).image_tokens
    codes = model.encode(pixels)
    assert codes.tolist() == expected.flatten(1).tolist()
    assert len(codes.unique()) > 5


@torch.no_grad()
def test_the_code_is_the_largest_inner_product_not_the_nearest(model: UnifiedModel):
    vq = model._vq
    vq.quantize.embedding.weight[7] *= 100
    pixels = _pictures(48, 48)
    exact = torch.from_numpy((pixels.numpy() / 127.5 - 1).astype(np.float32))
    latents = vq.quant_conv(vq.encoder(exact)).permute(0, 2, 3, 1).flatten(1, 2)
    scores = latents @ vq.quantize.embedding.weight.T
    codes = model.encode(pixels)
    assert codes.tolist() == scores.argmax(dim=-1).tolist()
    nearest = torch.cdist(latents, vq.quantize.embedding.weight[None]).argmin(dim=-1)
    assert codes.tolist() != nearest.tolist()
    assert 7 in codes


@torch.no_grad()
def test_pieces_of_the_scores_make_no_difference(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
):
    pixels = _pictures(48, 64)
    whole = model.encode(pixels)
    monkeypatch.setattr("mm_cca.adapters.ibq.AT_ONCE", 5)
    assert torch.equal(model.encode(pixels), whole)


@torch.no_grad()
def test_decoding_is_codebook_projection_decoder(model: UnifiedModel):
    codes = torch.arange(15)[None] % 64
    vq = model._vq
    entries = vq.quantize.embedding.weight[codes[0]].T.reshape(1, 16, 3, 5)
    images = (vq.decoder(vq.post_quant_conv(entries)) + 1) * 127.5
    ours = model.decode(codes, GRID)
    assert ours.shape == (1, 3, 48, 80)
    # Rounded to whole numbers; the last bits of a sum depend on the number of threads.
    assert (ours.float() - images.clamp(0, 255)).abs().max() <= 0.5 + 1e-3


def test_saving_keeps_the_layout_without_the_image_tokenizer(
    model: UnifiedModel, folder: Path, tmp_path: Path
):
    """BAAI's code reads a config.json of its own; stock classes one of Qwen3's."""
    model.save(tmp_path)
    before, after = (
        json.loads((place / "config.json").read_text()) for place in (folder, tmp_path)
    )
    key = "torch_dtype" if before["model_type"] == "Emu3" else "dtype"
    assert after == before | {key: "float32"}
    assert (after["model_type"], after["architectures"]) in (
        ("Emu3", ["Emu3ForCausalLM"]),
        ("qwen3", ["Qwen3ForCausalLM"]),
    )
    names = load_file(tmp_path / "model.safetensors").keys()
    with torch.device("meta"):
        assert names == Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=2)).state_dict().keys()
    again = load(tmp_path, image_tokenizer=image_tokenizer_of("emu3p5", folder))
    assert again.prompt_ids(PROMPTS, GRID) == model.prompt_ids(PROMPTS, GRID)
    for name, value in again.module.state_dict().items():
        assert_close(value, model.module.get_parameter(name), 0)


def test_no_code_of_the_folders_is_run(hub_folders: Path, tmp_path: Path):
    """The real folders hold Python files that ``auto_map`` names."""
    shutil.copytree(hub_folders / "emu3p5", tmp_path / "copy")
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for place, names in (
        (".", ("configuration_emu3", "modeling_emu3", "tokenization_emu3")),
        (WORDS, ("tokenization_emu3",)),
        ("Emu3.5-VisionTokenizer", ("configuration_emu3p5visionvq", "modeling_emu3p5visionvq")),
    ):
        for name in names:
            (tmp_path / "copy" / place / f"{name}.py").write_text(trap)
    load(tmp_path / "copy")
    assert not (tmp_path / "ran").exists()


def test_the_config_of_qwen3_is_read_as_it_is(folders: Path, tmp_path: Path):
    """Where stock classes wrote it; Emu3's own rope_theta must not take the place of the file's."""
    shutil.copytree(folders / "emu3p5", tmp_path / "x")
    file = tmp_path / "x" / "config.json"
    values = json.loads(file.read_text())
    values["rope_parameters"]["rope_theta"] = 5000.0
    file.write_text(json.dumps(values))
    config = load(tmp_path / "x").module.config
    assert config.rope_parameters["rope_theta"] == 5000.0
    assert config.rms_norm_eps == 1e-5


def test_what_baais_config_leaves_out_is_what_their_class_has(hub_folders: Path, tmp_path: Path):
    shutil.copytree(hub_folders / "emu3p5", tmp_path / "x")
    file = tmp_path / "x" / "config.json"
    values = json.loads(file.read_text())
    for name in ("rms_norm_eps", "rope_theta"):
        del values[name]
    file.write_text(json.dumps(values))
    config = load(tmp_path / "x").module.config
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (1e-5, 1e6)
    assert config.attention_dropout == 0.0


@pytest.mark.parametrize("place", ["path", "image_tokenizer", "tokenizer"])
def test_the_words_are_found_in_either_folder(hub_folders: Path, tmp_path: Path, place: str):
    folder, copy = hub_folders / "emu3p5", tmp_path / "copy"
    shutil.copytree(folder, copy)
    images = Path(str(image_tokenizer_of("emu3p5", copy)))
    target = {"path": copy, "image_tokenizer": images, "tokenizer": tmp_path / "words"}[place]
    target.mkdir(exist_ok=True)
    shutil.move(copy / WORDS / "emu3.tiktoken", target / "emu3.tiktoken")
    shutil.rmtree(copy / WORDS)
    words = str(target) if place == "tokenizer" else None
    found = Emu3p5.load(str(copy), torch.float32, str(images), words)
    assert found.prompt_ids(PROMPTS, GRID) == load(folder).prompt_ids(PROMPTS, GRID)


def test_a_side_of_three_digits(model: UnifiedModel):
    assert model.layout((1, 99)).num_codes == 99
    with pytest.raises(UserError, match=r"\[16, 1600\]; allowed.*1584 pixels.*\[1024, 1024\]"):
        model.layout((1, 100))


def test_the_presets_are_about_a_million_pixels():
    """Of the authors' example_config_t2i.py; width to height is what the name says."""
    assert len(PRESETS) == 8
    for name, (rows, columns) in PRESETS.items():
        width, height = map(int, name.split(":"))
        assert columns / rows == pytest.approx(width / height, rel=0.03)
        assert 3900 <= rows * columns <= 4096


@pytest.fixture(scope="module")
def full_size() -> Emu3p5:
    """The hub's sizes without its weights."""
    special = {"<|extra_200|>": 151_846, "<|image end|>": 151_853}
    tokenizer = SimpleNamespace(get_vocab=lambda: special, pad_token_id=151_643)
    config = Qwen3Config(
        vocab_size=282_926,
        hidden_size=5120,
        intermediate_size=25_600,
        num_hidden_layers=64,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
    )
    images = ChameleonVQVAEConfig(
        num_embeddings=131_072,
        resolution=256,
        base_channels=256,
        num_res_blocks=4,
        attn_resolutions=[16],
    )
    with torch.device("meta"):
        module, vq = Qwen3ForCausalLM(config), IBQ(images)
    return Emu3p5(module, tokenizer, vq, {})


def test_sizes_of_the_real_one(full_size: Emu3p5):
    """34.1 and 0.455 billion parameters, as BAAI says; 68.21 GB of files in bfloat16."""
    header = shipped_recipes()["emu3p5-image-lora"].read_text()
    (told,) = re.findall(r"([\d.]+) GB of weights", header)
    size = {True: 0, False: 0}
    for name, parameter in full_size.module.named_parameters():
        size[name.startswith("vqmodel.")] += parameter.numel()
    assert size[False] * 2 / 1e9 == pytest.approx(68.21, abs=0.01)
    assert size[True] / 1e9 == pytest.approx(0.455, abs=0.001)
    assert float(told) == pytest.approx((size[False] * 2 + size[True] * 4) / 1e9, abs=0.1)
    assert full_size.codebook_size == 131_072
    whole = full_size.image_head(whole_vocabulary=True).row_of_code
    assert whole[[0, 131_071]].tolist() == [151_854, 282_925]
    assert full_size.pixels_per_code == 16
    layout = full_size.layout((55, 73))
    assert len(layout.tokens) == 55 * 74 - 1
    assert set(layout.tokens.tolist()) == {FREE, 151_846}
