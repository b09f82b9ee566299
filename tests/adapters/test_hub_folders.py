"""Folders of Emu3 and Janus as the hub has them: what is odd about them, and what must be refused.

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
from mm_cca.modeling.lora import attach_lora
from mm_cca.testing.tiny import write_tiny
from mm_cca.testing.tiny.shards import INDEX
from tests.support.closeness import assert_close

GRID = (2, 2)
TINY = {"emu3": ("emu3", "hub"), "janus": ("janus", "hub"), "deepseek": ("janus", "deepseek")}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    for name, (family, layout) in TINY.items():
        write_tiny(family, root / name, side=2, layout=layout)
    return root


def _copy(tiny: Path, name: str, target: Path) -> Path:
    return Path(shutil.copytree(tiny / name, target / name))


def _json(file: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return value


def _change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(_json(file) | values), encoding="utf-8")


def test_what_is_odd_about_emu3s_folder(tiny: Path):
    folder = tiny / "emu3"
    names = _json(folder / INDEX)["weight_map"]
    assert "text_model.lm_head.weight" in names
    assert "text_model.model.embed_tokens.weight" in names
    assert not [name for name in names if name.startswith("model.")]
    assert len(set(names.values())) == 2
    config = _json(folder / "config.json")
    assert config["vq_config"]["temporal_downsample_factor"] == 4
    assert config["text_config"]["attention_dropout"] == 0.1
    assert config["text_config"]["rope_scaling"] == {"rope_type": "default"}
    assert _json(folder / "tokenizer_config.json")["tokenizer_class"] == "GPT2Tokenizer"
    stored = _json(folder / "tokenizer.json")
    assert (stored["normalizer"], stored["pre_tokenizer"]["type"]) == (None, "ByteLevel")
    assert "<image>" in stored["model"]["vocab"]
    assert "<|extra_0|>" not in stored["model"]["vocab"]


def test_what_is_odd_about_the_janus_folders(tiny: Path):
    hub, own = tiny / "janus", tiny / "deepseek"
    assert "tie_word_embeddings" not in _json(hub / "config.json")
    for folder in (hub, own):
        assert _json(folder / "preprocessor_config.json")["image_mean"] == [0.5, 0.5, 0.5]
        assert _json(folder / "tokenizer_config.json")["tokenizer_class"] == "LlamaTokenizerFast"
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


def test_deepseeks_layout_is_the_hubs_checkpoint(tiny: Path):
    """The two folders hold the same random weights by other names."""
    hub, own = (load_adapter("janus", str(tiny / name)) for name in ("janus", "deepseek"))
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
    assert own.layout(GRID).num_codes == 4


def test_deepseeks_layout_is_saved_in_transformers(tiny: Path, tmp_path: Path):
    own = load_adapter("janus", str(tiny / "deepseek"))
    own.save(tmp_path)
    assert _json(tmp_path / "config.json")["model_type"] == "janus"
    again = load_adapter("janus", str(tmp_path))
    for name, value in own.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    assert again.prompt_ids(["red owl"], GRID) == own.prompt_ids(["red owl"], GRID)
    assert again.pad_id == own.pad_id


def test_an_untied_head_survives_a_config_that_does_not_say_so(tiny: Path, tmp_path: Path):
    model = load_adapter("janus", str(tiny / "janus"))
    head = model.module.lm_head.weight
    assert not torch.equal(head, model.module.get_input_embeddings().weight)
    model.save(tmp_path)
    assert_close(load_file(tmp_path / "model.safetensors")["lm_head.weight"], head, 0)
    assert _json(tmp_path / "config.json")["tie_word_embeddings"] is False


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
    file: str, values: dict[str, object], expected: str, tiny: Path, tmp_path: Path
):
    folder = _copy(tiny, "deepseek", tmp_path)
    _change(folder / file, **values)
    model = load_adapter("janus", str(folder))
    assert _text(model, " red owl ") == expected
    model.save(tmp_path / "saved")
    assert _text(load_adapter("janus", str(tmp_path / "saved")), "red owl") == expected


def test_the_roles_of_a_folder_named_janus_1_3b(tiny: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny / "deepseek", tmp_path / "Janus-1.3B-anime"))
    assert _text(load_adapter("janus", str(folder)), "red owl") == FIRST


def test_a_tokenizer_without_janus_pros_roles(tiny: Path, tmp_path: Path):
    folder = _copy(tiny, "deepseek", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("<|User|>", "<|Other|>"), encoding="utf-8")
    assert _text(load_adapter("janus", str(folder)), "red owl") == FIRST


def test_a_chat_template_decides_in_transformers_layout(tiny: Path, tmp_path: Path):
    folder = _copy(tiny, "janus", tmp_path)
    file = folder / "chat_template.jinja"
    text = file.read_text(encoding="utf-8")
    new = text.replace("<|User|>", "User").replace("<|Assistant|>", "Assistant")
    assert new != text
    file.write_text(new, encoding="utf-8")
    assert _text(load_adapter("janus", str(folder)), "red owl") == FIRST


def test_safetensors_in_deepseeks_layout(tiny: Path, tmp_path: Path):
    """As fine-tuning scripts of today write it, in two files."""
    folder = _copy(tiny, "deepseek", tmp_path)
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
    for name, value in load_adapter("janus", str(tiny / "deepseek")).module.state_dict().items():
        assert torch.equal(found[name], value), name
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"names 1 file.* lacks, such as model-00002-of-00002"):
        load_adapter("janus", str(folder))


@pytest.mark.parametrize("name", ["emu3", "janus"])
def test_an_index_that_names_an_absent_shard(name: str, tiny: Path, tmp_path: Path):
    folder = _copy(tiny, name, tmp_path)
    (folder / "model-00002-of-00002.safetensors").unlink()
    told = rf"{re.escape(INDEX)} names 1 file.*model-00002-of-00002\.safetensors.*download"
    with pytest.raises(UserError, match=told):
        load_adapter(TINY[name][0], str(folder))


@pytest.mark.parametrize("name", ["emu3", "janus", "deepseek"])
def test_missing_vq_weights(name: str, tiny: Path, tmp_path: Path):
    folder = _copy(tiny, name, tmp_path)
    if name == "deepseek":
        weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
        kept = {n: x for n, x in weights.items() if "gen_vision_model.decoder" not in n}
        torch.save(kept, folder / "pytorch_model.bin")
    else:
        places = _json(folder / INDEX)["weight_map"]
        for file in set(places.values()):
            kept = {n: x for n, x in load_file(folder / file).items() if "vqmodel.decoder" not in n}
            save_file(kept, folder / file, metadata={"format": "pt"})
        kept = {n: f for n, f in places.items() if "vqmodel.decoder" not in n}
        _change(folder / INDEX, weight_map=kept)
    with pytest.raises(UserError, match=r"lacks \d+ weights, such as model\.vqmodel\.decoder"):
        load_adapter(TINY[name][0], str(folder))


@pytest.mark.parametrize("name", TINY)
def test_a_missing_tokenizer(name: str, tiny: Path, tmp_path: Path):
    folder = _copy(tiny, name, tmp_path)
    for file in folder.iterdir():
        if file.name in ("merges.txt", "vocab.json") or "token" in file.name:
            file.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing: download the folder again"):
        load_adapter(TINY[name][0], str(folder))


def test_a_tokenizer_of_another_model(tiny: Path, tmp_path: Path):
    folder = _copy(tiny, "deepseek", tmp_path)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    changed = text.replace("<begin_of_image>", "<other>").replace("<｜▁pad▁｜>", "<another>")
    (folder / "tokenizer.json").write_text(changed, encoding="utf-8")
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"tokenizer\.json lacks .*<begin_of_image>.*take the token"
    ):
        load_adapter("janus", str(folder))


def test_an_unknown_form_of_conversations(tiny: Path, tmp_path: Path):
    folder = _copy(tiny, "deepseek", tmp_path)
    _change(folder / "processor_config.json", sft_format="llama-2")
    with pytest.raises(UserError, match=r"processor_config\.json: sft_format is 'llama-2'; known"):
        load_adapter("janus", str(folder))


def test_deepseeks_folder_without_weights(tiny: Path, tmp_path: Path):
    folder = _copy(tiny, "deepseek", tmp_path)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_adapter("janus", str(folder))


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle ran",))


def test_a_pickle_with_code_is_refused(tiny: Path, tmp_path: Path):
    folder = _copy(tiny, "deepseek", tmp_path)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": _Evil()}))
    with pytest.raises(UserError, match="can't be read by the adapter"):
        load_adapter("janus", str(folder))
    torch.save({"x": _Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="can't be read by the adapter"):
        load_adapter("janus", str(folder))


def test_a_weight_that_says_a_size_is_missing(tiny: Path, tmp_path: Path):
    folder = _copy(tiny, "deepseek", tmp_path)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del weights["vision_model.vision_tower.pos_embed"]
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"lacks the weight .*position_embedding"):
        load_adapter("janus", str(folder))


@pytest.mark.parametrize("layers", [1, 3])
def test_a_language_config_of_another_size(layers: int, tiny: Path, tmp_path: Path):
    folder = _copy(tiny, "deepseek", tmp_path)
    config = _json(folder / "config.json")
    config["language_config"] |= (
        {"num_hidden_layers": layers} if layers > 1 else {"intermediate_size": 96}
    )
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"lacks 9 weights, such as .*layers\.2|has shape \[32, 64\]"
    ):
        load_adapter("janus", str(folder))


@pytest.mark.parametrize(
    ("name", "positions", "warned"),
    [("Emu3-Chat-hf", 300, True), ("x", 131072, True), ("x", 300, False)],
)
def test_emu3_chat_is_told_from_emu3_gen(
    name: str,
    positions: int,
    warned: bool,
    tiny: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    folder = Path(shutil.copytree(tiny / "emu3", tmp_path / name))
    config = _json(folder / "config.json")
    config["text_config"]["max_position_embeddings"] = positions
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        load_adapter("emu3", str(folder))
    assert ("looks like Emu3-Chat" in caplog.text) == warned


def test_a_damaged_file_of_deepseeks_names_it(tiny: Path, tmp_path: Path):
    folder = _copy(tiny, "deepseek", tmp_path)
    file = next(folder.glob("pytorch_model*.bin"))
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=rf"{file.name} is damaged .*download it again"):
        load_adapter("janus", str(folder))


def test_a_lora_on_deepseeks_layout_names_its_base(tiny: Path, tmp_path: Path):
    folder = _copy(tiny, "deepseek", tmp_path)
    model = load_adapter("janus", str(folder))
    attach_lora(model, rank=2, alpha=2)
    assert model.module.peft_config["default"].base_model_name_or_path == str(folder)
