"""The chameleon and lumina-mgpt adapters against stock transformers, on tiny random weights."""

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration, ChameleonProcessor

from mm_cca import load_adapter
from mm_cca.adapters.base import FREE, UnifiedModel
from mm_cca.errors import UserError
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.testing.tiny import write_tiny
from tests.support.closeness import assert_close

GRID = (4, 4)
PROMPTS = ["red owl, noto style", "a", "small waving hand and three green owls"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64x64 pixels, 16 to a code, the decoder inside as in Anole's folder."""
    folder = tmp_path_factory.mktemp("tiny") / "chameleon"
    write_tiny("chameleon", folder, side=4)
    return folder


@pytest.fixture
def model(folder: Path) -> UnifiedModel:
    model = load_adapter("chameleon", str(folder))
    model.module.eval()
    return model


@pytest.fixture(scope="module")
def stock(folder: Path) -> tuple[ChameleonForConditionalGeneration, ChameleonProcessor]:
    model = ChameleonForConditionalGeneration.from_pretrained(folder).eval()
    return model, ChameleonProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def lumina_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "lumina"
    write_tiny("lumina-mgpt", folder, side=6)
    return folder


@pytest.fixture
def lumina(lumina_folder: Path) -> UnifiedModel:
    model = load_adapter(
        "lumina-mgpt", str(lumina_folder), image_tokenizer=str(lumina_folder / "vqgan.ckpt")
    )
    model.module.eval()
    return model


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


def _copy(source: Path, target: Path) -> dict[str, torch.Tensor]:
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return load_file(target / "model.safetensors")


def test_a_folder_without_decoder_says_where_to_get_one(folder: Path, tmp_path: Path):
    weights = {n: x for n, x in _copy(folder, tmp_path).items() if "vqmodel.decoder" not in n}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no image decoder.*vqgan\.ckpt"):
        load_adapter("chameleon", str(tmp_path))


@pytest.mark.parametrize("constant", [0.0, 1e-4])
def test_untrained_image_rows_are_warned_of(
    folder: Path, tmp_path: Path, constant: float, caplog: pytest.LogCaptureFixture
):
    weights = _copy(folder, tmp_path)
    with caplog.at_level(logging.WARNING):
        load_adapter("chameleon", str(tmp_path))
    assert not [r for r in caplog.records if r.name.startswith("mm_cca")]
    ids = load_adapter("chameleon", str(folder)).image_head(whole_vocabulary=True).row_of_code
    head = weights["lm_head.weight"]
    head[ids] = head[ids[0]] + constant * torch.randn(len(ids), head.shape[1])
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        load_adapter("chameleon", str(tmp_path))
    assert "can't draw" in caplog.text
    assert "Anole" in caplog.text


def test_an_image_of_another_size_is_refused(model: UnifiedModel):
    with pytest.raises(UserError, match=r"\[64, 80\]; allowed for this checkpoint: \[64, 64\]"):
        model.layout((4, 5))


def test_luminas_span_by_hand(lumina: UnifiedModel, lumina_folder: Path):
    """item_processor.py: boi, height, width in units of 32 pixels, rows closed by 08799."""
    tokenizer = lumina._processor.tokenizer
    ids = lumina.prompt_ids(["red owl"], (4, 6))[0]
    text = "Generate an image of 96x64 according to the following prompt:\nred owl"
    said = tokenizer.decode(ids[1:-4])
    assert said == text
    assert tokenizer.convert_ids_to_tokens([ids[0], *ids[-4:]]) == [
        "<s>",
        "<reserved08706>",
        "<racm3:break>",
        "<reserved08802>",
        "<reserved08803>",
    ]
    assert lumina.unconditional_ids(ids, (4, 6)) == ids[-3:]
    newline = tokenizer.convert_tokens_to_ids("<reserved08799>")
    row = [FREE] * 6
    assert lumina.layout((4, 6)).tokens.tolist() == [
        *row,
        newline,
        *row,
        newline,
        *row,
        newline,
        *row,
    ]


def test_luminas_image_is_a_multiple_of_its_unit(lumina: UnifiedModel):
    with pytest.raises(UserError, match="multiples of 32"):
        lumina.layout((3, 4))


def test_lumina_without_its_image_tokenizer(lumina_folder: Path):
    with pytest.raises(UserError, match=r"no image decoder.*model\.image_tokenizer"):
        load_adapter("lumina-mgpt", str(lumina_folder))


@torch.no_grad()
def test_a_folder_saved_without_the_encoder_takes_it_from_the_image_tokenizer(
    lumina: UnifiedModel, lumina_folder: Path, tmp_path: Path
):
    """Converters drop ``vqmodel``; Meta's file has both halves."""
    weights = {n: x for n, x in _copy(lumina_folder, tmp_path).items() if "vqmodel" not in n}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = load_adapter(
        "lumina-mgpt", str(tmp_path), image_tokenizer=str(lumina_folder / "vqgan.ckpt")
    )
    pixels = _pictures(2, 64)
    codes = lumina.encode(pixels)
    assert torch.equal(again.encode(pixels), codes)
    assert torch.equal(again.decode(codes, (4, 4)), lumina.decode(codes, (4, 4)))
