"""The emu3 adapter does what stock transformers does, in both layouts, on tiny random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Emu3ForConditionalGeneration, Emu3Processor

from mm_cca import load_adapter
from mm_cca.adapters.base import FREE, UnifiedModel, grid_of
from mm_cca.errors import UserError
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.lora import attach_lora
from tests.support.checkpoints import changed_weights, weights_of
from tests.support.closeness import assert_close
from tests.support.hub_folders import change_json, copy_of, read_json

GRID = (4, 4)


@pytest.fixture(scope="module")
def folder(both_folders: Path) -> Path:
    """32x32 pixels, 8 to a code, as ``Emu3Processor`` takes for granted: 4x4 codes out of 64."""
    return both_folders / "emu3"


@pytest.fixture(scope="module")
def model(folder: Path) -> UnifiedModel:
    """Not changed by any test."""
    model = load_adapter("emu3", str(folder))
    model.module.eval()
    return model


@pytest.fixture(scope="module")
def stock(folder: Path) -> tuple[Emu3ForConditionalGeneration, Emu3Processor]:
    model = Emu3ForConditionalGeneration.from_pretrained(folder)
    return model.eval(), Emu3Processor.from_pretrained(folder)


def _pictures(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("prompt", ["red owl, noto style", ""])
def test_prompt_is_the_processors(model: UnifiedModel, stock, prompt: str):
    """24x24 pixels are 3x3 codes; ``ratio`` and ``image_area`` make the processor say so."""
    _, processor = stock
    expected = processor(
        text=prompt, return_for_image_generation=True, ratio="1:1", image_area=24 * 24
    )
    assert [list(size) for size in expected["image_sizes"]] == [[3, 3]]
    assert model.prompt_ids([prompt], (3, 3)) == [list(expected["input_ids"][0])]


def test_prompt_names_rows_before_columns(model: UnifiedModel, stock):
    """A square can't tell ``h*w`` from ``w*h``; here the processor itself says which is which."""
    _, processor = stock
    expected = processor(
        text="red owl", return_for_image_generation=True, ratio="2:1", image_area=16 * 32
    )
    height, width = expected["image_sizes"][0]
    assert height != width
    assert model.prompt_ids(["red owl"], (height, width)) == [list(expected["input_ids"][0])]


def test_the_unconditional_form_is_the_processors_empty_prompt(model: UnifiedModel, stock):
    _, processor = stock
    expected = processor(text="", return_for_image_generation=True, ratio="1:1", image_area=24 * 24)
    assert model.unconditional_ids([], (3, 3)) == list(expected["input_ids"][0])


def test_the_unconditional_form_keeps_the_size(model: UnifiedModel, stock):
    _, processor = stock
    ids = model.unconditional_ids([], (3, 3))
    assert processor.tokenizer.decode(ids) == "<|extra_203|><|image start|>3*3<|image token|>"
    assert model.unconditional_ids([], (3, 3), "blurry") != ids


def test_the_span_is_what_processor_and_model_build(model: UnifiedModel, stock):
    """A captioned image, filled in by ``get_image_tokens``, is our prompt and our slots."""
    original, processor = stock
    pixels = _pictures(1, 32, 32)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    inputs = processor(images=image, text="red owl<image>", return_tensors="pt")
    with torch.no_grad():
        tokens = original.model.get_image_tokens(inputs["pixel_values"], inputs["image_sizes"])
    ids = inputs["input_ids"][0].clone()
    ids[ids == processor.image_token_id] = tokens.to(ids.dtype)

    codes = model.encode(pixels)[0]
    layout = model.layout(GRID)
    span = torch.from_numpy(layout.tokens.copy())
    mapping = original.vocabulary_mapping
    span[span == FREE] = torch.tensor([mapping.img2bpe[c] for c in codes.tolist()])
    prompt = model.prompt_ids(["red owl"], GRID)[0]
    ours = prompt + span.tolist()
    assert ids[: len(ours)].tolist() == ours
    after = [
        mapping.eol_token_id,
        *processor.tokenizer.convert_tokens_to_ids(
            [processor.eof_token, processor.image_end_token]
        ),
    ]
    assert ids[len(ours) :].tolist() == after


def test_encoding_is_the_stock_encoders(model: UnifiedModel, stock):
    original, processor = stock
    pixels = _pictures(3, 32, 32)
    images = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]
    inputs = processor.image_processor(images, return_tensors="pt")
    with torch.no_grad():
        expected = original.model.vqmodel.encode(inputs["pixel_values"], inputs["image_sizes"])
    codes = model.encode(pixels)
    assert codes.tolist() == [c.flatten().tolist() for c in expected.image_tokens]
    assert len(codes.unique()) > 5, "too few codes to tell a wrong encoder from a right one"


def test_decoding_is_decode_image_tokens(model: UnifiedModel, stock):
    original, processor = stock
    codes = torch.randint(64, (2, 6), generator=torch.Generator().manual_seed(1))
    convert = original.vocabulary_mapping.convert_img2bpe
    table = torch.stack([convert(image).flatten() for image in codes.view(2, 2, 3)])
    generated = torch.cat([table, torch.zeros(2, 3, dtype=table.dtype)], dim=1)
    images = original.decode_image_tokens(image_tokens=generated, height=2, width=3)
    expected = processor.postprocess(list(images.float()), return_tensors="pt")["pixel_values"]
    ours = model.decode(codes, (2, 3))
    assert ours.shape == (2, 3, 16, 24)
    # With "pt" the stock postprocess returns all channels of all images in one row.
    difference = (ours.int() - expected.view(ours.shape).int()).abs()
    # uint8 by rounding here, by truncation there.
    assert difference.max() <= 1, f"max {difference.max()}, mean {difference.float().mean():.3g}"


def test_codes_map_to_the_vocabulary_and_back(model: UnifiedModel):
    head = model.image_head()
    whole = model.image_head(whole_vocabulary=True)
    assert head.weight.shape[0] == model.codebook_size == 64
    assert head.weight.data_ptr() != 0
    assert head.weight._base is whole.weight._base is not None, "rows must be a view, not a copy"
    for code in (0, 7, 63):
        assert_close(head.weight[head.row_of_code[code]], whole.weight[whole.row_of_code[code]], 0)


def test_layout_of_two_rows(model: UnifiedModel):
    """Three codes, end of line, three codes; nothing after the last code is needed."""
    layout = model.layout((2, 3))
    eol = model.module.vocabulary_mapping.eol_token_id
    assert layout.tokens.tolist() == [FREE, FREE, FREE, eol, FREE, FREE, FREE]
    assert layout.free_slots.tolist() == [0, 1, 2, 4, 5, 6]
    assert layout.num_codes == 6


def test_pixels_per_code(tiny_model: UnifiedModel, model: UnifiedModel):
    assert (tiny_model.pixels_per_code, model.pixels_per_code) == (4, 8)
    assert grid_of(model, (16, 24)) == (2, 3)


def test_dropout_is_off_although_the_checkpoint_has_it(both_folders: Path, tmp_path: Path):
    """Emu3's own configs ship 0.1, which moves log-probs between two calls in train mode."""
    folder = copy_of(both_folders, "emu3", tmp_path)
    text = read_json(folder / "config.json")["text_config"]
    change_json(folder / "config.json", text_config=text | {"attention_dropout": 0.5})
    model = load_adapter("emu3", str(folder))
    model.module.train()
    embeds = model.embed_text(torch.tensor([model.prompt_ids(["red owl"], GRID)[0]]))
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
    places = torch.arange(embeds.shape[1])[None]
    assert_close(
        model.hidden_states(embeds, mask, places), model.hidden_states(embeds, mask, places), 0
    )


@pytest.mark.parametrize("lora", [False, True])
def test_the_image_tokenizer_is_frozen_and_stays_in_eval_mode(folder: Path, lora: bool):
    """Also inside PEFT and a wrapper such as DDP. In train mode its batch norms would drift."""
    model = load_adapter("emu3", str(folder))
    (vq,) = model.frozen()
    text_model = model.module.model.text_model
    assert any(isinstance(layer, torch.nn.BatchNorm3d) for layer in vq.modules())
    if lora:
        attach_lora(model, rank=2, alpha=4)
    policy = CodeLogProbs(model, model.layout(GRID), whole_vocabulary=False)
    wrapped = torch.nn.Sequential(policy)
    wrapped.eval()
    wrapped.train()
    assert text_model.training
    assert not any(parameter.requires_grad for parameter in vq.parameters())
    assert not any(module.training for module in vq.modules())

    before = {name: value.clone() for name, value in vq.state_dict().items()}
    pixels = _pictures(2, 32, 32)
    codes = model.encode(pixels)
    assert torch.equal(model.encode(pixels), codes)
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())


def test_save_and_load(model: UnifiedModel, tmp_path: Path):
    model.save(tmp_path)
    again = load_adapter("emu3", str(tmp_path))
    stored = model.module.state_dict()
    for name, value in again.module.state_dict().items():
        assert torch.equal(value, stored[name]), name
    assert again.prompt_ids(["a"], GRID) == model.prompt_ids(["a"], GRID)
    assert isinstance(Emu3ForConditionalGeneration.from_pretrained(tmp_path), torch.nn.Module)


def test_a_folder_without_weights_is_refused(folder: Path, tmp_path: Path):
    for file in folder.iterdir():
        if ".safetensors" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(
        UserError, match=r"model\.safetensors is missing.*download the folder again"
    ):
        load_adapter("emu3", str(tmp_path))


def test_a_checkpoint_that_lacks_a_weight_is_refused(folder: Path, tmp_path: Path):
    """transformers would draw it at random and only write that to the log."""
    (name,) = [n for n in weights_of(folder) if n.endswith("layers.0.mlp.up_proj.weight")]
    changed_weights(folder, tmp_path, lack=name)
    with pytest.raises(UserError, match=r"lacks 1 weights, such as .*layers\.0\.mlp\.up_proj"):
        load_adapter("emu3", str(tmp_path))


@pytest.mark.parametrize("name", ["emu4", "no.such.module:Class", "mm_cca.errors:Nothing"])
def test_an_unknown_adapter_is_refused(name: str, folders: Path):
    with pytest.raises(UserError, match=r"model\.adapter"):
        load_adapter(name, str(folders / "emu3"))


def test_an_adapter_by_dotted_name(tiny_folder: Path):
    model = load_adapter("mm_cca.adapters.emu3:Emu3", str(tiny_folder))
    assert model.name == "emu3"
    assert np.prod(grid_of(model, (16, 16))) == 16
