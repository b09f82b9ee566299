"""The chameleon adapter against stock transformers and Meta's formulas, on tiny weights."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import ChameleonForConditionalGeneration, ChameleonProcessor

from mm_cca import load_adapter
from mm_cca.adapters.base import FREE, UnifiedModel
from mm_cca.errors import UserError
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.testing.tiny import LAYOUTS, write_tiny
from tests.support.checkpoints import copy_with, weights_of
from tests.support.closeness import assert_close

GRID = (4, 4)
PROMPTS = ["red owl, noto style", "a", "small waving hand and three green owls"]


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64x64 pixels, 16 to a code, the decoder inside as in Anole's folder."""
    folder = tmp_path_factory.mktemp("tiny") / "chameleon"
    write_tiny("chameleon", folder, side=4, layout=request.param)
    return folder


@pytest.fixture
def model(folder: Path) -> UnifiedModel:
    model = load_adapter("chameleon", str(folder))
    model.module.eval()
    return model


@pytest.fixture(scope="module")
def stock(folder: Path) -> tuple[ChameleonForConditionalGeneration, ChameleonProcessor]:
    model = ChameleonForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, ChameleonProcessor.from_pretrained(folder)


def _pictures(count: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator).to(torch.uint8)


def test_prompt_is_the_processors_and_the_start_of_an_image(model: UnifiedModel, stock):
    """Chat form: BOS, text, end of turn; then the model's turn starts with the image."""
    _, processor = stock
    for prompt in PROMPTS:
        expected = processor(text=prompt)["input_ids"][0]
        ours = model.prompt_ids([prompt], GRID)[0]
        assert ours == [*expected, processor.image_start_token_id]


def test_the_unconditional_form_is_bos_and_the_start_of_an_image(model: UnifiedModel, stock):
    _, processor = stock
    ids = model.unconditional_ids([1, 2, 3], GRID)
    assert processor.tokenizer.convert_ids_to_tokens(ids) == ["<s>", "<racm3:break>"]
    assert model.unconditional_ids([], GRID, "blurry") == model.prompt_ids(["blurry"], GRID)[0]


@torch.no_grad()
def test_the_span_is_what_processor_and_model_build(model: UnifiedModel, stock):
    """An image filled in by ``get_image_tokens``: boi, permuted codes, eoi."""
    stock_model, processor = stock
    pixels = _pictures(1, 64)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    processor.image_processor.rescale_factor = 1 / 127.5  # Meta's; the hub's file has 0.0078
    processor.image_processor.size = {"shortest_edge": 64}
    processor.image_processor.crop_size = {"height": 64, "width": 64}
    inputs = processor(images=image, text="owl<image>", return_tensors="pt")
    filled = inputs["input_ids"][0].clone()
    tokens = stock_model.get_image_tokens(inputs["pixel_values"])
    filled[filled == processor.image_token_id] = tokens.flatten().to(filled.dtype)
    start = filled.tolist().index(processor.image_start_token_id)

    codes = model.encode(pixels)[0]
    layout = model.layout(GRID)
    assert (layout.tokens == FREE).all()
    mapping = stock_model.model.vocabulary_mapping
    ours = [processor.image_start_token_id, *(mapping.img2bpe[c] for c in codes.tolist())]
    assert filled[start : start + 17].tolist() == ours
    assert filled[start + 17] == processor.image_end_token_id
    assert len(codes.unique()) > 5


def test_the_map_of_codes_is_a_permutation(model: UnifiedModel, stock):
    """IMGIMG names spell the code in letters; the ids are in another order."""
    rows = model.image_head().row_of_code
    assert sorted(rows.tolist()) == list(range(64))
    assert rows.tolist() != list(range(64))
    vocabulary = stock[1].tokenizer.get_vocab()
    whole = model.image_head(whole_vocabulary=True).row_of_code
    assert whole[37] == vocabulary["IMGIMGDHZ"]
    assert whole[5] == vocabulary["IMGIMGFZ"]


@pytest.mark.parametrize("whole", [False, True])
@torch.no_grad()
def test_logps_equal_the_stock_modules(model: UnifiedModel, stock, whole: bool):
    """Stock ``forward`` masks every image logit, so the head is applied to ``.model``'s states."""
    stock_model, _ = stock
    codes = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(1))
    rows = model.prompt_ids(PROMPTS, GRID)
    policy = CodeLogProbs(model, model.layout(GRID), whole_vocabulary=whole).eval()
    ours = policy(*left_pad(rows, model.pad_id), codes).logps
    mapping = stock_model.model.vocabulary_mapping
    expected = []
    for ids, image in zip(rows, codes.tolist(), strict=True):
        tokens = [mapping.img2bpe[code] for code in image]
        hidden = stock_model.model(input_ids=torch.tensor([ids + tokens])).last_hidden_state
        logits = stock_model.lm_head(hidden)[0].double()
        if not whole:
            kept = torch.full_like(logits, -torch.inf)
            kept[:, mapping.image_tokens] = logits[:, mapping.image_tokens]
            logits = kept
        logps = logits.log_softmax(dim=-1)
        first = len(ids) - 1
        expected.append(sum(float(logps[first + n, t]) for n, t in enumerate(tokens)))
    assert_close(ours, torch.tensor(expected), 1e-4)


@torch.no_grad()
def test_decoding_looks_codes_up_in_row_order(model: UnifiedModel, stock):
    """An image of 4 x 4 codes is ``decoder(post_quant_conv(entries))``, [-1, 1] to 0..255."""
    codes = torch.arange(16)[None] * 3
    vq = model.module.model.vqmodel
    entries = torch.zeros(1, 16, 4, 4)
    for row in range(4):
        for column in range(4):
            code = codes[0, 4 * row + column]
            entries[0, :, row, column] = stock[0].model.vqmodel.quantize.embedding.weight[code]
    images = vq.decoder(stock[0].model.vqmodel.post_quant_conv(entries))
    expected = ((images.clamp(-1, 1) + 1) / 2 * 255).round().to(torch.uint8)
    ours = model.decode(codes, GRID)
    assert ours.shape == (1, 3, 64, 64)
    assert ours.float().std() > 10
    assert (ours.int() - expected.int()).abs().max() <= 1


def test_the_vq_stays_frozen_and_in_eval_mode(model: UnifiedModel):
    policy = CodeLogProbs(model, model.layout(GRID), whole_vocabulary=False).train()
    vq = model.module.model.vqmodel
    assert policy.training
    assert not any(part.training for part in vq.modules())
    assert not any(p.requires_grad for p in vq.parameters())
    assert any(name.startswith("decoder.") for name, _ in vq.named_parameters())


def test_a_folder_without_decoder_says_where_to_get_one(folder: Path, tmp_path: Path):
    kept = {n: x for n, x in weights_of(folder).items() if "vqmodel.decoder" not in n}
    copy_with(folder, tmp_path, kept)
    with pytest.raises(UserError, match=r"no image decoder.*vqgan\.ckpt"):
        load_adapter("chameleon", str(tmp_path))


@pytest.mark.parametrize("constant", [0.0, 1e-4])
def test_untrained_image_rows_are_warned_of(
    folder: Path, tmp_path: Path, constant: float, caplog: pytest.LogCaptureFixture
):
    weights = weights_of(folder)
    with caplog.at_level(logging.WARNING):
        load_adapter("chameleon", str(folder))
    assert not [r for r in caplog.records if r.name.startswith("mm_cca")]
    ids = load_adapter("chameleon", str(folder)).image_head(whole_vocabulary=True).row_of_code
    head = weights["lm_head.weight"]
    noise = constant * torch.randn(len(ids), head.shape[1])
    head[ids] = head[ids[0]] + noise.to(head.dtype)
    copy_with(folder, tmp_path, weights)
    with caplog.at_level(logging.WARNING):
        load_adapter("chameleon", str(tmp_path))
    assert "can't draw" in caplog.text
    assert "Anole" in caplog.text


def test_an_image_of_another_size_is_refused(model: UnifiedModel):
    with pytest.raises(UserError, match=r"\[64, 80\]; allowed for this checkpoint: \[64, 64\]"):
        model.layout((4, 5))


@torch.no_grad()
def test_codes_are_those_of_metas_image_tokenizer(model: UnifiedModel, stock):
    """chameleon/inference/image_tokenizer.py: x / 255, times 2, minus 1, in double; then float32.

    The image processor on the hub multiplies by 0.0078 instead, which moves codes.
    """
    pixels = _pictures(32, 64)
    levels = torch.from_numpy(np.arange(256) / 255.0 * 2 - 1).float()
    assert levels[0] == -1
    assert levels[255] == 1
    vq = stock[0].model.vqmodel
    expected = vq.encode(levels[pixels.long()]).image_tokens.view(32, -1)
    assert torch.equal(model.encode(pixels), expected)
    rounded = vq.encode(pixels * 0.0078 - 1).image_tokens.view(32, -1)
    assert not torch.equal(rounded, expected)


def test_loading_is_silent_about_the_decoder_but_not_about_a_surprise(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING, "transformers")  # a command of an earlier test hides them
    load_adapter("chameleon", str(folder))
    assert not caplog.text
    copy_with(folder, tmp_path, weights_of(folder) | {"model.a_surprise": torch.zeros(2)})
    load_adapter("chameleon", str(tmp_path))
    assert "model.a_surprise | UNEXPECTED" in caplog.text
    assert "decoder" not in caplog.text


def test_prompts_are_split_as_tokenizer_json_says(model: UnifiedModel, folder: Path):
    """Digits and punctuation one by one; LlamaTokenizer, which the hub's file names, does not."""
    exact = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for prompt in ("it's 3.14, or 2024!", "a\tblue-eyed  owl", " café 日本 🦉"):
        expected = exact.encode(prompt, add_special_tokens=False).ids
        ours = model.prompt_ids([prompt], GRID)[0]
        assert ours[1:-2] == expected


def test_another_tokenizer_must_give_the_image_tokens_the_same_ids(folder: Path, tmp_path: Path):
    write_tiny("janus", tmp_path / "janus", side=2)
    with pytest.raises(UserError, match=r"model\.tokenizer .* is not this checkpoint's: IMGIMG"):
        load_adapter("chameleon", str(folder), tokenizer=str(tmp_path / "janus"))
    same = load_adapter("chameleon", str(folder), tokenizer=str(folder))
    assert same.prompt_ids(["owl"], GRID) == load_adapter("chameleon", str(folder)).prompt_ids(
        ["owl"], GRID
    )


@pytest.mark.parametrize("number", [0, 15, 10**30])
def test_a_number_of_codes_that_no_image_has_is_told_when_it_loads(
    folder: Path, tmp_path: Path, number: int
):
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    file = damaged / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_seq_length": number}))
    with pytest.raises(UserError, match=f"image_seq_length is {number}; it must be"):
        load_adapter("chameleon", str(damaged))
