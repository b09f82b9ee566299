"""Folders that an adapter must refuse: another family or layout, missing weights, damaged files.

A bug in an adapter's own code is none of these: it keeps its type and its traceback.
"""

import json
import re
import shutil
import traceback
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mm_cca import load_adapter
from mm_cca.adapters.loading import CheckpointError, load_module
from mm_cca.config.shipped import ADAPTERS
from mm_cca.errors import UserError
from mm_cca.testing.tiny import image_tokenizer_of, tokenizer_of, write_tiny
from tests.support.checkpoints import SINGLE, copy_with, last_weight_file, weights_of
from tests.support.third_party import THIRD_PARTY, checkpoint_paths


@pytest.mark.parametrize(
    ("adapter", "folder", "told"),
    [
        ("emu3", "janus", "set model.adapter to janus"),
        ("janus", "chameleon", "set model.adapter to chameleon or lumina-mgpt"),
        ("chameleon", "third-party", "no adapter reads that family"),
    ],
)
def test_a_folder_of_another_family_is_refused(adapter: str, folder: str, told: str, folders: Path):
    with pytest.raises(UserError, match=told):
        load_adapter(adapter, str(folders / folder))


@pytest.mark.parametrize("adapter", ["emu3", "janus"])
def test_an_image_tokenizer_where_none_is_wanted(adapter: str, folders: Path):
    with pytest.raises(UserError, match=rf"allowed for {adapter}: null"):
        load_adapter(adapter, str(folders / adapter), image_tokenizer="vqgan.ckpt")


@pytest.mark.parametrize("adapter", ["emu3", "janus", THIRD_PARTY])
def test_a_tokenizer_where_none_is_wanted(adapter: str, folders: Path):
    with pytest.raises(UserError, match=rf"model\.tokenizer is 'x'; allowed for {adapter}: null"):
        load_adapter(adapter, **checkpoint_paths(folders, adapter) | {"tokenizer": "x"})


@pytest.mark.parametrize("family", ["chameleon", "lumina-mgpt"])
@pytest.mark.parametrize("number", [1, 2])
def test_an_index_that_names_an_absent_shard(family: str, number: int, tmp_path: Path):
    write_tiny(family, tmp_path, side=4)
    shard = f"model-{number:05d}-of-00002.safetensors"
    (tmp_path / shard).unlink()
    told = rf"model\.safetensors\.index\.json names 1 file.*, such as {shard}: download the folder"
    with pytest.raises(UserError, match=told):
        load_adapter(
            family,
            str(tmp_path),
            image_tokenizer=image_tokenizer_of(family, tmp_path),
            tokenizer=tokenizer_of(family, tmp_path),
        )


@pytest.mark.parametrize(
    ("config", "adapter", "told"),
    [
        ({"model_type": "Emu3", "vocab_size": 184622}, "emu3", "convert_emu3_weights_to_hf"),
        ({"model_type": "Emu3", "vocab_size": 282926}, "emu3", "set model.adapter to emu3p5"),
        ({"model_type": "Emu3", "head_dim": 128}, "emu3", "set model.adapter to emu3p5"),
        ({"model_type": "qwen3", "vocab_size": 282926}, "emu3", "set model.adapter to emu3p5"),
        ({"model_type": "qwen3", "vocab_size": 151936}, "emu3", "no adapter reads that family"),
        ({"model_type": "multi_modality"}, "janus", "it has no image codes"),
        ({"model_type": "multi_modality", "gen_vision_config": {}}, "emu3", "adapter to janus"),
    ],
)
def test_a_config_of_another_kind(
    config: dict[str, object], adapter: str, told: str, tmp_path: Path
):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=told):
        load_adapter(adapter, str(tmp_path))


@pytest.mark.parametrize("family", ADAPTERS)
def test_a_config_that_does_not_match_its_weights(family: str, both_folders: Path, tmp_path: Path):
    where = checkpoint_paths(both_folders, family)
    shutil.copytree(str(where["path"]), tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "config.json").read_text()
    assert '"intermediate_size": 64' in text
    (tmp_path / "config.json").write_text(
        text.replace('"intermediate_size": 64', '"intermediate_size": 96')
    )
    with pytest.raises(UserError, match=r"_proj.weight has shape .*, but config.json describes"):
        load_adapter(family, **where | {"path": str(tmp_path)})


@pytest.mark.parametrize(
    "family", [f for f in ADAPTERS if f not in ("emu3p5", "liquid", "simplear")]
)
def test_missing_vq_weights_are_refused(family: str, folders: Path, tmp_path: Path):
    kept = {n: x for n, x in weights_of(folders / family).items() if "vqmodel" not in n}
    copy_with(folders / family, tmp_path, kept)
    where = checkpoint_paths(folders, family) | {"path": str(tmp_path), "image_tokenizer": None}
    with pytest.raises(UserError, match=r"lacks \d+ weights|does not fit|no image decoder"):
        load_adapter(family, **where)


def _copy_of(folders: Path, family: str, target: Path) -> dict[str, object]:
    where = checkpoint_paths(folders, family)
    shutil.copytree(str(where["path"]), target)
    inner = str(target / "tokenizer") if where.get("tokenizer") else None
    return where | {"path": str(target), "tokenizer": inner}


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def _garbage(file: Path) -> None:
    assert file.exists()
    file.write_bytes(b"\x80\xffgarbage" * 20)


def _half_of_it(file: Path) -> None:
    file.write_text(file.read_text()[: file.stat().st_size // 2])


def _a_list(file: Path) -> None:
    assert file.exists()
    file.write_text("[1, 2]")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (SINGLE, _truncate),
        (SINGLE, _garbage),
        (SINGLE, Path.unlink),
        ("config.json", _garbage),
        ("config.json", _half_of_it),
        ("config.json", _a_list),
        ("config.json", Path.unlink),
        ("tokenizer.json", _garbage),
        ("tokenizer.json", _half_of_it),
        ("tokenizer.json", _a_list),
        ("tokenizer_config.json", _half_of_it),
    ],
)
@pytest.mark.parametrize("family", [*ADAPTERS, THIRD_PARTY])
def test_a_damaged_file_is_named_with_the_fix(
    family: str, name: str, damage, both_folders: Path, tmp_path: Path
):
    """``SINGLE`` stands for the last file of weights, which in the hub's layout is a shard."""
    where = _copy_of(both_folders, family, tmp_path / "copy")
    key = "tokenizer" if where["tokenizer"] and name.startswith("tokenizer") else "path"
    copy = Path(str(where[key]))
    if name.startswith("tokenizer") and not (copy / name).exists():
        copy = copy / "tokenizer_emu3_ibq"  # Emu3.5's on the hub, without a tokenizer.json
        name = "emu3.tiktoken"
    file = last_weight_file(copy) if name == SINGLE else copy / name
    damage(file)
    fix = r"[Dd]ownload (it|the folder) again|[Dd]ownload or copy it again"
    with pytest.raises(UserError, match=rf"(?s){re.escape(file.name)}.*({fix})"):
        load_adapter(family, **where)


@pytest.mark.parametrize("family", ["emu3", "chameleon"])
@pytest.mark.parametrize("vocabulary_map", [None, {}, {"<image>": 3}])
def test_a_config_without_image_tokens(
    family: str, vocabulary_map: object, folders: Path, tmp_path: Path
):
    where = _copy_of(folders, family, tmp_path / "copy")
    file = tmp_path / "copy" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocabulary_map": vocabulary_map}))
    with pytest.raises(UserError, match=r"no image tokens \(vocabulary_map in its config\.json\)"):
        load_adapter(family, **where)


def test_a_tokenizer_without_padding(folders: Path, tmp_path: Path):
    where = _copy_of(folders, THIRD_PARTY, tmp_path / "copy")
    file = tmp_path / "copy" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": None}))
    with pytest.raises(UserError, match="no padding token"):
        load_adapter(THIRD_PARTY, **where)


BUGS = {
    AttributeError: lambda: object().no_such_thing,
    TypeError: lambda: len(None),
    ValueError: lambda: int("three"),
    KeyError: lambda: {}["missing"],
    RuntimeError: lambda: torch.zeros(2).view(3),
}


@pytest.mark.parametrize("kind", BUGS)
@pytest.mark.parametrize("place", ["__init__", "load"])
def test_a_bug_of_an_adapter_keeps_its_traceback(
    place: str, kind: type[Exception], folders: Path, monkeypatch: pytest.MonkeyPatch
):
    import tests.example_adapter as example

    def buggy(*parts: object) -> None:
        BUGS[kind]()

    monkeypatch.setattr(example.AppendedCodes, place, buggy)
    with pytest.raises(kind) as caught:
        load_adapter(THIRD_PARTY, **checkpoint_paths(folders, THIRD_PARTY))
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert type(caught.value) is kind
    assert "buggy" in frames


class BuggyLlama(LlamaForCausalLM):
    """A model class of an adapter's author, with a mistake in it."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.width = config.hidden_sizes  # the name is hidden_size


def test_a_bug_of_an_authors_model_class_keeps_its_type(folders: Path):
    path = str(folders / "third-party")
    config = LlamaConfig.from_pretrained(path)
    with pytest.raises(AttributeError, match="hidden_sizes"):
        load_module(BuggyLlama, path, config, torch.float32)


def test_a_stock_class_with_another_shape_is_a_checkpoint_error(folders: Path):
    path = str(folders / "third-party")
    config = LlamaConfig.from_pretrained(path, intermediate_size=96)
    with pytest.raises(
        CheckpointError, match=r"proj\.weight has shape \[\d+, \d+\], but config\.json describes \["
    ):
        load_module(LlamaForCausalLM, path, config, torch.float32)


@pytest.mark.parametrize("name", ["tests.example_adapter:NoSuchClass", "no_such_module:Class"])
def test_an_adapter_that_is_not_there(name: str, folders: Path):
    with pytest.raises(UserError, match=r"can't be imported: .*(NoSuchClass|no_such_module)"):
        load_adapter(name, str(folders / "third-party"))


@pytest.mark.parametrize(
    ("number", "code", "error"),
    [
        (1, "import math\nmath.no_such_function\n", AttributeError),
        (2, "from math import no_such_function\n", ImportError),
        (3, "import no_such_package\n", UserError),  # for the user to install
    ],
)
def test_a_module_that_fails_while_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str, error: type[Exception]
):
    (tmp_path / f"fails_at_import_{number}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error, match="no_such") as caught:
        load_adapter(f"fails_at_import_{number}:Mine", "x")
    assert caught.type is error


def test_an_unknown_tiny_family(tmp_path: Path):
    with pytest.raises(UserError, match=r"allowed: emu3, .*lumina-mgpt, liquid, simplear"):
        write_tiny("show-o", tmp_path / "x")


def test_a_tiny_checkpoint_overwrites_nothing(folders: Path):
    with pytest.raises(UserError, match="holds a checkpoint already"):
        write_tiny("janus", folders / "janus")


@pytest.mark.parametrize("family", ["liquid", "simplear"])
def test_a_folder_without_a_tokenizer(family: str, both_folders: Path, tmp_path: Path):
    where = _copy_of(both_folders, family, tmp_path / "copy")
    for file in (tmp_path / "copy").iterdir():
        of_text = file.name in ("merges.txt", "vocab.json") or "token" in file.name
        if of_text and file.is_file():
            file.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing: download the folder again"):
        load_adapter(family, **where)


@pytest.mark.parametrize("family", ["chameleon", "lumina-mgpt", "liquid"])
def test_an_image_tokenizer_that_is_not_there(family: str, folders: Path):
    where = checkpoint_paths(folders, family) | {"image_tokenizer": "vqgan.ckpt"}
    with pytest.raises(UserError, match=r"'vqgan\.ckpt' is not there\. Set .* Chameleon download"):
        load_adapter(family, **where)


def test_a_tokenizer_folder_that_is_not_there(folders: Path):
    where = checkpoint_paths(folders, "lumina-mgpt")
    with pytest.raises(UserError, match="there is no such folder"):
        load_adapter("lumina-mgpt", **where | {"tokenizer": f"{where['path']}/tokenzier"})


def test_emu3p5_without_head_dim_is_not_sent_to_emu3(folders: Path, tmp_path: Path):
    """Its vocabulary tells it; both adapters look at the same table of kinds."""
    where = _copy_of(folders, "emu3p5", tmp_path / "copy")
    config = {"model_type": "Emu3", "vocab_size": 282926}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"set model\.adapter to emu3p5"):
        load_adapter("emu3", str(tmp_path / "copy"))
    with pytest.raises(UserError, match="vocabulary of 282926 is not"):
        load_adapter("emu3p5", **where)
