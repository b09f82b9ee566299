"""The simplear adapter against stock Qwen2, and its folders, on tiny weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import Qwen2ForCausalLM

from mm_cca import load_adapter
from mm_cca.adapters.base import FREE, Defaults
from mm_cca.adapters.check import check_checkpoint
from mm_cca.adapters.simplear import COSMOS, SimpleAR
from mm_cca.config.schema import ModelConfig
from mm_cca.errors import UserError
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.sampler import SamplingSettings, sample_codes
from mm_cca.testing.tiny import image_tokenizer_of, write_tiny
from mm_cca.testing.tiny.tiny_simplear import COSMOS_FOLDER
from tests.support import naive
from tests.support.closeness import assert_close

GRID = (4, 4)
PROMPTS = ["red owl, noto style", "a", "small  café owl\nand 3 “hands”"]
NEGATIVE = "An image of aerial view, overexposed, low quality"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "simplear"
    write_tiny("simplear", folder, side=4)
    return folder


def _load(path: Path | str, image_tokenizer: Path | str | None) -> SimpleAR:
    given = None if image_tokenizer is None else str(image_tokenizer)
    model = load_adapter("simplear", str(path), image_tokenizer=given)
    model.module.eval()
    assert isinstance(model, SimpleAR)
    return model


@pytest.fixture
def model(folder: Path) -> SimpleAR:
    return _load(folder, folder / COSMOS_FOLDER)


@pytest.fixture(scope="module")
def stock(folder: Path) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_ids_are_those_of_the_folders_own_tokenizer(model: SimpleAR, folder: Path):
    """``tokenizer.json`` as it lies there, without transformers; Qwen has no BOS."""
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    added = json.loads((folder / "added_tokens.json").read_text())
    for prompt in PROMPTS:
        (ours,) = model.prompt_ids([prompt], GRID)
        assert ours == raw.encode(f"<|t2i|>{prompt}<|soi|>").ids
        assert ours[0] == added["<|t2i|>"]
        assert ours[-1] == added["<|soi|>"]
    bare = [added["<|t2i|>"], added["<|soi|>"]]
    assert model.unconditional_ids([5, 6], GRID) == bare
    guided_from = model.unconditional_ids([], GRID, NEGATIVE)
    assert guided_from == raw.encode(f"<|t2i|>{NEGATIVE}<|soi|>").ids
    assert model.text_ids(["red owl"]) == [raw.encode("<|endoftext|>red owl").ids]


def test_codes_follow_the_tokenizers_vocabulary(model: SimpleAR, folder: Path):
    first = max(json.loads((folder / "added_tokens.json").read_text()).values()) + 1
    rows = model.image_head(whole_vocabulary=True).row_of_code
    assert rows.tolist() == [first + code for code in range(64)]
    assert (model.layout(GRID).tokens == FREE).all()
    assert model.layout(GRID).num_codes == 16


@pytest.mark.parametrize("whole", [False, True])
@torch.no_grad()
def test_logps_equal_stock_qwens(model: SimpleAR, stock: Qwen2ForCausalLM, whole: bool):
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
def test_guided_greedy_codes_equal_two_plain_passes(model: SimpleAR, stock: Qwen2ForCausalLM):
    """The authors' ``CFGLogits`` with their negative prompt, over the codes."""
    settings = SamplingSettings(guidance_scale=6.0, negative_prompt=NEGATIVE)
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
        cond, uncond = list(prompt), list(model.prompt_ids([NEGATIVE], GRID)[0])
        expected = []
        for _ in range(16):
            c, u = (
                stock(torch.tensor([ids])).logits[0, -1].log_softmax(dim=-1)
                for ids in (cond, uncond)
            )
            expected.append(int((6.0 * (c - u) + u)[first:].argmax()))
            cond.append(first + expected[-1])
            uncond.append(first + expected[-1])
        assert greedy[row].tolist() == expected


def test_the_chats_generation_config_is_not_used(model: SimpleAR, folder: Path):
    """Qwen's own, in the folder: temperature .7, top-k 20; images are drawn without."""
    chat = json.loads((folder / "generation_config.json").read_text())
    assert (chat["temperature"], chat["top_k"]) == (0.7, 20)
    assert model.defaults == Defaults(6.0, 1.0, None, None)
    assert model.side * model.pixels_per_code == 1024


@pytest.mark.parametrize("grid", [(4, 5), (65, 65)])
def test_a_grid_that_it_was_not_trained_on(model: SimpleAR, grid: tuple[int, int]):
    with pytest.raises(UserError, match=r"squares of up to \[1024, 1024\]"):
        model.layout(grid)


def test_a_saved_folder_has_the_bases_own_files(model: SimpleAR, folder: Path, tmp_path: Path):
    """The authors' class would take rope_theta 10,000 from a config of today's transformers."""
    model.save(tmp_path)
    names = {file.name for file in folder.iterdir() if file.is_file()}
    assert {file.name for file in tmp_path.iterdir()} == names
    for name in names - {"config.json", "model.safetensors"}:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved == json.loads((folder / "config.json").read_text()) | {"torch_dtype": "float32"}
    assert saved["rope_theta"] == 1_000_000
    assert not [n for n in load_file(tmp_path / "model.safetensors") if "vqmodel" in n]


def test_without_an_image_tokenizer(folder: Path):
    with pytest.raises(UserError, match=r"image_tokenizer to nvidia/Cosmos-1.0-Tokenizer-DV8x16"):
        _load(folder, None)


def test_plain_qwen_is_refused(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "x")
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        file = tmp_path / "x" / name
        file.write_text(file.read_text().replace("<|soi|>", "<|fim|>"))
    with pytest.raises(UserError, match=r"no <\|soi\|>. This is the plain qwen2"):
        _load(tmp_path / "x", folder / COSMOS_FOLDER)


def test_a_vocabulary_of_another_codebook(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "x")
    file = tmp_path / "x" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
    with pytest.raises(UserError, match=r"the one given by model\.image_tokenizer is not the fam"):
        _load(tmp_path / "x", folder / COSMOS_FOLDER)


@pytest.mark.parametrize("other", ["janus", "emu3"])
def test_folders_of_other_families(folder: Path, folders: Path, other: str):
    with pytest.raises(UserError, match=f"set model.adapter to {other}"):
        _load(folders / other, folder / COSMOS_FOLDER)
    with pytest.raises(UserError, match=r"set model\.adapter to simplear"):
        load_adapter(other, str(folder), image_tokenizer=image_tokenizer_of(other, folders / other))


def test_validate_reads_no_weights_of_the_model(folder: Path):
    """Nor NVIDIA's files where they are on the hub: a real tokenizer has 64,000 codes."""
    config = ModelConfig("simplear", str(folder), image_tokenizer=str(folder / COSMOS_FOLDER))
    assert check_checkpoint(config, [64, 64]) > 10_000
    config = ModelConfig("simplear", str(folder), image_tokenizer=COSMOS)
    with pytest.raises(UserError, match=r"the image tokenizer's 64000 codes are"):
        check_checkpoint(config, [64, 64])
