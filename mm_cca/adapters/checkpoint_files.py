"""The files of a checkpoint: what they hold, read without the weights, and single weights."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from mm_cca.adapters.headers import header_folder, reads_headers_only, without_content
from mm_cca.errors import UserError

SINGLE = "model.safetensors"
"""The file of a checkpoint that is not divided; else an index names the files."""
SAFE_INDEX = f"{SINGLE}.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any one of them is a text tokenizer."""
Shape: TypeAlias = tuple[int, ...]

FILE_ERRORS = (OSError, SafetensorError, json.JSONDecodeError)
"""What is raised for files that are missing or damaged, wherever they are read."""


class CheckpointError(Exception):
    """A file of the checkpoint is missing, damaged, or not what it should be."""


class UnreachableError(UserError):
    """There is nothing to look at: no such folder, or the hub can't be reached."""


@contextmanager
def reading_checkpoint() -> Iterator[None]:
    """Around calls of ``from_pretrained``: what they raise becomes CheckpointError.

    For a damaged file transformers raises nearly anything, AttributeError and KeyError included.
    An adapter's own code must stay outside, where such an error is a bug and keeps its traceback.

    Raises:
        CheckpointError: for anything raised inside but UserError.
    """
    try:
        yield
    except (UserError, CheckpointError):
        raise
    except Exception as error:
        raise CheckpointError(f"{type(error).__name__}: {error}") from error


def is_hub_name(path: str) -> bool:
    """Whether it can be OWNER/NAME on the hub: not a folder, and not below one."""
    parts = path.split("/")
    return len(parts) == 2 and parts[0] not in ("", ".", "..", "~") and not Path(parts[0]).is_dir()


def refuse_without_tokenizer(path: str) -> None:
    """Raises CheckpointError if a local folder holds no file of a text tokenizer."""
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZERS):
        raise CheckpointError("tokenizer.json is missing: download the folder again")


@reading_checkpoint()
def shapes(path: str) -> dict[str, Shape]:
    """The shape of every weight of a checkpoint folder or hub name; reads no weights.

    Empty for a folder without safetensors files.

    Raises:
        CheckpointError: a file is damaged, or the index names one that is absent.
    """
    found: dict[str, Shape] = {}
    folder, places = _places(path, lambda name: True)
    for file in sorted(set(places.values())):
        with _opened(folder / file) as opened:
            for name in opened.keys():  # noqa: SIM118 (safe_open has no __iter__)
                found[name] = tuple(opened.get_slice(name).get_shape())
    return found


@reading_checkpoint()
def read_tensors(path: str, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint folder or hub name whose names start with ``prefix``.

    Only the files that hold them are downloaded and opened. The prefix is removed from the names.

    Raises:
        CheckpointError: a file is damaged, or the index names one that is absent.
    """
    tensors = {}
    folder, places = _places(path, lambda name: name.startswith(prefix))
    for file in sorted(set(places.values())):
        with _opened(folder / file) as opened:
            for name in opened.keys():  # noqa: SIM118 (safe_open has no __iter__)
                if name.startswith(prefix):
                    tensors[name.removeprefix(prefix)] = _content(opened, name)
    return tensors


def refuse_absent_shards(path: str) -> None:
    """Raises CheckpointError if a local folder's index names a weight file that isn't there."""
    for index in (SAFE_INDEX, TORCH_INDEX):
        file = Path(path) / index
        if not file.is_file():
            continue
        with reading_checkpoint():
            named = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
        _refuse_absent(file.parent, index, named)


def _refuse_absent(folder: Path, index: str, named: Iterable[str]) -> None:
    absent = sorted({name for name in named if not (folder / name).exists()})
    if absent:
        raise CheckpointError(
            f"{index} names {len(absent)} file(s) that the folder lacks, such as {absent[0]}: "
            "download the folder again (hf download repeats only what is missing)"
        )


def _places(path: str, wanted: Callable[[str], bool]) -> tuple[Path, dict[str, str]]:
    """The local folder, and the file of every wanted weight; a hub name is downloaded first."""
    if reads_headers_only() and not Path(path).is_dir():
        path = str(header_folder(path))
    local = Path(path).is_dir()
    folder = Path(path) if local else Path(snapshot_download(path, allow_patterns=["*.json"]))
    index, single = folder / SAFE_INDEX, {"": SINGLE}
    if not index.exists():
        if not local:
            folder = Path(snapshot_download(path, allow_patterns=["*.json", SINGLE]))
        return folder, single if (folder / SINGLE).exists() else {}
    places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    places = {name: file for name, file in places.items() if wanted(name)}
    files = sorted(set(places.values()))
    if not local and files:
        folder = Path(snapshot_download(path, allow_patterns=["*.json", *files]))
    _refuse_absent(folder, SAFE_INDEX, files)
    return folder, places


def read_file(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of one ``.safetensors`` file. Raises SafetensorError or OSError."""
    with safe_open(file, framework="pt") as opened:
        return {name: _content(opened, name) for name in opened.keys()}  # noqa: SIM118


def _content(opened: Any, name: str) -> torch.Tensor:
    if reads_headers_only():
        return without_content(opened, name)
    tensor: torch.Tensor = opened.get_tensor(name)
    return tensor


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        raise CheckpointError(
            f"{file.name} is damaged ({error}): download or copy it again"
        ) from error
