"""Folders of Emu3 and Janus in the hub's layouts that must be refused.

Every refusal is one UserError that names the file and what to do.
"""

import json
import logging
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm_cca import load_adapter
from mm_cca.errors import UserError
from mm_cca.testing.tiny.shards import INDEX
from tests.support.hub_folders import change_json, copy_of, read_json

ADAPTER = {"emu3": "emu3", "janus": "janus", "deepseek": "janus"}
"""Of a folder's name."""


@pytest.mark.parametrize("name", ["emu3", "janus"])
def test_an_index_that_names_an_absent_shard(name: str, hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, name, tmp_path)
    (folder / "model-00002-of-00002.safetensors").unlink()
    told = rf"{re.escape(INDEX)} names 1 file.*model-00002-of-00002\.safetensors.*download"
    with pytest.raises(UserError, match=told):
        load_adapter(ADAPTER[name], str(folder))


def test_an_absent_shard_in_deepseeks_layout(hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, "deepseek", tmp_path)
    places = {"language_model.lm_head.weight": "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match=r"names 1 file.* lacks, such as model-00002-of-00002"):
        load_adapter("janus", str(folder))


@pytest.mark.parametrize("name", ["emu3", "janus", "deepseek"])
def test_missing_vq_weights(name: str, hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, name, tmp_path)
    if name == "deepseek":
        weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
        kept = {n: x for n, x in weights.items() if "gen_vision_model.decoder" not in n}
        torch.save(kept, folder / "pytorch_model.bin")
    else:
        places = read_json(folder / INDEX)["weight_map"]
        for file in set(places.values()):
            kept = {n: x for n, x in load_file(folder / file).items() if "vqmodel.decoder" not in n}
            save_file(kept, folder / file, metadata={"format": "pt"})
        kept = {n: f for n, f in places.items() if "vqmodel.decoder" not in n}
        change_json(folder / INDEX, weight_map=kept)
    with pytest.raises(UserError, match=r"lacks \d+ weights, such as model\.vqmodel\.decoder"):
        load_adapter(ADAPTER[name], str(folder))


@pytest.mark.parametrize("name", ADAPTER)
def test_a_missing_tokenizer(name: str, hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, name, tmp_path)
    for file in folder.iterdir():
        if file.name in ("merges.txt", "vocab.json") or "token" in file.name:
            file.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing: download the folder again"):
        load_adapter(ADAPTER[name], str(folder))


def test_a_tokenizer_of_another_model(hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, "deepseek", tmp_path)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    changed = text.replace("<begin_of_image>", "<other>").replace("<｜▁pad▁｜>", "<another>")
    (folder / "tokenizer.json").write_text(changed, encoding="utf-8")
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"tokenizer\.json lacks .*<begin_of_image>.*take the token"
    ):
        load_adapter("janus", str(folder))


def test_an_unknown_form_of_conversations(hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, "deepseek", tmp_path)
    change_json(folder / "processor_config.json", sft_format="llama-2")
    with pytest.raises(UserError, match=r"processor_config\.json: sft_format is 'llama-2'; known"):
        load_adapter("janus", str(folder))


def test_deepseeks_folder_without_weights(hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, "deepseek", tmp_path)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(
        UserError, match=r"model\.safetensors is missing.*nor pytorch_model\.bin.*download"
    ):
        load_adapter("janus", str(folder))


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle ran",))


def test_a_pickle_with_code_is_refused(hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, "deepseek", tmp_path)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": _Evil()}))
    with pytest.raises(UserError, match="can't be read by the adapter"):
        load_adapter("janus", str(folder))
    torch.save({"x": _Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="can't be read by the adapter"):
        load_adapter("janus", str(folder))


def test_a_weight_that_says_a_size_is_missing(hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, "deepseek", tmp_path)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del weights["vision_model.vision_tower.pos_embed"]
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"lacks the weight .*position_embedding"):
        load_adapter("janus", str(folder))


@pytest.mark.parametrize("layers", [1, 3])
def test_a_language_config_of_another_size(layers: int, hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, "deepseek", tmp_path)
    config = read_json(folder / "config.json")
    config["language_config"] |= (
        {"num_hidden_layers": layers} if layers > 1 else {"intermediate_size": 96}
    )
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"lacks 9 weights, such as .*layers\.2|has shape \[32, 64\]"
    ):
        load_adapter("janus", str(folder))


@pytest.mark.parametrize(
    "name", ["Emu3-Chat-hf", "emu3-chat", "models--Emu3-community--Emu3-Chat-hf/snapshots/0a1"]
)
def test_emu3_chat_is_refused_by_its_published_name(name: str, hub_folders: Path, tmp_path: Path):
    """Nothing else tells it for sure: its classes, vocabulary and shapes are Emu3-Gen's."""
    folder = Path(shutil.copytree(hub_folders / "emu3", tmp_path / name))
    told = "is Emu3-Chat by its name.*set model.path to Emu3-community/Emu3-Gen-hf.*another name"
    with pytest.raises(UserError, match=told):
        load_adapter("emu3", str(folder))


@pytest.mark.parametrize(
    ("name", "positions", "warned"),
    [
        ("x", 131_072, True),
        ("x", 10_241, True),
        ("x", 10_240, False),  # a fine-tune by BAAI's scripts/t2i_sft.sh
        ("Emu3-Gen-hf", 9_216, False),
        ("Emu3-Stage1-hf", 5_120, False),  # it draws too, at 512 x 512
        ("emu3-chat/train/model", 9_216, False),  # a run of that name
        ("not-emu3-chat-2", 9_216, False),
    ],
)
def test_other_folders_of_emu3_are_read(
    name: str,
    positions: int,
    warned: bool,
    hub_folders: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    """Many positions are no proof: no weight depends on them."""
    folder = Path(shutil.copytree(hub_folders / "emu3", tmp_path / name))
    config = read_json(folder / "config.json")
    config["text_config"]["max_position_embeddings"] = positions
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        load_adapter("emu3", str(folder))
    assert ("may be Emu3-Chat" in caplog.text) == warned


def test_a_damaged_file_of_deepseeks_names_it(hub_folders: Path, tmp_path: Path):
    folder = copy_of(hub_folders, "deepseek", tmp_path)
    file = next(folder.glob("pytorch_model*.bin"))
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=rf"{file.name} is damaged .*download it again"):
        load_adapter("janus", str(folder))
