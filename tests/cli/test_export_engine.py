"""``export --for-engine``: what is beside the weights, and which arm they are."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoTokenizer,
    Emu3ForConditionalGeneration,
    GemmaForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
)

from mm_cca import cli
from mm_cca.adapters.base import FREE
from mm_cca.cli.commands.export_engine import export_for_engine, ranges_of, runs_of
from mm_cca.runs.folder import open_run
from mm_cca.sampling.engine_grammar import grammar_of
from mm_cca.sampling.weights import load_source
from mm_cca.testing.tiny import image_tokenizer_of, write_tiny
from tests.support import runs
from tests.support.closeness import assert_close


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "emu3"
    write_tiny("emu3", folder, side=2)
    return folder


def _run(base: Path, folder: Path, **train: object) -> Path:
    values = runs.tiny_recipe(folder, base, runs.two_splits(base.parent / "data.parquet"))
    values["train"].update(max_steps=2, **train)
    values["sample"].update(temperature=0.9, top_k=40, prompt_template="{prompt}, best")
    runs.do(runs.write_recipe(folder / "recipe.yaml", values))
    return folder / "run"


@pytest.fixture(scope="module")
def full(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run(base, tmp_path_factory.mktemp("full"), control=True)


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"tuning": "lora", "reference": "lora", "lora_rank": 2}
    return _run(base, tmp_path_factory.mktemp("lora"), **options)


@torch.no_grad()
@pytest.mark.parametrize(
    ("words", "source", "dial", "arm"),
    [
        ([], "cca", 1.0, "cca"),
        (["--dial", "0.5"], "cca", 0.5, "cca+dial0.5"),
        (["--source", "base"], "base", 1.0, "base"),
        (["--source", "control"], "control", 1.0, "control"),
    ],
)
def test_the_folder_is_the_arm(
    full: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    source: str,
    dial: float,
    arm: str,
):
    assert cli.main(["export", str(full), str(tmp_path / "out"), "--for-engine", *words]) == 0
    expected = load_source(*open_run(full), source, dial=dial).module.state_dict()
    found = Emu3ForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    for name, value in found.items():
        assert_close(value, expected[name], 0)
    line = next(x for x in capsys.readouterr().out.splitlines() if "vllm serve" in x)
    expected_line = f"vllm serve {tmp_path / 'out'} --served-model-name run/{arm} --dtype float32"
    assert shlex.split(line) == shlex.split(expected_line)
    assert _facts(tmp_path / "out")["served_name"] == f"run/{arm}"


@torch.no_grad()
def test_a_lora_is_merged(lora: Path, tmp_path: Path):
    export_for_engine(lora, tmp_path / "out", dial=1.5)
    model = load_source(*open_run(lora), "cca", dial=1.5).module
    ids = torch.tensor([[1, 5, 9, 40]])
    stock = Emu3ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert_close(stock(input_ids=ids).logits, model(input_ids=ids).logits, 1e-4)


def _facts(folder: Path) -> dict[str, object]:
    return json.loads((folder / "image_layout.json").read_text())


def test_what_is_beside_the_weights(full: Path, tmp_path: Path):
    export_for_engine(full, tmp_path / "out")
    model = load_source(*open_run(full), "base")
    facts = _facts(tmp_path / "out")
    layout, ids = model.layout((2, 2)), model.engine_codes()
    assert (facts["image_size"], facts["grid"]) == ([16, 16], [2, 2])
    assert facts["num_slots"] == len(layout.tokens) == 5
    assert facts["slots"] == [[FREE, 2], [layout.tokens[2], 1], [FREE, 2]]
    assert facts["code_ids"] == [[int(ids[0]), 64]]
    assert facts["grammar"] == grammar_of(layout, ids)
    assert facts["sampling"] == {"temperature": 0.9, "top_k": 40, "top_p": None}
    assert facts["prompt_template"] == "{prompt}, best"
    assert facts["example"]["prompt_ids"] == model.prompt_ids(["a red owl"], (2, 2))[0]
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (settings.do_sample, settings.temperature, settings.top_k) == (True, 0.9, 40)
    assert settings.max_new_tokens == 5
    assert settings.guidance_scale in (None, 1.0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    turn = [{"role": "user", "content": "a red owl"}]
    found = tokenizer.apply_chat_template(turn)["input_ids"]
    assert found == facts["example"]["prompt_ids"]
    other = tokenizer.apply_chat_template(turn, height=24, width=8)["input_ids"]
    assert other == model.prompt_ids(["a red owl"], (3, 1))[0]


def test_nothing_of_the_bases_generation_config_is_left(tmp_path: Path):
    """SimpleAR's has a repetition penalty for chats, which an engine would apply to codes."""
    base = tmp_path / "simplear"
    write_tiny("simplear", base, side=4)
    values = runs.tiny_recipe(tmp_path, base, runs.two_splits(tmp_path / "data.parquet"))
    tokenizer = str(next(base.glob("Cosmos*")))
    values["model"].update(adapter="simplear", image_tokenizer=tokenizer)
    values["data"]["image_size"] = [64, 64]
    runs.do(runs.write_recipe(tmp_path / "recipe.yaml", values), stages=["prepare"])
    export_for_engine(tmp_path / "run", tmp_path / "out", source="base")
    stored = json.loads((base / "generation_config.json").read_text())
    assert stored["repetition_penalty"] == 1.1
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert "repetition_penalty" not in written
    assert written.get("top_k") == 0
    assert written.get("top_p", 1.0) == 1.0
    assert written.get("temperature", 1.0) == 1.0


def test_the_card_says_how_it_is_served_and_why_the_grammar(full: Path, tmp_path: Path):
    export_for_engine(full, tmp_path / "out", dial=0.5)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    grammar = _facts(tmp_path / "out")["grammar"]
    for text in (
        "vllm serve . --served-model-name run/cca+dial0.5 --dtype float32",
        "Row ends are not trained",
        "draws sheared pictures",
        str(grammar).rstrip(),
        json.dumps(grammar),
        "base + 0.5 * (trained - base)",
        "/v1/chat/completions",
        "best`. Put your prompt",
        "fine-tuned on",
    ):
        assert text in card.text, text
    assert str(tmp_path) not in card.text.split("## Recipe")[0].replace(str(full.parent), "")
    body = json.loads(card.text.split("POST /v1/chat/completions\n")[1].split("\n```")[0])
    assert body["structured_outputs"] == {"grammar": grammar}
    assert (body["max_tokens"], body["top_k"], "top_p" in body) == (5, 40, False)


def test_the_card_of_the_base_is_not_that_of_a_fine_tune(full: Path, tmp_path: Path):
    export_for_engine(full, tmp_path / "out", source="base")
    text = ModelCard.load(tmp_path / "out" / "README.md").text
    assert "as it is, an arm of the run below" in text
    assert "fine-tuned on" not in text


def test_slots_and_ids_in_short_give_them_back():
    values = np.array([-1, -1, 8, -1, -1, 8, 8])
    assert runs_of(values) == [[-1, 2], [8, 1], [-1, 2], [8, 2]]
    ids = np.array([5, 6, 7, 3, 9, 10])
    assert ranges_of(ids) == [[5, 3], [3, 1], [9, 2]]
    assert np.concatenate([first + np.arange(n) for first, n in ranges_of(ids)]).tolist() == [
        *ids.tolist()
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "base"], "without --for-engine only the trained model is exported"),
        (["--for-engine", "--source", "base", "--dial", "2"], "leave it out for --source base"),
        (["--for-engine", "--dial", "-1"], "--dial is -1; allowed: 0"),
        (["--for-engine"], "exists already"),
    ],
)
def test_mistakes(
    full: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    target = tmp_path / "new"
    if message == "exists already":
        target.mkdir()
        (target / "file").write_text("")
    assert cli.main(["export", str(full), str(target), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (target / "config.json").exists()


@pytest.mark.parametrize(
    ("family", "stock"), [("simplear", Qwen2ForCausalLM), ("liquid", GemmaForCausalLM)]
)
def test_a_lora_of_a_model_with_tied_heads_is_merged(
    tmp_path: Path, family: str, stock: type[PreTrainedModel]
):
    base = tmp_path / family
    write_tiny(family, base, side=4)
    values = runs.tiny_recipe(tmp_path, base, runs.two_splits(tmp_path / "data.parquet"))
    values["model"].update(adapter=family, image_tokenizer=image_tokenizer_of(family, base))
    values["data"]["image_size"] = [64, 64]
    values["train"].update(max_steps=1, tuning="lora", reference="lora", lora_rank=2)
    runs.do(runs.write_recipe(tmp_path / "recipe.yaml", values))
    export_for_engine(tmp_path / "run", tmp_path / "out")
    model = load_source(*open_run(tmp_path / "run"), "cca").module
    ids = torch.tensor([[1, 5, 9, 340]])
    with torch.no_grad():
        found = stock.from_pretrained(tmp_path / "out")(input_ids=ids).logits
        before = stock.from_pretrained(base, dtype=torch.float32)(input_ids=ids).logits
        assert_close(found, model(input_ids=ids).logits, 1e-4)
    assert (found - before).abs().max() > 1e-4
