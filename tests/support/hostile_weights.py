"""Weights that are cut, exchanged, no numbers, or pickles that run code."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import INDEX, SINGLE
from tests.support.hostile_case import Damage, Hostile, put_text

PARTS = {
    "decoder block": r"layers.1.mlp.down_proj.weight",
    "embedding": "embed_tokens.weight",
    "head": "lm_head.weight",
    "last norm": "norm.weight",
    "image decoder": "decoder.conv_in",
    "image encoder": "encoder.conv_in",
    "codebook": "quantize.embedding.weight",
    "code embedding": "generation_embeddings.weight",
}
IN_VQGAN = ("image encoder", "codebook")


def weights(folder: Path) -> Iterator[Hostile]:
    for file in [SINGLE, *(str(p.relative_to(folder)) for p in folder.glob("*/*.safetensors"))]:
        if file == SINGLE and not list(folder.glob("*.safetensors")):
            continue
        names = {name for path in _files(folder, file) for name in load_file(path)}
        for part, end in PARTS.items():
            name = next((n for n in sorted(names) if end in n), None)
            if name is not None:
                for what, change in CHANGES.items():
                    # An image tokenizer in a file of its own fills in what a folder lacks.
                    elsewhere = (folder / "vqgan.ckpt").exists() and part in IN_VQGAN
                    told = not (what == "dropped" and elsewhere)
                    yield Hostile(f"weights {part} {what}", _change(file, name, change), told)
        yield Hostile(f"weights all integers {file}", _change_all(file, _integers))
        yield Hostile(f"weights an extra tensor {file}", _extra(file), False)
        yield Hostile(f"weights none {file}", _change_all(file, lambda weight: None))
    if (folder / INDEX).exists():
        for name, text in INDICES.items():
            yield Hostile(f"index {name}", put_text(INDEX, text))


def _nan(weight: torch.Tensor) -> torch.Tensor:
    weight.view(-1)[-1] = torch.nan
    return weight


def _infinite(weight: torch.Tensor) -> torch.Tensor:
    weight.view(-1)[0] = torch.inf
    return weight


def _integers(weight: torch.Tensor) -> torch.Tensor:
    return weight.to(torch.int8)


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "nan": _nan,
    "infinite": _infinite,
    "integers": _integers,
    "dropped": lambda weight: None,
    "a row less": lambda weight: weight[:-1].clone(),
    "of another rank": lambda weight: weight.unsqueeze(0).clone(),
    "empty": lambda weight: weight[:0].clone(),
    "complex": lambda weight: weight.to(torch.complex64),
}
INDICES = {
    "empty": "",
    "list": "[]",
    "no map": "{}",
    "map null": '{"weight_map": null}',
    "map of lists": '{"weight_map": {"a": ["b"]}}',
    "map of numbers": '{"weight_map": {"a": 5}}',
    "map empty": '{"weight_map": {}}',
    "outside": '{"weight_map": {"a": "../../../etc/passwd"}}',
    "absolute": '{"weight_map": {"a": "/etc/passwd"}}',
    "itself": '{"weight_map": {"a": "model.safetensors.index.json"}}',
    "folder": '{"weight_map": {"a": "."}}',
}


def _files(folder: Path, file: str) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) if file == SINGLE else [folder / file]


def _change(file: str, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    def damage(folder: Path) -> None:
        for path in _files(folder, file):
            weights = load_file(path)
            if name in weights:
                changed = change(weights.pop(name))
                save_file(weights if changed is None else weights | {name: changed}, path, FORMAT)

    return damage


def _change_all(file: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    def damage(folder: Path) -> None:
        for path in _files(folder, file):
            changed = {name: change(weight) for name, weight in load_file(path).items()}
            save_file({n: x for n, x in changed.items() if x is not None}, path, FORMAT)

    return damage


FORMAT = {"format": "pt"}


def _extra(file: str) -> Damage:
    def damage(folder: Path) -> None:
        path = _files(folder, file)[0]
        save_file(load_file(path) | {"nobody.knows": torch.ones(3)}, path, FORMAT)

    return damage


class Evil:
    """Runs when it is unpickled by a careless reader."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self._mark), "w"))


def pickles(folder: Path) -> Iterator[Hostile]:
    """In place of the weights; ``RAN`` beside them would show that code ran."""
    for name, content in PICKLES.items():
        if list(folder.glob("*.safetensors")) or (folder / "pytorch_model.bin").exists():
            yield Hostile(
                f"pickle {name} pytorch_model.bin", _pickled("pytorch_model.bin", content)
            )
        for file in ("vqgan.ckpt", "Cosmos-1.0-Tokenizer-DV8x16x16/encoder.jit"):
            if (folder / file).exists():
                yield Hostile(f"pickle {name} {Path(file).name}", _pickled(file, content))


PICKLES: dict[str, Callable[[Path], bytes]] = {
    "evil": lambda mark: pickle.dumps({"state_dict": Evil(mark), "a": Evil(mark)}),
    "evil in protocol 0": lambda mark: pickle.dumps(Evil(mark), protocol=0),
    "list": lambda mark: pickle.dumps([1, 2]),
    "text": lambda mark: b"not a pickle",
    "empty": lambda mark: b"",
    "half a zip": lambda mark: b"PK\x03\x04" + bytes(40),
}


def _pickled(file: str, content: Callable[[Path], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        if file == "pytorch_model.bin":
            for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
                path.unlink()
        (folder / file).write_bytes(content(folder / "RAN"))

    return damage
