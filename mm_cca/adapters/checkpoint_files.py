"""The files of a checkpoint: what they hold, read without the weights, and single weights."""

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from mm_cca.adapters.headers import (
    header_folder,
    is_header_folder,
    reads_headers_only,
    without_content,
)
from mm_cca.errors import UserError

SINGLE = "model.safetensors"
"""The file of a checkpoint that is not divided; else an index names the files."""
SAFE_INDEX = f"{SINGLE}.index.json"
TORCH_SINGLE = "pytorch_model.bin"
TORCH_INDEX = f"{TORCH_SINGLE}.index.json"
WEIGHT_FILES = (SINGLE, SAFE_INDEX, TORCH_SINGLE, TORCH_INDEX)
"""Any one of them says where the weights are."""
HOLD_WEIGHTS = (".safetensors", ".bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any one of them is a text tokenizer."""
MAPS = ("config.json", "tokenizer.json", "index.json")
"""Ends of the names of files that hold a map of keys."""
Shape: TypeAlias = tuple[int, ...]

NOT_ONLY_TENSORS = (
    "{} is damaged, or holds more than tensors, which would run as code: download it again, or, if "
    "you trust it, save its tensors as .safetensors files (safetensors.torch.save_file)"
)
LONGEST = 400
"""Characters shown of a library's message."""

FILE_ERRORS = (OSError, SafetensorError, json.JSONDecodeError)
"""What is raised for files that are missing or damaged, wherever they are read."""


class CheckpointError(Exception):
    """A file of the checkpoint is missing, damaged, or not what it should be."""


class UnreachableError(UserError):
    """There is nothing to look at: no such folder, or the hub can't be reached."""


class NoHeadersError(UnreachableError):
    """Weights of a hub name in files that must be downloaded whole before they show a shape."""


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
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            NOT_ONLY_TENSORS.format(f"{TORCH_SINGLE} (or a part of it)")
        ) from error
    except StrictDataclassError as error:
        raise CheckpointError(f"config.json: {_short(error)}: download it again") from error
    except Exception as error:
        raise CheckpointError(f"{type(error).__name__}: {_short(error)}") from error


def _short(error: Exception) -> str:
    """Its message on one line: some list every name that would be allowed."""
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def is_hub_name(path: str) -> bool:
    """Whether it can be OWNER/NAME on the hub: not a folder, and not below one."""
    parts = path.split("/")
    return len(parts) == 2 and parts[0] not in ("", ".", "..", "~") and not Path(parts[0]).is_dir()


def refuse_without_tokenizer(path: str, allowed: Sequence[str] = TOKENIZERS) -> None:
    """Raises CheckpointError if a local folder holds no file of a text tokenizer."""
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).exists() for name in allowed):
        raise CheckpointError("tokenizer.json is missing: download the folder again")


def damaged_file(*sources: str | None) -> str | None:
    """Names the first file of local folders that is not the JSON it should be, and the fix.

    transformers says where in a file it stopped, but for most files not in which.
    """
    for source in sources:
        for file in sorted(Path(source).glob("*.json")) if source else ():
            try:
                held = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:  # not JSON, or not even text
                return f"{file.name} is damaged ({error}): download or copy it again"
            if not isinstance(held, dict) and file.name.endswith(MAPS):
                found = type(held).__name__
                return f"{file.name} holds a {found}, not a map of keys: download or copy it again"
    return None


def refuse_without_headers(path: str) -> None:
    """Raises NoHeadersError where a hub name's weights are not in ``.safetensors`` files."""
    if is_header_folder(path) and not any(Path(path).glob("*.safetensors")):
        raise NoHeadersError(
            "they are no .safetensors files, so they have no headers that show their shapes; "
            "config.json is that of the adapter's family"
        )


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
def stored_kinds(path: str) -> dict[str, str]:
    """The type of every weight of a local folder, as safetensors calls it; reads no weights."""
    found: dict[str, str] = {}
    if not Path(path).is_dir():
        return found
    folder, places = _places(path, lambda name: True)
    for file in sorted(set(places.values())):
        with _opened(folder / file) as opened:
            for name in opened.keys():  # noqa: SIM118 (safe_open has no __iter__)
                found[name] = opened.get_slice(name).get_dtype()
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


def refuse_absent_weights(path: str) -> None:
    """Raises CheckpointError if a local folder lacks its weights, or one that its index names."""
    if Path(path).is_dir() and not any((Path(path) / name).exists() for name in WEIGHT_FILES):
        raise CheckpointError(
            f"{SINGLE} is missing, and there is no {SAFE_INDEX} either (nor {TORCH_SINGLE}, which "
            "would do): download the folder again"
        )
    for index in (SAFE_INDEX, TORCH_INDEX):
        file = Path(path) / index
        if not file.is_file():
            continue
        _refuse_absent(file.parent, index, sorted(set(read_index(file).values())))


@reading_checkpoint()
def read_index(file: Path) -> dict[str, str]:
    """The file of every weight, beside the index.

    Raises:
        CheckpointError: it is damaged, or names anything else than files of weights beside it.
    """
    held = json.loads(file.read_text(encoding="utf-8"))
    places = held.get("weight_map") if isinstance(held, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{file.name} has no weight_map: download it again")
    for name, place in places.items():
        if (
            not isinstance(place, str)
            or Path(place).name != place
            or not place.endswith(HOLD_WEIGHTS)
        ):
            raise CheckpointError(
                f"{file.name} gives {name} the file {place!r}; it must be the name of a file of "
                "weights in the same folder: download it again"
            )
    return places


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
    refuse_without_headers(path)
    local = Path(path).is_dir()
    folder = Path(path) if local else Path(snapshot_download(path, allow_patterns=["*.json"]))
    index, single = folder / SAFE_INDEX, {"": SINGLE}
    if not index.exists():
        if not local:
            folder = Path(snapshot_download(path, allow_patterns=["*.json", SINGLE]))
        return folder, single if (folder / SINGLE).exists() else {}
    places = {name: file for name, file in read_index(index).items() if wanted(name)}
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
