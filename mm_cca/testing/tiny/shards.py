"""Weights, JSON files and tokenizers as the hub's folders hold them."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from mm_cca.testing.tiny.sizes import Layout

INDEX = "model.safetensors.index.json"


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 2) -> None:
    """``model-00001-of-0000N.safetensors`` ... and their index, as large checkpoints are stored."""
    names = list(tensors)
    per_file = -(-len(names) // shards)
    places: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        held = names[number * per_file : (number + 1) * per_file]
        save_file(
            {name: tensors[name].contiguous() for name in held},
            folder / file,
            metadata={"format": "pt"},
        )
        places |= dict.fromkeys(held, file)
    total = sum(x.numel() * x.element_size() for x in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def with_tokenizer_files(folder: Path, write: Callable[[Path], None], layout: Layout) -> Any:
    """The tokenizer whose files of the hub ``write`` makes; in the folder are those of a layout.

    ``transformers``: what the tokenizer read from the hub's files saves today.
    """
    if layout == "hub":
        write(folder)
        return AutoTokenizer.from_pretrained(folder)
    with TemporaryDirectory() as hub:
        write(Path(hub))
        tokenizer = AutoTokenizer.from_pretrained(hub)
    tokenizer.save_pretrained(folder)
    return tokenizer


def old_merges(merges: list[Any]) -> list[str]:
    """Merges of a tokenizer.json as the hub's folders hold them: "a b", not a list of two."""
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
