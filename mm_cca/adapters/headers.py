"""A checkpoint by the headers of its files: names, shapes and types of the weights, none of them read.

Within ``headers_only()`` the functions of ``loading`` put every weight on torch's meta device, so an
adapter's own ``load`` finds what does not fit before 70 GB are downloaded or read.
"""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import SafetensorsFileMetadata

WEIGHTS = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.jit",
    "*.gguf",
    "*.h5",
    "*.msgpack",
)
"""Files of a hub repository that hold weights."""

_HEADERS_ONLY: ContextVar[bool] = ContextVar("headers_only", default=False)


@contextmanager
def headers_only() -> Iterator[None]:
    """Within it, checkpoints are loaded without their weights (see the top of this file)."""
    token = _HEADERS_ONLY.set(True)
    try:
        yield
    finally:
        _HEADERS_ONLY.reset(token)


def reads_headers_only() -> bool:
    """Whether the caller is within ``headers_only()``."""
    return _HEADERS_ONLY.get()


def download_headers(repository: str, folder: Path) -> None:
    """Fill ``folder`` with a hub repository whose weight files have a header and no content.

    Small files (configs, tokenizer, index) are downloaded as they are, of every ``.safetensors``
    file only the header; the rest of it is a hole in a sparse file of the right length, which takes
    no disk.

    Raises:
        OSError: the hub, the repository or a file can't be reached.
    """
    api = HfApi()
    snapshot_download(repository, local_dir=folder, ignore_patterns=list(WEIGHTS))
    for name in api.list_repo_files(repository):
        # Originals beside the converted files are never read.
        if name.endswith(".safetensors") and "/" not in name:
            write_sparse(folder / name, api.parse_safetensors_file_metadata(repository, name))


def write_sparse(file: Path, metadata: SafetensorsFileMetadata) -> None:
    """A ``.safetensors`` file with this header and zeros that take no disk."""
    entries = {
        name: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
        for name, info in metadata.tensors.items()
    }
    header = json.dumps({"__metadata__": metadata.metadata, **entries}).encode()
    length = max((info.data_offsets[1] for info in metadata.tensors.values()), default=0)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(header)) + header)
        opened.truncate(8 + len(header) + length)
