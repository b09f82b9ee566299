"""What weights, texts and code are, in a short string that another machine finds too."""

import hashlib
import inspect
from collections.abc import Iterable
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import torch
from torch import nn


def weights_digest(module: nn.Module) -> str:
    """sha256 over names, dtypes and bytes of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def texts_digest(texts: Iterable[str]) -> str:
    """sha256 over texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def code_digest(instance: object) -> str:
    """The class of an adapter, the sha256 of the file it is written in, and transformers' version.

    Prompt templates that lie elsewhere show in ``row_keys``.
    """
    cls = type(instance)
    source = hashlib.sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()[:16]
    version = metadata.version("transformers")
    return f"{cls.__module__}:{cls.__qualname__} {source}, transformers {version}"


def words_digest(path: str | None) -> str:
    """sha256 over the shipped attribute words and the file that adds to them."""
    digest = hashlib.sha256()
    digest.update(resources.files("mm_cca.negatives").joinpath("words.yaml").read_bytes())
    if path is not None:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def row_keys(ids: torch.Tensor, mask: torch.Tensor, codes: torch.Tensor) -> np.ndarray:
    """[M, P] left-padded ids, their bool mask and [M, N] codes -> [M] uint64, one hash a row."""
    ids, mask, codes = (tensor.cpu() for tensor in (ids, mask, codes))
    found = []
    for row, real, image in zip(ids, mask, codes, strict=True):
        digest = hashlib.blake2b(row[real].numpy().tobytes(), digest_size=8)
        digest.update(image.numpy().tobytes())
        found.append(int.from_bytes(digest.digest(), "little"))
    return np.array(found, dtype=np.uint64)
