"""What weights, texts and code are, in a short string that another machine finds too."""

import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path

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
    """The class of an adapter, with the sha256 of the file it is written in."""
    cls = type(instance)
    source = Path(inspect.getfile(cls)).read_bytes()
    return f"{cls.__module__}:{cls.__qualname__} {hashlib.sha256(source).hexdigest()[:16]}"
