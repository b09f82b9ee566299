"""A checkpoint by the headers of its files: names, shapes and types of weights, but no weights.

Within ``headers_only()`` the functions of ``loading`` put every weight on torch's meta device, so
an adapter's own ``load`` finds what does not fit before 70 GB are downloaded or read.
"""

import json
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download

WEIGHTS = ["*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.jit", "*.gguf", "*.h5"]
"""Files of a hub repository that hold weights."""

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Of weights; anything else (an index, a counter) only has a shape that matters."""

_FOLDER: ContextVar[Path | None] = ContextVar("headers_only", default=None)


@contextmanager
def headers_only() -> Iterator[None]:
    """Within it, checkpoints are loaded without their weights (see the top of this file)."""
    with tempfile.TemporaryDirectory() as folder:
        token = _FOLDER.set(Path(folder))
        try:
            yield
        finally:
            _FOLDER.reset(token)


def reads_headers_only() -> bool:
    """Whether the caller is within ``headers_only()``."""
    return _FOLDER.get() is not None


def header_folder(repository: str) -> Path:
    """A folder with the small files of a hub repository, whose weight files have no content.

    Of every ``.safetensors`` file only the header is downloaded; the rest is a hole in a sparse
    file of the right length, which takes no disk. ``.bin`` files, which have no header, are there
    by name only. It lasts as long as ``headers_only()``.

    Raises:
        OSError: the hub, the repository or a file can't be reached.
    """
    inside = _FOLDER.get()
    assert inside is not None, "only within headers_only()"
    folder = inside / repository.replace("/", "--")
    if folder.exists():
        return folder
    snapshot_download(repository, local_dir=folder, ignore_patterns=WEIGHTS)
    api = HfApi()
    for name in api.list_repo_files(repository):
        # The authors' own files in folders beside the converted ones are never read.
        if name.endswith(".safetensors") and "/" not in name:
            _write_sparse(folder / name, api.parse_safetensors_file_metadata(repository, name))
        elif name.endswith(".bin") and "/" not in name:
            (folder / name).touch()
    return folder


def is_header_folder(path: str) -> bool:
    """Whether it is a folder that ``header_folder`` made."""
    inside = _FOLDER.get()
    return inside is not None and Path(path).parent == inside


def without_content(opened: Any, name: str) -> torch.Tensor:
    """A weight of an open ``.safetensors`` file on the meta device."""
    part = opened.get_slice(name)
    dtype = DTYPES.get(part.get_dtype(), torch.int64)
    return torch.empty(part.get_shape(), dtype=dtype, device="meta")


def _write_sparse(file: Path, metadata: Any) -> None:
    entries = {
        name: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
        for name, info in metadata.tensors.items()
    }
    header = json.dumps({"__metadata__": metadata.metadata, **entries}).encode()
    length = max((info.data_offsets[1] for info in metadata.tensors.values()), default=0)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(header)) + header)
        opened.truncate(8 + len(header) + length)
