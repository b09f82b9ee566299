"""Folders of Emu3 and Janus as the hub has them: what is odd about them, and how it is read."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm_cca import load_adapter
from mm_cca.modeling.lora import attach_lora
from mm_cca.testing.tiny import FAMILIES
from mm_cca.testing.tiny.shards import INDEX
from tests.support.closeness import assert_close
from tests.support.hub_folders import change_json, copy_of, read_json

GRID = (4, 4)


TABLE = Path(__file__).parents[2] / "mm_cca" / "adapters" / "README.md"
FILE = re.compile(r"\b[\w-]+\.(?:json|txt|model|jinja|jit|ckpt|bin|tiktoken|yaml)\b")
UNREAD = {"config.yaml", "model.ckpt"}
"""A second copy in another form, which the tiny folder leaves out."""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_names_the_files_of_the_tiny_folder(family: str, hub_folders: Path):
    """Both ways: a file that one of the two lacks is an untrue tiny folder or an untrue table."""
    text = TABLE.read_text().split("## How the authors sample")[0]
    rows = [[c.strip() for c in x.split(" | ")] for x in text.splitlines() if x.startswith("| ")]
    mine = [row for row in rows if row[0] == f"| {family}"]
    told = " ".join(cell for row in mine for cell in row[1:3])  # Meta's vqgan.ckpt is in the first
    folders = [hub_folders / family, *([hub_folders / "deepseek"] if family == "janus" else [])]
    held = {file.name for folder in folders for file in folder.rglob("*") if file.is_file()}
    held = {name for name in held if not re.match(r"model(-\d+-of-\d+)?\.safetensors", name)}
    if family == "chameleon":  # the row names Meta's file for Meta's folder; Anole has its own
        told = told.replace("vqgan.ckpt", "")
    assert set(FILE.findall(told)) - UNREAD == held


def test_what_is_odd_about_emu3s_folder(hub_folders: Path):
    folder = hub_folders / "emu3"
    names = read_json(folder / INDEX)["weight_map"]
    assert "text_model.lm_head.weight" in names
    assert "text_model.model.embed_tokens.weight" in names
    assert not [name for name in names if name.startswith("model.")]
    assert len(set(names.values())) == 2
    config = read_json(folder / "config.json")
    assert config["vq_config"]["temporal_downsample_factor"] == 4
    assert config["text_config"]["attention_dropout"] == 0.1
    assert config["text_config"]["rope_scaling"] == {"rope_type": "default"}
    assert read_json(folder / "tokenizer_config.json")["tokenizer_class"] == "GPT2Tokenizer"
    stored = read_json(folder / "tokenizer.json")
    assert (stored["normalizer"], stored["pre_tokenizer"]["type"]) == (None, "ByteLevel")
    assert "<image>" in stored["model"]["vocab"]
    assert "<|extra_0|>" not in stored["model"]["vocab"]


def test_what_is_odd_about_the_janus_folders(hub_folders: Path):
    hub, own = hub_folders / "janus", hub_folders / "deepseek"
    assert "tie_word_embeddings" not in read_json(hub / "config.json")
    for folder in (hub, own):
        assert read_json(folder / "preprocessor_config.json")["image_mean"] == [0.5, 0.5, 0.5]
        assert (
            read_json(folder / "tokenizer_config.json")["tokenizer_class"] == "LlamaTokenizerFast"
        )
    weights = torch.load(own / "pytorch_model.bin", weights_only=True)
    assert {name.split(".")[0] for name in weights} == {
        "aligner",
        "gen_aligner",
        "gen_embed",
        "gen_head",
        "gen_vision_model",
        "language_model",
        "vision_model",
    }
    assert weights["language_model.lm_head.weight"].dtype == torch.bfloat16
    assert "gen_vision_model.quantize.codebook_used" in weights


def test_deepseeks_layout_is_the_hubs_checkpoint(hub_folders: Path):
    """The two folders hold the same random weights by other names."""
    hub, own = (load_adapter("janus", str(hub_folders / name)) for name in ("janus", "deepseek"))
    expected, found = hub.module.state_dict(), own.module.state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    prompts = ["red owl, noto style", "a", " spaces around ", ""]
    assert hub.prompt_ids(prompts, GRID) == own.prompt_ids(prompts, GRID)
    ids = own.prompt_ids(prompts, GRID)[0]
    assert own.unconditional_ids(ids, GRID) == hub.unconditional_ids(ids, GRID)
    assert own.pad_id == hub.pad_id
    assert own.max_tokens == hub.max_tokens
    assert own.layout(GRID).num_codes == 16


def test_deepseeks_layout_is_saved_in_transformers(hub_folders: Path, tmp_path: Path):
    own = load_adapter("janus", str(hub_folders / "deepseek"))
    own.save(tmp_path)
    assert read_json(tmp_path / "config.json")["model_type"] == "janus"
    again = load_adapter("janus", str(tmp_path))
    for name, value in own.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    assert again.prompt_ids(["red owl"], GRID) == own.prompt_ids(["red owl"], GRID)
    assert again.pad_id == own.pad_id


def test_an_untied_head_survives_a_config_that_does_not_say_so(hub_folders: Path, tmp_path: Path):
    model = load_adapter("janus", str(hub_folders / "janus"))
    head = model.module.lm_head.weight
    assert not torch.equal(head, model.module.get_input_embeddings().weight)
    model.save(tmp_path)
    assert_close(load_file(tmp_path / "model.safetensors")["lm_head.weight"], head, 0)
    assert read_json(tmp_path / "config.json")["tie_word_embeddings"] is False


def _text(model: Any, prompt: str) -> str:
    text: str = model._processor.tokenizer.decode(model.prompt_ids([prompt], GRID)[0])
    return text


PRO = "<｜begin▁of▁sentence｜><|User|>: red owl\n\n<|Assistant|>:<begin_of_image>"
FIRST = "<｜begin▁of▁sentence｜>User: red owl\n\nAssistant:<begin_of_image>"


@pytest.mark.parametrize(
    ("file", "values", "expected"),
    [
        ("processor_config.json", {}, PRO),
        ("processor_config.json", {"sft_format": "deepseek_old"}, FIRST),
        ("config.json", {"_name_or_path": "deepseek-ai/Janus-1.3B"}, FIRST),
        ("config.json", {"_name_or_path": "deepseek-ai/Janus-Pro-1B"}, PRO),
    ],
)
def test_the_roles_follow_the_checkpoint(
    file: str, values: dict[str, object], expected: str, hub_folders: Path, tmp_path: Path
):
    folder = copy_of(hub_folders, "deepseek", tmp_path)
    change_json(folder / file, **values)
    model = load_adapter("janus", str(folder))
    assert _text(model, " red owl ") == expected
    model.save(tmp_path / "saved")
    assert _text(load_adapter("janus", str(tmp_path / "saved")), "red owl") == expected


def test_the_roles_of_a_folder_named_janus_1_3b(hub_folders: Path, tmp_path: Path):
    folder = Path(shutil.copytree(hub_folders / "deepseek", tmp_path / "Janus-1.3B-anime"))
    assert _text(load_adapter("janus", str(folder)), "red owl") == FIRST


def test_a_tokenizer_without_janus_pros_roles(hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, "deepseek", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("<|User|>", "<|Other|>"), encoding="utf-8")
    assert _text(load_adapter("janus", str(folder)), "red owl") == FIRST


def test_a_chat_template_decides_in_transformers_layout(hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, "janus", tmp_path)
    file = folder / "chat_template.jinja"
    text = file.read_text(encoding="utf-8")
    new = text.replace("<|User|>", "User").replace("<|Assistant|>", "Assistant")
    assert new != text
    file.write_text(new, encoding="utf-8")
    assert _text(load_adapter("janus", str(folder)), "red owl") == FIRST


def test_safetensors_in_deepseeks_layout(hub_folders: Path, tmp_path: Path):
    """As fine-tuning scripts of today write it, in two files."""
    folder = copy_of(hub_folders, "deepseek", tmp_path)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    names = list(weights)
    places = {}
    for number, part in enumerate((names[:50], names[50:])):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({name: weights[name].contiguous() for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    found = load_adapter("janus", str(folder)).module.state_dict()
    for name, value in (
        load_adapter("janus", str(hub_folders / "deepseek")).module.state_dict().items()
    ):
        assert torch.equal(found[name], value), name


def test_a_lora_on_deepseeks_layout_names_its_base(hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, "deepseek", tmp_path)
    model = load_adapter("janus", str(folder))
    attach_lora(model, rank=2, alpha=2)
    assert model.module.peft_config["default"].base_model_name_or_path == str(folder)
