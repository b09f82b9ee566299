"""Every shipped recipe says what it needs, and the large ones run on a tiny checkpoint."""

import re
from pathlib import Path

import pytest
import torch
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    GemmaConfig,
    GemmaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mm_cca.adapters.base import FREE, grid_of
from mm_cca.adapters.cosmos import CosmosTokenizer
from mm_cca.adapters.cosmos_network import CosmosShape
from mm_cca.adapters.emu3 import Emu3
from mm_cca.config.load import load_config
from mm_cca.config.schema import Recipe
from mm_cca.config.shipped import ADAPTERS, shipped_recipes
from mm_cca.testing.tiny import image_tokenizer_of, tokenizer_of, write_tiny
from mm_cca.training.simulated_step import quantized_bytes
from tests.support import runs

LARGE = [name for name in shipped_recipes() if not name.startswith(("emoji", "coco"))]
FINETUNE = [name for name in LARGE if name.endswith("-finetune")]
CCA = [name for name in LARGE if name not in FINETUNE]
PREVIEWED = [name for name in LARGE if name.endswith(("-finetune", "-lora"))]
"""The others train all weights."""


def _header(name: str) -> str:
    lines = shipped_recipes()[name].read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


@pytest.mark.parametrize("names", [CCA, FINETUNE], ids=["cca", "finetune"])
def test_there_is_one_for_every_family(names: list[str]):
    families = {load_config(name).model.adapter for name in names}
    assert families == set(ADAPTERS)


@pytest.mark.parametrize("name", FINETUNE)
def test_plain_fine_tuning_is_compared_with_guidance_on_both_sides(name: str):
    recipe = load_config(name)
    assert isinstance(recipe, Recipe)
    assert (recipe.loss.objective, recipe.train.tuning, recipe.train.control) == (
        "nll",
        "lora",
        False,
    )
    assert recipe.loss.uncond_ratio > 0, "guidance must stay usable"
    assert recipe.sample.cca_scales == recipe.sample.guidance_scales != []
    for document in ("README.md", "recipes/README.md"):
        assert f"`{name}`" in (Path(__file__).parents[1] / document).read_text()


@pytest.mark.parametrize("name", [*LARGE, "coco30k"])
def test_header_says_what_it_takes(name: str):
    header = _header(name)
    for part in ("What", "Download", "Launch", "Override", "Try it", "Needs", "Time"):
        assert f"# {part}:" in header, part


@pytest.mark.parametrize("name", LARGE)
def test_dry_run_on_a_tiny_checkpoint(name: str, tmp_path: Path):
    """As the header's "Try it" says, with smaller images than the real ones to save time."""
    first, second = _dry_run(name, tmp_path)
    assert first["grad_norm"] > 0
    if name in CCA:
        assert abs(first["positive_gap"]) <= 1e-3
        assert second["code_negative_gap"] != 0, "the first step moved nothing"
    assert (tmp_path / "run" / "train" / "model").is_dir()
    sheets = sorted(path.name for path in (tmp_path / "run" / "train").glob("previews/*.png"))
    assert sheets == (["step-000000.png", "step-000002.png"] if name in PREVIEWED else [])


@pytest.mark.parametrize("name", [*PREVIEWED, "emoji"])
def test_the_header_speaks_of_previews(name: str):
    recipe = load_config(name)
    assert isinstance(recipe, Recipe)
    number = {1: "one prompt", 2: "two prompts", 4: "four prompts"}[recipe.sample.num_previews]
    assert (recipe.sample.every, recipe.sample.preview_prompts) == ("auto", [])
    assert f"# Previews: {number} with and without guidance" in _header(name)
    # Guided sampling takes as much memory.
    assert 2 * recipe.sample.num_previews <= recipe.sample.batch_size_without_auto


def test_the_headers_offer_the_papers_objective(tmp_path: Path):
    offered = {tuple(re.findall(r"loss\.objective=cca loss\.beta=.*10", _header(n))) for n in CCA}
    ((told,),) = offered
    first, second = _dry_run("emu3-gen-lora", tmp_path, *told.split())
    assert abs(first["positive_gap"]) <= 1e-3
    assert second["negative_gap"] != 0, "the first step moved nothing"
    assert (tmp_path / "run" / "train" / "beta.json").exists()


def _dry_run(name: str, tmp_path: Path, *more: str) -> list[dict[str, float]]:
    """The metrics of two steps."""
    recipe = load_config(name)
    assert isinstance(recipe, Recipe)
    family = recipe.model.adapter
    write_tiny(family, tmp_path / "tiny", side=4)
    side = 32 if family == "emu3" else 64
    images = runs.write_imagefolder(tmp_path / "images", 32)  # as many as loss.beta=auto needs
    overrides = [
        f"run.dir={tmp_path / 'run'}",
        f"model.path={tmp_path / 'tiny'}",
        f"data.path={images}",
        f"data.image_size=[{side},{side}]",
        "train.max_steps=2",
        "model.dtype=float32",
        f"train.batch_size={recipe.train.micro_batch_size}",
        *more,
    ]
    if recipe.model.image_tokenizer is not None:
        overrides.append(f"model.image_tokenizer={image_tokenizer_of(family, tmp_path / 'tiny')}")
    if (tokenizer := tokenizer_of(family, tmp_path / "tiny")) is not None:
        overrides.append(f"model.tokenizer={tokenizer}")
    runs.do(Path(name), *overrides, stages=["prepare", "train"])
    return runs.metrics(tmp_path / "run" / "train")


def test_coco30k_on_a_tiny_checkpoint(tmp_path: Path):
    """Trained by the recipe that its header names, then drawn and scored as it says.

    Without what would have to be downloaded: the prompts, the reference, CLIP and Inception.
    """
    coco = load_config("coco30k")
    assert isinstance(coco, Recipe)
    images = runs.write_imagefolder(tmp_path / "images", 6)
    same = [f"model.path={tmp_path / 'tiny'}", "data.image_size=[64,64]"]
    write_tiny("janus", tmp_path / "tiny", side=4)
    trained = f"{tmp_path / 'trained'}"
    words = [f"run.dir={trained}", f"data.path={images}", "train.max_steps=1"]
    words += ["train.batch_size=4"]
    name = Path(coco.run.trained or "").name
    runs.do(Path(name), *same, *words, stages=["prepare", "train"])
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"text": "owl {i}"}}\n' for i in range(6)))
    metrics = [m for m in coco.eval.metrics if m not in ("clip_score", "fid", "kid")]
    recipe = runs.do(
        Path("coco30k"),
        *same,
        f"run.dir={tmp_path / 'run'}",
        f"run.trained={trained}",
        f"data.path={tmp_path / 'not there'}",
        f"sample.prompts={tmp_path / 'prompts.jsonl'}",
        f"eval.reference={images}",
        "eval.scorer=emoji-clip",
        "eval.scorer_pretrained=null",
        f"eval.metrics=[{','.join(metrics)}]",
        stages=coco.run.stages,
    )
    (grid,) = runs.grids_of(tmp_path / "run" / "report.html")
    arms = ["base", *(f"base+cfg{scale:g}" for scale in recipe.sample.guidance_scales), "cca"]
    assert [column["name"] for column in grid["columns"]] == arms
    assert len(grid["captions"]) == 6


@pytest.fixture(scope="module")
def emu3_at_full_size(tmp_path_factory: pytest.TempPathFactory) -> Emu3:
    """Emu3-Gen-hf's sizes without its weights: transformers' defaults are those of the hub."""
    folder = tmp_path_factory.mktemp("tiny") / "emu3"
    write_tiny("emu3", folder, side=2)
    small = Emu3.load(str(folder), torch.float32, None)
    vocabulary = {f"<|visual token {i:06d}|>": 151_854 + i for i in range(32_768)}
    vocabulary |= {"<|extra_200|>": 151_846, "<image>": 151_851}
    with torch.device("meta"):
        module = Emu3ForConditionalGeneration(Emu3Config(vocabulary_map=vocabulary))
    return Emu3(module, small._processor)


def test_emu3_at_full_size(emu3_at_full_size: Emu3):
    model = emu3_at_full_size
    grid = grid_of(model, [720, 720])
    assert grid == (90, 90)
    layout = model.layout(grid)
    assert len(layout.tokens) == 90 * 91 - 1
    assert layout.num_codes == 8100
    ends = layout.tokens[layout.tokens != FREE]
    assert set(ends.tolist()) == {151_846}
    assert len(ends) == 89
    head = model.image_head()
    assert head.weight.shape == (32_768, 4096)
    assert head.row_of_code[[0, 32_767]].tolist() == [0, 32_767]
    whole = model.image_head(whole_vocabulary=True)
    assert whole.weight.shape == (184_622, 4096)
    assert whole.row_of_code[[0, 32_767]].tolist() == [151_854, 184_621]
    assert model.max_tokens == 9216


@pytest.mark.parametrize("name", ["emu3-gen-lora", "emu3-gen-finetune"])
def test_the_header_counts_emu3s_weights_right(emu3_at_full_size: Emu3, name: str):
    """Two bytes for every parameter, four in the image tokenizer."""
    parameters = emu3_at_full_size.module.named_parameters()
    size = sum(p.numel() * (4 if "vqmodel" in name else 2) for name, p in parameters) / 1e9
    (told,) = re.findall(r"([\d.]+) GB of weights", _header(name))
    assert float(told) == pytest.approx(size, abs=0.1)


def test_the_header_counts_emu3s_quantised_weights_right(emu3_at_full_size: Emu3):
    """Packed in the blocks, else two bytes for every parameter, four in the image tokenizer."""
    size = 0
    for name, p in emu3_at_full_size.module.named_parameters():
        if ".layers." in name and p.ndim == 2 and "vqmodel" not in name:
            size += quantized_bytes(*p.shape, "nf4")
        else:
            size += p.numel() * (4 if "vqmodel" in name else 2)
    (told,) = re.findall(r"([\d.]+) GB of weights", _header("emu3-gen-qlora"))
    assert float(told) == pytest.approx(size / 1e9, abs=0.05)


QWEN_1_5B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("name", "stock", "config"),
    [
        ("liquid-7b-lora", GemmaForCausalLM, GemmaConfig(vocab_size=256_000 + 8192)),
        (
            "simplear-1.5b-lora",
            Qwen2ForCausalLM,
            Qwen2Config(vocab_size=151_672 + 64_000, **QWEN_1_5B),
        ),
    ],
)
def test_headers_count_appended_codes_right(name: str, stock, config):
    """The real sizes: Gemma-7B's by transformers' defaults, Qwen2.5-1.5B's from its config."""
    with torch.device("meta"):
        weights = 2 * sum(p.numel() for p in stock(config).parameters()) / 1e9
    (told,) = re.findall(r"([\d.]+) GB of bf16 weights", _header(name))
    assert float(told) == pytest.approx(weights, abs=0.05)


def test_the_header_counts_the_cosmos_tokenizer_right():
    size = 4 * sum(p.numel() for p in CosmosTokenizer(CosmosShape()).parameters()) / 1e9
    (told,) = re.findall(r"([\d.]+) GB of image tokenizer", _header("simplear-1.5b-lora"))
    assert float(told) == pytest.approx(size, abs=0.05)
