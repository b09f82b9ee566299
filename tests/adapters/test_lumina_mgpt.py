"""The lumina-mgpt adapter against stock Chameleon with rows of norms repeated by hand."""

import json
from pathlib import Path

import pytest
import torch
from transformers import ChameleonForConditionalGeneration

from mm_cca import load_adapter
from mm_cca.adapters import lumina_mgpt
from mm_cca.adapters.base import FREE, Defaults, UnifiedModel
from mm_cca.errors import UserError
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.testing.tiny import LAYOUTS, write_tiny
from tests.support.checkpoints import copy_with, stock_lumina, weights_of
from tests.support.closeness import assert_close

PROMPTS = ["red owl, noto style", "a", "small waving hand and three green owls"]
QUERY_NORM = "model.layers.1.self_attn.q_norm.weight"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96x96 pixels; norms with 2 rows for 4 heads; no VQ and no tokenizer inside, as in -512."""
    folder = tmp_path_factory.mktemp("tiny") / "hub"
    write_tiny("lumina-mgpt", folder, side=6)
    return folder


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(
    request: pytest.FixtureRequest, hub: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "hub":
        return hub
    folder = tmp_path_factory.mktemp("tiny") / "lumina"
    write_tiny("lumina-mgpt", folder, side=6, layout=request.param)
    return folder


def words_of(folder: Path) -> Path:
    inner = folder / "tokenizer"
    return inner if inner.exists() else folder


def load(folder: Path, source: Path | None = None, **more: str) -> UnifiedModel:
    """``source`` is where image tokenizer and tokenizer are, if not in the folder."""
    source = folder if source is None else source
    vqgan, words = str(source / "vqgan.ckpt"), str(words_of(source))
    model = load_adapter("lumina-mgpt", str(folder), image_tokenizer=vqgan, tokenizer=words)
    model.module.eval()
    return model


@pytest.fixture
def lumina(folder: Path) -> UnifiedModel:
    return load(folder)


def test_name_and_defaults_are_its_own(lumina: UnifiedModel):
    assert lumina.name == "lumina-mgpt"
    assert lumina.defaults == Defaults(guidance_scale=4.0, temperature=1.0, top_k=2000, top_p=None)


def test_luminas_span_by_hand(lumina: UnifiedModel):
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


def test_lumina_without_its_image_tokenizer(folder: Path):
    with pytest.raises(UserError, match=r"no image decoder.*model\.image_tokenizer"):
        load_adapter("lumina-mgpt", str(folder), tokenizer=str(words_of(folder)))


@pytest.mark.parametrize("whole", [False, True])
@torch.no_grad()
def test_logps_equal_stock_chameleons(lumina: UnifiedModel, folder: Path, whole: bool):
    stock = stock_lumina(folder, folder / "vqgan.ckpt")
    codes = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(1))
    rows = lumina.prompt_ids(PROMPTS, (4, 4))
    layout = lumina.layout((4, 4))
    policy = CodeLogProbs(lumina, layout, whole_vocabulary=whole).eval()
    ours = policy(*left_pad(rows, lumina.pad_id), codes).per_code
    mapping = stock.model.vocabulary_mapping
    for row, (ids, image) in enumerate(zip(rows, codes.tolist(), strict=True)):
        span, free = layout.tokens.tolist(), layout.free_slots.tolist()
        for slot, code in zip(free, image, strict=True):
            span[slot] = mapping.img2bpe[code]
        logits = stock.lm_head(stock.model(input_ids=torch.tensor([ids + span])).last_hidden_state)
        scored = logits[0, len(ids) - 1 : -1].double()
        if not whole:
            kept = torch.full_like(scored, -torch.inf)
            kept[:, mapping.image_tokens] = scored[:, mapping.image_tokens]
            scored = kept
        logps = scored.log_softmax(-1)
        expected = torch.stack([logps[slot, span[slot]] for slot in free])
        assert_close(ours[row], expected, 1e-5)


def test_heads_of_a_row_are_trained_together_and_saved_as_the_authors_read_them(
    hub: Path, tmp_path: Path
):
    """[model_parallel_size, head_dim], and the names that config.json had in transformers 4.43."""
    model = load(hub)
    norm = model.module.get_parameter(QUERY_NORM)
    assert norm.shape == (2, 8)
    policy = CodeLogProbs(model, model.layout((4, 4)), whole_vocabulary=False).train()
    prompts = left_pad(model.prompt_ids(PROMPTS, (4, 4)), model.pad_id)
    policy(*prompts, torch.zeros(3, 16, dtype=torch.long)).logps.sum().backward()
    with torch.no_grad():
        norm += 0.1 * norm.grad.sign()
    model.save(tmp_path)
    written = weights_of(tmp_path)
    assert torch.equal(written[QUERY_NORM], norm)
    assert (written[QUERY_NORM] - weights_of(hub)[QUERY_NORM].float()).abs().min() > 0.05
    assert not any("vqmodel" in name for name in weights_of(hub))
    assert any("vqmodel.decoder" in name for name in written), "it can draw without vqgan.ckpt"
    config, before = (json.loads((f / "config.json").read_text()) for f in (tmp_path, hub))
    same = ("architectures", "model_parallel_size", "mask_image_logits", "z_loss_weight")
    same += ("rope_theta", "rope_scaling", "vocabulary_map", "max_position_embeddings")
    assert {key: config[key] for key in same} == {key: before[key] for key in same}
    again = load_adapter("lumina-mgpt", str(tmp_path))
    assert again.prompt_ids(PROMPTS, (4, 4)) == model.prompt_ids(PROMPTS, (4, 4))
    assert torch.equal(again.module.get_parameter(QUERY_NORM), norm)


def test_a_folder_of_stock_chameleon_stays_one(tmp_path: Path):
    write_tiny("lumina-mgpt", tmp_path / "base", side=4, layout="transformers")
    model = load(tmp_path / "base")
    assert type(model.module) is ChameleonForConditionalGeneration
    model.save(tmp_path / "saved")
    assert weights_of(tmp_path / "saved")[QUERY_NORM].shape == (4, 8)
    stock = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(stock.get_parameter(QUERY_NORM), model.module.get_parameter(QUERY_NORM))


def test_another_base_of_the_rotation_is_kept(hub: Path, tmp_path: Path):
    copy_with(hub, tmp_path / "base", weights_of(hub))
    change_config(tmp_path / "base", rope_theta=50_000.0)
    model = load(tmp_path / "base")
    assert model.module.config.rope_parameters["rope_theta"] == 50_000.0
    model.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["rope_theta"] == 50_000.0
    again = load_adapter("lumina-mgpt", str(tmp_path / "saved"))
    assert again.module.config.rope_parameters["rope_theta"] == 50_000.0


def test_loading_is_silent_about_weights_from_the_image_tokenizer(
    hub: Path, caplog: pytest.LogCaptureFixture
):
    load(hub)
    assert not caplog.text


@torch.no_grad()
def test_encoder_and_decoder_come_from_metas_file(lumina: UnifiedModel, folder: Path):
    stock = stock_lumina(folder, folder / "vqgan.ckpt")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=generator).to(torch.uint8)
    expected = stock.model.vqmodel.encode((pixels.double() / 127.5 - 1).float()).image_tokens
    assert torch.equal(lumina.encode(pixels), expected.view(2, -1))
    decoder = torch.load(folder / "vqgan.ckpt")["state_dict"]["decoder.conv_out.weight"]
    assert torch.equal(lumina.module.model.vqmodel.decoder.conv_out.weight, decoder)


def test_a_folder_without_tokenizer_takes_the_768_models(
    hub: Path, monkeypatch: pytest.MonkeyPatch
):
    assert lumina_mgpt.LUMINA_TOKENIZER == "Alpha-VLLM/Lumina-mGPT-7B-768"
    monkeypatch.setattr(lumina_mgpt, "LUMINA_TOKENIZER", str(hub / "tokenizer"))
    vqgan = str(hub / "vqgan.ckpt")
    model = load_adapter("lumina-mgpt", str(hub), image_tokenizer=vqgan)
    assert model.prompt_ids(PROMPTS, (4, 4)) == load(hub).prompt_ids(PROMPTS, (4, 4))
    monkeypatch.setattr(lumina_mgpt, "LUMINA_TOKENIZER", str(hub / "nowhere"))
    with pytest.raises(UserError, match=r"(?s)the tokenizer of model\.tokenizer.*Set model\.token"):
        load_adapter("lumina-mgpt", str(hub), image_tokenizer=vqgan)


def change_config(folder: Path, *without: str, **values: object) -> None:
    file = folder / "config.json"
    old = json.loads(file.read_text())
    kept = {key: value for key, value in old.items() if key not in without}
    file.write_text(json.dumps(kept | values))


def test_the_chameleon_adapter_refuses_lumina_and_the_reverse(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"is Lumina-mGPT.*has mask_image_logits.*lumina-mgpt\."):
        load_adapter("chameleon", str(folder))
    for layout in LAYOUTS:
        write_tiny("chameleon", tmp_path / layout, side=4, layout=layout)
        with pytest.raises(UserError, match=r"is Chameleon or Anole, not.*adapter to chamel"):
            load_adapter("lumina-mgpt", str(tmp_path / layout))


@pytest.mark.parametrize(
    ("architecture", "told"),
    [
        ("ChameleonXLLMXForConditionalGeneration", "has the architecture ChameleonXLLMX"),
        ("ChameleonForConditionalGeneration", r"q_norm\.weight has 2 rows for 4 heads"),
    ],
)
def test_lumina_is_told_apart_without_its_keys(
    hub: Path, tmp_path: Path, architecture: str, told: str
):
    copy_with(hub, tmp_path, weights_of(hub))
    change_config(tmp_path, "mask_image_logits", "z_loss_weight", architectures=[architecture])
    with pytest.raises(UserError, match=told):
        load_adapter("chameleon", str(tmp_path), tokenizer=str(tmp_path / "tokenizer"))
    assert load(tmp_path).name == "lumina-mgpt"


SHAPES = r"norm\.bias has shape \[2, 8\], but config\.json describes \[1, 8\] \(8 weights differ"


@pytest.mark.parametrize(
    ("rows", "told"), [(1, SHAPES), (3, r"model_parallel_size 3, which does not divide 4 heads")]
)
def test_rows_of_the_norms_that_are_not_config_jsons(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, told: str
):
    def read(*paths: object, **options: object) -> None:
        raise AssertionError("weights were read")

    copy_with(hub, tmp_path, weights_of(hub))
    change_config(tmp_path, model_parallel_size=rows)
    monkeypatch.setattr(lumina_mgpt.ChameleonXLLMXForConditionalGeneration, "from_pretrained", read)
    with pytest.raises(UserError, match=told):
        load(tmp_path)
