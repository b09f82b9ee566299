"""The folders for engines: stock classes read them and give our logits; prompts get our ids."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import gelu, linear
from transformers import (
    AutoConfig,
    AutoTokenizer,
    ChameleonForConditionalGeneration,
    Emu3ForConditionalGeneration,
    GemmaForCausalLM,
    LlamaForCausalLM,
    LlamaModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from mm_cca import load_adapter
from mm_cca.adapters.base import (
    FOR_ENGINES,
    FREE,
    UnifiedModel,
    missing_parts,
    refuse_without_engine,
)
from mm_cca.errors import UserError
from mm_cca.testing.tiny import FAMILIES, LAYOUTS, image_tokenizer_of, tokenizer_of, write_tiny
from tests.example_adapter import AppendedCodes
from tests.support.closeness import assert_close

STOCK = {
    "emu3": Emu3ForConditionalGeneration,
    "emu3p5": Qwen3ForCausalLM,
    "chameleon": ChameleonForConditionalGeneration,
    "lumina-mgpt": ChameleonForConditionalGeneration,
    "liquid": GemmaForCausalLM,
    "simplear": Qwen2ForCausalLM,
}
PROMPTS = (
    "a red owl",
    "",
    "  two  spaces, a\nline break \u2014 and caf\u00e9 35mm 'quoted' \"twice\" \\n {{ braces }}",
    "owl " * 40,
)
"""None has the name of a control token: a server reads those as tokens, we as text."""
GRID = (4, 4)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=LAYOUTS)
def base(
    request: pytest.FixtureRequest, family: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("engine") / family
    write_tiny(family, folder, side=4, layout=request.param)
    return folder


def _load(family: str, base: Path, dtype: str) -> UnifiedModel:
    tokenizers = {
        "image_tokenizer": image_tokenizer_of(family, base),
        "tokenizer": tokenizer_of(family, base),
    }
    model = load_adapter(family, str(base), dtype=dtype, **tokenizers)
    model.module.eval()
    return model


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def served(
    request: pytest.FixtureRequest,
    family: str,
    base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[UnifiedModel, Path]:
    model = _load(family, base, request.param)
    folder = tmp_path_factory.mktemp("served") / family
    model.save_for_engine(folder)
    template = model.chat_template(GRID)
    assert template is not None
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return model, folder


def _span(model: UnifiedModel, codes: np.ndarray) -> list[int]:
    """The image's slots as ids of the engine's vocabulary."""
    tokens = model.layout(GRID).tokens.copy()
    tokens[tokens == FREE] = model.engine_codes()[codes]
    return tokens.tolist()


@torch.no_grad()
def test_stock_classes_give_our_logits_bit_for_bit(family: str, served: tuple[UnifiedModel, Path]):
    model, folder = served
    codes = np.random.default_rng(0).integers(model.codebook_size, size=GRID[0] * GRID[1])
    prompt = model.prompt_ids(["a red owl"], GRID)[0]
    ids = torch.tensor([prompt + _span(model, codes)])
    positions = torch.arange(ids.shape[1])[None]
    free = len(prompt) - 1 + model.layout(GRID).free_slots
    found = _stock_logits(family, folder, ids, positions)[:, free]
    embeds = model.embed_text(ids.clamp(max=_text_rows(model) - 1))
    embeds[:, len(prompt) + model.layout(GRID).free_slots] = model.embed_codes(
        torch.from_numpy(codes)
    )
    hidden = model.hidden_states(embeds, torch.ones_like(ids, dtype=torch.bool), positions)
    head = model.image_head()
    logits = linear(hidden, head.weight, head.bias)[:, free][..., head.row_of_code]
    assert_close(found[..., torch.from_numpy(model.engine_codes())], logits, 0)


def _text_rows(model: UnifiedModel) -> int:
    if model.name == "janus":
        return int(model.engine_codes()[0])
    return int(model.text_head().weight.shape[0])


def _stock_logits(
    family: str, folder: Path, ids: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """[1, L, V]; of Janus with the formula that mm_cca_vllm's class has, text at minus infinity."""
    if family != "janus":
        # The head itself: Chameleon's stock forward masks image logits, an engine's does not.
        stock = STOCK[family].from_pretrained(folder).eval()
        decoder, head = stock.get_decoder(), stock.get_output_embeddings()
        return head(decoder(input_ids=ids, position_ids=positions).last_hidden_state)
    stock = LlamaModel.from_pretrained(folder).eval()
    with safe_open(folder / "model.safetensors", "pt") as file:
        part = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    hidden = stock(input_ids=ids, position_ids=positions).last_hidden_state
    inner = gelu(linear(hidden, part["image_proj.weight"], part["image_proj.bias"]))
    codes = linear(inner, part["lm_head.weight"], part["lm_head.bias"])
    text = stock.config.vocab_size - stock.config.num_image_codes
    return torch.cat([codes.new_full((*codes.shape[:2], text), -torch.inf), codes], dim=-1)


def test_the_folder_names_a_class_of_the_engine(family: str, served: tuple[UnifiedModel, Path]):
    model, folder = served
    name = STOCK[family].__name__ if family in STOCK else "JanusImageForCausalLM"
    config = AutoConfig.from_pretrained(folder)
    assert config.architectures == [name]
    assert config.get_text_config().vocab_size > model.engine_codes().max()
    assert config.dtype == next(iter(model.text_head().parameters())).dtype


def _stored(folder: Path) -> list[str]:
    names = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names += list(file.keys())
    return names


def test_image_decoders_stay_here(family: str, served: tuple[UnifiedModel, Path]):
    """Stock Chameleon knows none, and vLLM refuses a folder that has one."""
    _, folder = served
    names = _stored(folder)
    assert names
    assert family == "emu3" or not [n for n in names if "vqmodel" in n and ".decoder." in n]
    kept = [n for n in names if "vqmodel" in n]
    assert bool(kept) == (family in ("emu3", "chameleon", "lumina-mgpt"))


@pytest.mark.parametrize("parts", [False, True])
def test_chat_templates_give_our_prompt_ids(served: tuple[UnifiedModel, Path], parts: bool):
    model, folder = served
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompt in PROMPTS:
        content = [{"type": "text", "text": prompt}] if parts else prompt
        turns = [{"role": "user", "content": "before"}, {"role": "user", "content": content}]
        found = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert found == model.prompt_ids([prompt], GRID)[0], prompt


@pytest.mark.parametrize("family", ["emu3", "emu3p5", "lumina-mgpt"], scope="module")
def test_chat_templates_take_another_size(served: tuple[UnifiedModel, Path]):
    model, folder = served
    tokenizer = AutoTokenizer.from_pretrained(folder)
    side = model.pixels_per_code
    turns = [{"role": "user", "content": "a red owl"}]
    found = tokenizer.apply_chat_template(turns, height=2 * side, width=6 * side)["input_ids"]
    assert found == model.prompt_ids(["a red owl"], (2, 6))[0]


def test_engine_codes_are_the_ids_that_the_layout_leaves_free(
    family: str, served: tuple[UnifiedModel, Path]
):
    model, _ = served
    ids = model.engine_codes()
    assert ids.dtype == np.int64
    assert len(np.unique(ids)) == len(ids) == model.codebook_size
    forced = model.layout(GRID).tokens
    assert not set(ids.tolist()) & set(forced[forced != FREE].tolist())


def test_a_janus_whose_head_no_engine_has(tmp_path: Path):
    write_tiny("janus", tmp_path / "base", side=4)
    model = load_adapter("janus", str(tmp_path / "base"))
    module = model.module
    module.model.vqmodel.config.hidden_act = "silu"
    with pytest.raises(UserError, match="hidden_act is 'silu'; allowed: 'gelu'"):
        model.save_for_engine(tmp_path / "out")
    module.model.vqmodel.config.hidden_act = "gelu"
    module.model.generation_head.proj_out = torch.nn.Linear(32, 48)
    with pytest.raises(UserError, match=r"has the widths \[32, 48, 32\]; allowed: 32 throughout"):
        model.save_for_engine(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_from_before_engines_loads_and_is_refused_by_name():
    class Old:
        name = "old"

    assert not set(missing_parts(Old())) & FOR_ENGINES
    with pytest.raises(
        UserError, match="'old' can't be served by an engine: it lacks chat_template"
    ):
        refuse_without_engine(Old())  # type: ignore[arg-type]


def test_the_example_adapter_is_served_too(folders: Path, tmp_path: Path):
    vq = str(folders / "lumina-mgpt" / "vqgan.ckpt")
    model = load_adapter(
        "tests.example_adapter:AppendedCodes", str(folders / "third-party"), image_tokenizer=vq
    )
    assert isinstance(model, AppendedCodes)
    refuse_without_engine(model)
    model.save_for_engine(tmp_path / "out")
    assert LlamaForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size > 64
    template = model.chat_template(GRID)
    assert template is not None
    (tmp_path / "out" / "chat_template.jinja").write_text(template)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    turns = [{"role": "user", "content": "a red owl"}]
    found = tokenizer.apply_chat_template(turns)["input_ids"]
    assert found == model.prompt_ids(["a red owl"], GRID)[0]
