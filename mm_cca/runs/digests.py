"""Digests of weights, texts and code; the same on every machine."""

import hashlib
import inspect
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn
from typing_extensions import TypedDict

from mm_cca.config.read_files import is_there, json_of
from mm_cca.errors import UserError
from mm_cca.runs.files import write_json
from mm_cca.runs.places import digests_of

_verified: set[tuple[str, str, int, int]] = set()
"""Files whose digest this process has compared: path, digest, size and time."""
BASE = "base.json"
"""In a training's folder: which weights it started from."""


class _Base(TypedDict):
    weights_sha256: str


def weights_digest(module: nn.Module) -> str:
    """sha256 over names, dtypes and bytes of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def model_digests(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file in a model's folder: weights, configs and tokenizers."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".md")
    return dict(zip(names, digests_of(folder / name for name in names), strict=True))


def refuse_other_files(folder: Path, expected: Mapping[str, str], advice: str) -> None:
    """Compare files with their digests, once per process and file.

    Args:
        folder: of the files.
        expected: name -> sha256.
        advice: what to delete or do, a sentence.

    Raises:
        UserError: one is missing or has other bytes, by name.
    """
    unseen = {}
    for name, digest in expected.items():
        path = folder / name
        try:
            state = path.stat()
        except OSError as error:
            raise UserError(f"{path} is missing or can't be read: {error}. {advice}") from error
        seen = (str(path.resolve()), digest, state.st_size, state.st_mtime_ns)
        if seen not in _verified:
            unseen[name] = seen
    try:
        digests = digests_of(folder / name for name in unseen)
    except OSError as error:
        raise UserError(f"{folder} can't be read: {error}. {advice}") from error
    for (name, seen), digest in zip(unseen.items(), digests, strict=True):
        if digest != expected[name]:
            raise UserError(
                f"{folder / name} is not the file that was written (its sha256 differs: damaged, "
                f"or another file). {advice}"
            )
        _verified.add(seen)


def record_base(module: nn.Module, folder: Path) -> None:
    """Write the digest of the base into a training's folder, or compare it with the earlier one.

    Raises:
        UserError: the training began from other weights.
    """
    path, digest, earlier = folder / BASE, weights_digest(module), recorded_base(folder)
    if earlier is None:
        write_json(path, {"weights_sha256": digest})
    elif earlier != digest:
        raise UserError(
            f"model.path holds other weights than {folder} began from ({path}: sha256 "
            f"{earlier[:12]}..., now {digest[:12]}...). Restore them, or delete {folder} to start "
            "over."
        )


def recorded_base(folder: Path) -> str | None:
    """The digest that ``record_base`` wrote; None in trainings from before it was recorded.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / BASE
    if not is_there(path):
        return None
    advice = (
        "It says which weights the training began from. Restore it, or delete "
        f"{folder} to start over."
    )
    return json_of(path, _Base, advice)["weights_sha256"]


def code_digest(instance: object) -> str:
    """The class of an adapter, the sha256 of its source files, and transformers' version.

    Files of base classes are included. Prompt templates stored elsewhere change ``row_keys``.
    """
    cls = type(instance)
    bases = (base for base in cls.__mro__ if base.__module__ not in ("builtins", "typing", "abc"))
    digest = hashlib.sha256()
    for file in dict.fromkeys(inspect.getfile(base) for base in bases):
        digest.update(Path(file).read_bytes())
    version = metadata.version("transformers")
    return f"{cls.__module__}:{cls.__qualname__} {digest.hexdigest()[:16]}, transformers {version}"


def row_keys(ids: torch.Tensor, mask: torch.Tensor, codes: torch.Tensor) -> np.ndarray:
    """[M, P] padded ids, their bool mask and [M, N] codes -> [M] uint64, one hash per row."""
    ids, mask, codes = (tensor.cpu() for tensor in (ids, mask, codes))
    keys = []
    for row, real, image in zip(ids, mask, codes, strict=True):
        digest = hashlib.blake2b(row[real].numpy().tobytes(), digest_size=8)
        digest.update(image.numpy().tobytes())
        keys.append(int.from_bytes(digest.digest(), "little"))
    return np.array(keys, dtype=np.uint64)
