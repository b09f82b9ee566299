"""Digests of weights, texts and code; the same on every machine."""

import hashlib
import inspect
import json
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mm_cca.runs.files import write_json

BASE = "base.json"
"""In a training's folder: which weights it started from."""


def weights_digest(module: nn.Module) -> str:
    """sha256 over names, dtypes and bytes of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def record_base(module: nn.Module, folder: Path) -> None:
    """Write the digest of the base into a training's folder, unless an earlier start did."""
    path = folder / BASE
    if not path.exists():
        write_json(path, {"weights_sha256": weights_digest(module)})


def recorded_base(folder: Path) -> str | None:
    """The digest that ``record_base`` wrote; None in trainings from before it was recorded."""
    path = folder / BASE
    if not path.exists():
        return None
    digest: str = json.loads(path.read_text())["weights_sha256"]
    return digest


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
    """[M, P] left-padded ids, their bool mask and [M, N] codes -> [M] uint64, one hash per row."""
    ids, mask, codes = (tensor.cpu() for tensor in (ids, mask, codes))
    keys = []
    for row, real, image in zip(ids, mask, codes, strict=True):
        digest = hashlib.blake2b(row[real].numpy().tobytes(), digest_size=8)
        digest.update(image.numpy().tobytes())
        keys.append(int.from_bytes(digest.digest(), "little"))
    return np.array(keys, dtype=np.uint64)
