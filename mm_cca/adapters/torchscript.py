"""The weights of a TorchScript file, without running anything that is in it.

A TorchScript file is a program: ``torch.jit.load`` runs the code that the file keeps for its own
unpacking (``__setstate__``), which may write files. Only its tensors are read here: the pickle in
the archive may name nothing but the tensors' storages and plain containers, and the program's
source stays unread. As a side effect no deprecated part of torch is needed.
"""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch

from mm_cca.errors import UserError

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a TorchScript module by the name that its ``state_dict`` would have.

    Raises:
        UserError: the file is missing, damaged, no TorchScript, or names anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            module = _Reader(archive).load()
        found: dict[str, torch.Tensor] = {}
        _collect(module, "", found, set())
    except Exception as error:  # zipfile, pickle and torch raise nearly anything for a damaged file
        raise UserError(
            f"the TorchScript file {str(path)!r} can't be read: {error}\nOnly tensors are read "
            "from it and none of its code is run. Download it again."
        ) from error
    return found


class _Object:
    """Stands for an object of any of the program's classes; holds what was stored of it."""

    parts: dict[str, Any]

    def __setstate__(self, state: object) -> None:
        self.parts = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Unpickles ``data.pkl``; whatever is not in ``find_class`` is refused, never imported."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        names = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("it has no data.pkl, so it is no TorchScript file")
        self._archive, self._root = archive, names[0].removesuffix("data.pkl")
        order = f"{self._root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        self._storages: dict[str, torch.Tensor] = {}
        super().__init__(io.BytesIO(archive.read(names[0])))

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type(
                "_Object", (_Object,), {}
            )  # a fresh one: nothing in the file can alter ours
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *rest: torch.as_strided(
                storage, size, stride, offset
            )
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in _DTYPES:
            return name
        if module == "torch.jit._pickle" and name in (*_LISTS, "restore_type_tag"):
            return lambda value, *tag: value
        if (module, name) == ("torch", "device"):
            return lambda *where: None
        _refuse(f"{module}.{name}")

    def persistent_load(self, key: Any) -> torch.Tensor:
        kind, storage_type, name, _, count = key
        if kind != "storage" or storage_type not in _DTYPES:
            _refuse(f"{kind} {storage_type}")
        if name not in self._storages:
            entry = self._archive.getinfo(f"{self._root}data/{name}")
            dtype = _DTYPES[storage_type]
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"data/{name} is compressed, which torch never does")
            if entry.file_size != count * dtype.itemsize:
                raise ValueError(f"data/{name} has {entry.file_size} bytes for {count} x {dtype}")
            data = bytearray(self._archive.read(entry))
            self._storages[name] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0)
        return self._storages[name]


def _refuse(what: str) -> NoReturn:
    raise pickle.UnpicklingError(f"it asks for {what}, which no image tokenizer needs")


def _collect(part: object, prefix: str, found: dict[str, torch.Tensor], seen: set[int]) -> None:
    if isinstance(part, torch.Tensor):
        found[prefix] = part
    elif isinstance(part, _Object) and id(part) not in seen:
        seen.add(id(part))
        for name, value in part.parts.items():
            _collect(value, f"{prefix}.{name}" if prefix else str(name), found, seen)
