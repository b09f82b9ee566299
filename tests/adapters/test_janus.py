"""The janus adapter against stock transformers, on tiny random weights."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import JanusForConditionalGeneration, JanusProcessor

from mm_cca import load_adapter
from mm_cca.adapters.base import UnifiedModel
from mm_cca.adapters.common import from_unit_range, to_unit_range
from mm_cca.errors import UserError
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.lora import attach_lora
from mm_cca.modeling.sampler import SamplingSettings, sample_codes
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.weights import load_source
from mm_cca.testing.tiny import LAYOUTS, write_tiny
from tests.support import runs
from tests.support.closeness import assert_close

GRID = (4, 4)
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
PROMPTS = ["red owl, noto style", "a", "small waving hand and three green owls"]


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "janus"
    write_tiny("janus", folder, side=4, layout=request.param)
    return folder


@pytest.fixture
def model(folder: Path) -> UnifiedModel:
    model = load_adapter("janus", str(folder))
    model.module.eval()
    return model


@pytest.fixture(scope="module")
def stock(folder: Path) -> tuple[JanusForConditionalGeneration, JanusProcessor]:
    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, JanusProcessor.from_pretrained(folder)


def _stock_inputs(processor: JanusProcessor, prompts: list[str]):
    turns = [[{"role": "user", "content": [{"type": "text", "text": p}]}] for p in prompts]
    texts = [processor.apply_chat_template(t, add_generation_prompt=True) for t in turns]
    return processor(text=texts, generation_mode="image", padding=True, return_tensors="pt")


def test_prompt_is_the_processors(model: UnifiedModel, stock):
    for prompt in PROMPTS:
        expected = _stock_inputs(stock[1], [prompt])["input_ids"][0].tolist()
        assert model.prompt_ids([prompt], GRID) == [expected]
    text = stock[1].tokenizer.decode(model.prompt_ids(["red owl"], GRID)[0])
    assert text == ("<｜begin▁of▁sentence｜><|User|>: red owl\n\n<|Assistant|>:<begin_of_image>")


def test_the_unconditional_prompt_is_padding_between_bos_and_boi(model: UnifiedModel):
    """All but BOS and begin-of-image become padding, as in stock ``generate``."""
    ids = model.prompt_ids(["red owl"], GRID)[0]
    unconditional = model.unconditional_ids(ids, GRID)
    assert len(unconditional) == len(ids)
    assert (unconditional[0], unconditional[-1]) == (ids[0], ids[-1])
    assert set(unconditional[1:-1]) == {model.pad_id}


@torch.no_grad()
def test_guided_greedy_codes_are_those_of_stock_generate(model: UnifiedModel, stock):
    """Guidance 5, a padded batch; stock runs both halves of the batch the same way."""
    stock_model, processor = stock
    inputs = _stock_inputs(processor, PROMPTS)
    expected = stock_model.generate(
        **inputs, generation_mode="image", guidance_scale=5, do_sample=False, use_cache=True
    )
    ours, passes = sample_codes(
        model,
        PROMPTS,
        GRID,
        np.zeros((3, 16)),
        SamplingSettings(guidance_scale=5.0),
        pick=lambda logits, _: logits.argmax(dim=-1),
    )
    assert passes == 32
    assert ours.tolist() == expected.tolist()
    assert len(ours.unique()) > 5


@torch.no_grad()
def test_guidance_free_sampling_works_where_stock_refuses(model: UnifiedModel, stock):
    """Stock ``generate`` can't run with scale 1; ours takes half the passes."""
    stock_model, processor = stock
    inputs = _stock_inputs(processor, PROMPTS[:1])
    with pytest.raises(RuntimeError):
        stock_model.generate(**inputs, generation_mode="image", guidance_scale=1.0)
    codes, passes = sample_codes(model, PROMPTS, GRID, np.zeros((3, 16)), SamplingSettings())
    assert passes == 16
    assert codes.shape == (3, 16)


@torch.no_grad()
def test_logps_equal_a_loop_through_the_stock_modules(model: UnifiedModel, stock):
    stock_model, _ = stock
    codes = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(1))
    rows = model.prompt_ids(PROMPTS, GRID)
    policy = CodeLogProbs(model, model.layout(GRID), whole_vocabulary=False).eval()
    ours = policy(*left_pad(rows, model.pad_id), codes).logps
    expected = []
    for ids, image in zip(rows, codes, strict=True):
        text = stock_model.get_input_embeddings()(torch.tensor([ids]))
        total, embeds = 0.0, text
        for code in image:
            states = stock_model.model.language_model(inputs_embeds=embeds).last_hidden_state
            logits = stock_model.model.generation_head(states[:, -1])[0].double()
            total += float(logits.log_softmax(dim=-1)[code])
            step = stock_model.prepare_embeddings_for_image_generation(code.view(1, 1))
            embeds = torch.cat([embeds, step], dim=1)
        expected.append(total)
    assert_close(ours, torch.tensor(expected), 1e-4)


def _from_minus_one_to_one(pixels: torch.Tensor) -> torch.Tensor:
    """VLMImageProcessor of DeepSeek with the mean and deviation of its own folders, in numpy."""
    scaled = (pixels.numpy() * (1 / 255)).astype(np.float32)
    half = np.array(0.5, dtype=np.float32)
    return torch.from_numpy((scaled - half) / half)


def test_the_levels_of_a_pixel():
    """Every one of the 256, to the last bit; black, white and the first step by hand."""
    pixels = torch.arange(256, dtype=torch.uint8)
    levels = to_unit_range(pixels)
    assert torch.equal(levels, _from_minus_one_to_one(pixels))
    assert levels[[0, 255]].tolist() == [-1, 1]
    assert_close(levels[1], torch.tensor(-253 / 255), 1e-7)
    assert torch.equal(from_unit_range(levels), pixels)
    assert from_unit_range(torch.tensor([-1.4, 1.4])).tolist() == [0, 255]


def test_a_processor_of_clip_changes_no_code(model: UnifiedModel):
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).to(torch.uint8)
    before = model.encode(pixels)
    model._processor.image_processor.image_mean = [0.9, 0.1, 0.5]
    assert torch.equal(model.encode(pixels), before)


@torch.no_grad()
def test_pixels_are_normalised_as_deepseek_does(model: UnifiedModel, stock):
    """From -1 to 1, although the processor of one of the layouts holds CLIP's mean."""
    stock_model, _ = stock
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).to(torch.uint8)
    values = _from_minus_one_to_one(pixels)
    vq = stock_model.model.vqmodel
    latents = vq.quant_conv(vq.encoder(values)).permute(0, 2, 3, 1).flatten(1, 2)
    directions = F.normalize(vq.quantize.embedding.weight, dim=-1)
    nearest = torch.cdist(F.normalize(latents, dim=-1), directions[None]).argmin(dim=-1)
    codes = model.encode(pixels)
    assert codes.tolist() == nearest.tolist()
    assert len(codes.unique()) > 5


@torch.no_grad()
def test_encoding_is_the_stock_encoders_where_lengths_say_nothing(model: UnifiedModel, stock):
    """With a codebook of unit length, length can't change which entry is nearest."""
    vq = model.module.model.vqmodel
    vq.quantize.embedding.weight.copy_(F.normalize(vq.quantize.embedding.weight, dim=-1))
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).to(torch.uint8)
    values = _from_minus_one_to_one(pixels)
    expected = vq.encode(values).image_tokens.view(2, -1)
    assert model.encode(pixels).tolist() == expected.tolist()


@torch.no_grad()
def test_decoding_is_decode_image_tokens(model: UnifiedModel, stock):
    stock_model, _ = stock
    codes = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
    images = stock_model.decode_image_tokens(codes).permute(0, 3, 1, 2)
    shown = np.clip((images.float().numpy() + 1) / 2 * 255, 0, 255)
    expected = torch.from_numpy(shown.astype(np.uint8))
    ours = model.decode(codes, GRID)
    assert expected.shape == ours.shape == (2, 3, 64, 64)
    difference = (ours.int() - expected.int()).abs()
    # uint8 by rounding here, by truncation there.
    assert difference.max() <= 1, f"max {difference.max()}, mean {difference.float().mean():.3g}"


def test_only_one_size_can_be_drawn(model: UnifiedModel):
    with pytest.raises(UserError, match=r"\[64, 80\]; allowed for this checkpoint: \[64, 64\]"):
        model.layout((4, 5))


def test_a_lora_leaves_the_vision_tower_alone(model: UnifiedModel):
    """It has layers named q_proj too."""
    attach_lora(model, rank=2, alpha=4)
    names = [n for n, p in model.module.named_parameters() if p.requires_grad]
    assert names
    assert all("language_model" in name for name in names)


def test_the_text_head_is_frozen_unless_tied(model: UnifiedModel):
    head = model.module.lm_head
    assert any(part is head for part in model.frozen())
    head.weight = model.module.model.language_model.embed_tokens.weight
    assert not any(part is head for part in model.frozen())


def _tied(folder: Path, target: Path) -> Path:
    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("model*"))
    model.save_pretrained(target)
    assert HEAD not in load_file(target / "model.safetensors")
    return target


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_tied_text_head_goes_the_whole_way(folder: Path, tmp_path: Path, tuning: str):
    base = _tied(folder, tmp_path / "tied")
    values = runs.tiny_recipe(tmp_path, base, runs.two_splits(tmp_path / "data.parquet"))
    values["model"]["adapter"] = "janus"
    values["data"]["image_size"] = [64, 64]
    values["train"] |= {"tuning": tuning, "max_steps": 2}
    values["train"] |= {"reference": "lora", "lora_rank": 2} if tuning == "lora" else {}
    recipe = runs.do(runs.write_recipe(tmp_path / "recipe.yaml", values))
    trained = tmp_path / "run" / "train" / "model"
    before = JanusForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    if tuning == "full":
        assert HEAD not in load_file(trained / "model.safetensors")
        after = JanusForConditionalGeneration.from_pretrained(trained, dtype=torch.float32)
    else:
        loaded = JanusForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
        after = PeftModel.from_pretrained(loaded, str(trained)).merge_and_unload()
    assert after.lm_head.weight is after.get_parameter(EMBEDDING)
    moved = not torch.equal(after.get_parameter(EMBEDDING), before.get_parameter(EMBEDDING))
    assert moved == (tuning == "full")  # a LoRA leaves the embedding alone
    layer = "model.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(after.get_parameter(layer), before.get_parameter(layer))
    ours = load_source(recipe, RunFolder.of(recipe), "cca")
    if tuning == "lora":
        ours.module = ours.module.merge_and_unload()
    found, expected = ours.module.state_dict(), after.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close(value, expected[name], 0)
