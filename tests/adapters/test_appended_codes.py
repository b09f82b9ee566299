"""liquid and simplear against the stock language models, in both layouts, on tiny weights."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GemmaForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from mm_cca import load_adapter
from mm_cca.adapters.appended_codes import AppendedCodes
from mm_cca.adapters.base import FREE
from mm_cca.adapters.check import check_checkpoint
from mm_cca.config.schema import ModelConfig
from mm_cca.errors import UserError
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.sampler import SamplingSettings, sample_codes
from mm_cca.testing.tiny import image_tokenizer_of
from tests.support import naive
from tests.support.checkpoints import SINGLE
from tests.support.closeness import assert_close

GRID = (4, 4)
CODES = 64
PROMPTS = ["red owl, noto style", "a", "small  café owl\nand 3 “hands”"]


@dataclass(frozen=True)
class Family:
    """What differs between the two.

    Attributes:
        stock: the language model's class.
        scale: of the authors' guidance.
        negative: their negative prompt.
        side: pixels of the largest image.
        start: the token that a plain model's tokenizer lacks.
        told: of the message where there is no image tokenizer.
    """

    name: str
    stock: type[PreTrainedModel]
    scale: float
    negative: str
    side: int
    start: str
    told: str


FAMILIES = [
    Family("liquid", GemmaForCausalLM, 7.0, "", 512, "<boi>", "Set model.image_tokenizer to Meta"),
    Family(
        "simplear",
        Qwen2ForCausalLM,
        6.0,
        "An image of aerial view, overexposed, low quality",
        1024,
        "<|soi|>",
        "image_tokenizer to nvidia/Cosmos-1.0-Tokenizer-DV8x16x16",
    ),
]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture(scope="module")
def folder(family: Family, both_folders: Path) -> Path:
    return both_folders / family.name


def _load(family: Family, path: Path, images: Path) -> AppendedCodes:
    """A model from ``path`` with the image tokenizer of the folder ``images``."""
    image_tokenizer = image_tokenizer_of(family.name, images)
    model = load_adapter(family.name, str(path), image_tokenizer=image_tokenizer)
    model.module.eval()
    assert isinstance(model, AppendedCodes)
    return model


@pytest.fixture(scope="module")
def model(family: Family, folder: Path) -> AppendedCodes:
    """Not changed by any test."""
    return _load(family, folder, folder)


@pytest.fixture(scope="module")
def stock(family: Family, folder: Path) -> PreTrainedModel:
    return family.stock.from_pretrained(folder, dtype=torch.float32).eval()


def test_codes_follow_the_tokenizers_vocabulary(model: AppendedCodes, folder: Path):
    added = json.loads((folder / "tokenizer.json").read_text())
    ids = [token["id"] for token in added["added_tokens"]]
    first = max([*ids, *added["model"]["vocab"].values()]) + 1
    rows = model.image_head(whole_vocabulary=True).row_of_code
    assert rows.tolist() == [first + code for code in range(CODES)]
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == first + CODES
    assert (model.layout(GRID).tokens == FREE).all()
    assert model.layout(GRID).num_codes == 16


@pytest.mark.parametrize("whole", [False, True])
@torch.no_grad()
def test_logps_equal_those_of_the_stock_model(
    model: AppendedCodes, stock: PreTrainedModel, whole: bool
):
    codes = torch.randint(CODES, (3, 16), generator=torch.Generator().manual_seed(1))
    rows = model.prompt_ids(PROMPTS, GRID)
    policy = CodeLogProbs(model, model.layout(GRID), whole_vocabulary=whole).eval()
    ours = policy(*left_pad(rows, model.pad_id), codes).per_code
    first = stock.config.vocab_size - CODES
    image_ids = None if whole else torch.arange(first, first + CODES)
    for row, ids in enumerate(rows):
        span = (codes[row] + first).tolist()
        expected = naive.span_logps(stock, ids, span, list(range(16)), image_ids)
        assert_close(ours[row], torch.tensor(expected), 1e-4)


@torch.no_grad()
def test_guided_greedy_codes_equal_two_plain_passes(
    family: Family, model: AppendedCodes, stock: PreTrainedModel
):
    """``uncond + (cond - uncond) * scale`` of log-probs, image rows only, as both authors draw."""
    greedy = sample_codes(
        model,
        PROMPTS,
        GRID,
        torch.zeros(3, 16).numpy(),
        SamplingSettings(guidance_scale=family.scale, negative_prompt=family.negative),
        pick=lambda logits, _: logits.argmax(dim=-1),
    )[0]
    first = stock.config.vocab_size - CODES
    for row, prompt in enumerate(model.prompt_ids(PROMPTS, GRID)):
        cond, uncond = list(prompt), model.unconditional_ids(prompt, GRID, family.negative)
        expected: list[int] = []
        for _ in range(16):
            c, u = (
                stock(torch.tensor([ids])).logits[0, -1].log_softmax(dim=-1)
                for ids in (cond, uncond)
            )
            expected.append(int((u + (c - u) * family.scale)[first:].argmax()))
            cond.append(first + expected[-1])
            uncond.append(first + expected[-1])
        assert greedy[row].tolist() == expected


def test_a_grid_that_it_was_not_trained_on(family: Family, model: AppendedCodes):
    allowed = rf"squares of up to \[{family.side}, {family.side}\]"
    for grid in [(4, 5), (family.side // 16 + 1,) * 2]:
        with pytest.raises(UserError, match=allowed):
            model.layout(grid)
    assert model.side * model.pixels_per_code == family.side


def test_a_saved_folder_has_the_bases_own_files(
    family: Family, model: AppendedCodes, folder: Path, tmp_path: Path
):
    """Of whichever layout: the authors' code needs transformers 4, whose files differ."""
    model.save(tmp_path)
    weights = {file.name for file in folder.iterdir() if "safetensors" in file.name}
    names = {file.name for file in folder.iterdir() if file.is_file()}
    names -= {*weights, "vqgan.ckpt"}
    assert {file.name for file in tmp_path.iterdir()} == names | {SINGLE}
    for name in names - {"config.json"}:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    base, saved = (json.loads((at / "config.json").read_text()) for at in (folder, tmp_path))
    key = "dtype" if "dtype" in base else "torch_dtype"
    assert saved == base | {key: "float32"}
    assert not [n for n in load_file(tmp_path / SINGLE) if "vqmodel" in n]
    again = _load(family, tmp_path, folder)
    assert again.prompt_ids(PROMPTS, GRID) == model.prompt_ids(PROMPTS, GRID)


def test_without_an_image_tokenizer(family: Family, folder: Path):
    with pytest.raises(UserError, match=rf"holds no image tokenizer.*{family.told}"):
        load_adapter(family.name, str(folder))


def test_a_tokenizer_without_the_start_of_an_image(family: Family, folder: Path, tmp_path: Path):
    """As the plain language model's is."""
    shutil.copytree(folder, tmp_path / "x")
    for file in (tmp_path / "x").glob("*token*.json"):
        file.write_text(file.read_text().replace(family.start, "<other>"))
    told = rf"its tokenizer has no {family.start.replace('|', '[|]')}.* plain"
    with pytest.raises(UserError, match=told):
        _load(family, tmp_path / "x", folder)


@pytest.mark.parametrize("more", [-64, 1])
def test_a_vocabulary_of_another_codebook(family: Family, folder: Path, tmp_path: Path, more: int):
    shutil.copytree(folder, tmp_path / "x")
    file = tmp_path / "x" / "config.json"
    config = json.loads(file.read_text())
    rows = config["vocab_size"]
    file.write_text(json.dumps(config | {"vocab_size": rows + more}))
    told = f"a vocabulary of {rows + more} tokens, but .* are {rows}: .* is not the family's"
    with pytest.raises(UserError, match=told):
        _load(family, tmp_path / "x", folder)


def test_folders_of_other_families(family: Family, both_folders: Path):
    own = both_folders / family.name
    for other in {"janus", "emu3", "liquid", "simplear"} - {family.name}:
        with pytest.raises(UserError, match=f"set model.adapter to {other}"):
            _load(family, both_folders / other, own)
        images = image_tokenizer_of(other, both_folders / other)
        with pytest.raises(UserError, match=rf"set model\.adapter to {family.name}"):
            load_adapter(other, str(own), image_tokenizer=images)


def test_validate_reads_no_weights(family: Family, model: AppendedCodes, folder: Path):
    images = image_tokenizer_of(family.name, folder)
    config = ModelConfig(family.name, str(folder), image_tokenizer=images)
    assert check_checkpoint(config, [64, 64]) == sum(p.numel() for p in model.module.parameters())
