"""The indexes of tars at addresses, kept beside the token cache: a new process reads no headers.

A file for each tar, named by its address and by what the server tells of its size and time, so that
another tar at the same address has another name. Whatever is missing or damaged is indexed anew.
"""

import hashlib
from pathlib import Path

import pyarrow as pa
from accelerate import PartialState
from pyarrow import ipc

from mm_cca.config.read_files import is_there, json_of, reading
from mm_cca.errors import UserError
from mm_cca.runs.files import IO_ERRORS, atomic_path, write_json
from mm_cca.runs.places import file_digest

INDEXES = "tar_index"
"""In the folder of the token cache."""
FORMAT = 1
"""To be raised when an index holds something else."""


def read_index(folder: Path, tar: str, version: object) -> pa.Table | None:
    """The index of a tar; None if it is not kept or not what was written."""
    path = _path(folder, tar, version)
    if not is_there(path):
        return None
    try:
        digest = json_of(path.with_suffix(".json"), dict[str, str], "")["sha256"]
        with reading(path, ""):
            if file_digest(path) != digest:
                return None
            return ipc.open_file(path.read_bytes()).read_all()
    except (UserError, KeyError):  # what can be made again is no reason to stop
        return None


def keep_index(folder: Path, tar: str, version: object, table: pa.Table) -> None:
    """Write the index of a tar; those of its other versions are deleted. One rank only."""
    if not PartialState().is_main_process:
        return
    path = _path(folder, tar, version)
    try:
        with atomic_path(path) as temporary, ipc.new_file(str(temporary), table.schema) as file:
            file.write_table(table)
        write_json(path.with_suffix(".json"), {"tar": tar, "sha256": file_digest(path)})
        for other in folder.glob(f"{_short(tar)}-*"):
            if other.stem != path.stem:
                other.unlink()
    except IO_ERRORS as error:
        raise UserError(f"{path} can't be written: {error}. Free some space.") from error


def _path(folder: Path, tar: str, version: object) -> Path:
    return folder / f"{_short(tar)}-{_short(f'{FORMAT} {version}')}.arrow"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
