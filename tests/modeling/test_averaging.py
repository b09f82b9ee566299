"""Means of checkpoints in files by hand: shards, precision, and tensors that do not match."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm_cca.errors import UserError
from mm_cca.modeling.averaging import average_full, average_loras


def folder_of(path: Path, *shards: dict[str, torch.Tensor]) -> Path:
    """A checkpoint in one file, or in shards with their index."""
    path.mkdir()
    (path / "config.json").write_text(f'"{path.name}"')
    names = [f"model-{number}.safetensors" for number in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        places = {
            tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        index = json.dumps({"weight_map": places})
        (path / "model.safetensors.index.json").write_text(index)
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, path / name, metadata={"format": "pt"})
    return path


def target_of(tmp_path: Path) -> Path:
    (tmp_path / "mean").mkdir()
    return tmp_path / "mean"


def test_shards_by_hand(tmp_path: Path):
    """The result is cut into files as the first one is."""
    one = folder_of(tmp_path / "one", {"a": torch.tensor([1.0, 2.0])}, {"b": torch.tensor([[5.0]])})
    two = folder_of(tmp_path / "two", {"a": torch.tensor([3.0, 6.0]), "b": torch.tensor([[1.0]])})
    mean = target_of(tmp_path)
    average_full([one, two], [0.25, 0.75], mean)
    assert load_file(mean / "model-0.safetensors")["a"].tolist() == [2.5, 5.0]
    assert load_file(mean / "model-1.safetensors")["b"].tolist() == [[2.0]]
    assert {path.name for path in mean.iterdir()} == {path.name for path in one.iterdir()}
    assert (mean / "config.json").read_text() == '"one"'


def test_half_precision_is_summed_in_float32(tmp_path: Path):
    """256 + 1 + 1 is 258, but in bfloat16 256 + 1 is 256."""
    numbers = (256.0, 1.0, 1.0)
    folders = [
        folder_of(tmp_path / str(i), {"a": torch.tensor([x], dtype=torch.bfloat16)})
        for i, x in enumerate(numbers)
    ]
    average_full(folders, [1.0, 1.0, 1.0], target_of(tmp_path))
    found = load_file(tmp_path / "mean" / "model.safetensors")["a"]
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [258.0]


def test_equal_tensors_are_kept_bit_for_bit(tmp_path: Path):
    frozen = {"a": torch.randn(50), "count": torch.tensor([7])}
    folders = [folder_of(tmp_path / name, frozen) for name in ("one", "two", "three")]
    average_full(folders, [1 / 3] * 3, target_of(tmp_path))
    found = load_file(tmp_path / "mean" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in frozen.items())


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"a": torch.zeros(3), "n": torch.tensor([1])}, r"a is \[2\] in F32 and \[3\] in F32"),
        ({"a": torch.zeros(2).half(), "n": torch.tensor([1])}, r"\[2\] in F32 and \[2\] in F16"),
        ({"b": torch.zeros(2), "n": torch.tensor([1])}, "only .*/one has a"),
        ({"a": torch.zeros(2), "n": torch.tensor([2])}, "n has other integer values"),
    ],
)
def test_tensors_that_do_not_match(tmp_path: Path, other: dict[str, torch.Tensor], why: str):
    one = folder_of(tmp_path / "one", {"a": torch.ones(2), "n": torch.tensor([1])})
    two = folder_of(tmp_path / "two", other)
    with pytest.raises(UserError, match=why) as caught:
        average_full([one, two], [0.5, 0.5], target_of(tmp_path))
    assert f"{one} and {two} can't be averaged" in str(caught.value)


def test_a_folder_without_safetensors(tmp_path: Path):
    one = folder_of(tmp_path / "one", {"a": torch.ones(2)})
    (tmp_path / "two").mkdir()
    with pytest.raises(UserError, match=r"two can't be averaged: it holds no model.safetensors"):
        average_full([one, tmp_path / "two"], [0.5, 0.5], target_of(tmp_path))


def lora_of(path: Path, down: list[list[float]], up: list[list[float]], alpha: float) -> Path:
    """One layer: ``down`` is A [r, in], ``up`` is B [out, r]."""
    path.mkdir()
    tensors = {"x.lora_A.weight": torch.tensor(down), "x.lora_B.weight": torch.tensor(up)}
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"r": len(down), "lora_alpha": alpha, "target_modules": ["x"]}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def test_loras_by_hand(tmp_path: Path):
    """2 * [1] [1, 0] and [1 2] [[0, 1], [1, 1]]: half of each is [1, 0] and [1, 1.5]."""
    one = lora_of(tmp_path / "one", [[1.0, 0.0]], [[1.0]], alpha=2)
    two = lora_of(tmp_path / "two", [[0.0, 1.0], [1.0, 1.0]], [[1.0, 2.0]], alpha=2)
    assert average_loras([one, two], [0.5, 0.5], target_of(tmp_path)) == 3
    found = load_file(tmp_path / "mean" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "mean" / "adapter_config.json").read_text())
    assert config == {"r": 3, "lora_alpha": 3, "target_modules": ["x"]}
    assert (found["x.lora_B.weight"] @ found["x.lora_A.weight"]).tolist() == [[2.0, 1.5]]


def test_loras_of_other_shapes(tmp_path: Path):
    one = lora_of(tmp_path / "one", [[1.0, 0.0]], [[1.0]], alpha=2)
    two = lora_of(tmp_path / "two", [[1.0, 0.0, 0.0]], [[1.0]], alpha=2)
    with pytest.raises(UserError, match=r"x.lora_A.weight is \[1, 2\] and \[1, 3\]"):
        average_loras([one, two], [0.5, 0.5], target_of(tmp_path))
