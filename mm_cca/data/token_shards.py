"""The files of a token cache: shards of rows, each with a record of what it was made from.

``shards/000000000/`` is a saved ``Dataset``, named after the number of its first row;
``contents/000000000.json`` holds the digest of its rows and, of each row, which picture it was
encoded from. A shard whose rows have another digest was damaged or exchanged.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value, load_from_disk
from datasets import Sequence as ListOf
from typing_extensions import TypedDict

from mm_cca.config.read_files import ERRORS, fault_of, is_there, json_of, refuse_no_file
from mm_cca.errors import UserError
from mm_cca.runs.files import PARTIAL, atomic_path, write_json

FEATURES = Features(
    {
        "row": Value("int64"),
        "caption": Value("string"),
        "codes": ListOf(Value("int32")),
        "problem": Value("string"),
    }
)
SIZE = "size"
"""A column of shards with ``data.buckets``: height and width in pixels that each row was encoded
at."""
TEXTS = "captions"
"""A column of shards with several caption columns: all captions of each row."""
MORE_FEATURES = {SIZE: ListOf(Value("int32")), TEXTS: ListOf(Value("string"))}
SHARDS = "shards"
CONTENTS = "contents"
_verified: set[tuple[str, int, int, int]] = set()
"""Shards that this process has compared with their records: path, times and size of the files."""


class Picture(NamedTuple):
    """Which picture a row was encoded from.

    Attributes:
        name: of its file, relative to the data if it lies below; "" if it has none.
        size: in bytes.
        mtime: time of the file's last change in ns; 0 for a picture inside a table.
        sha256: of its bytes; None if it could not be read, or in caches from before it was kept.
    """

    name: str
    size: int
    mtime: int
    sha256: str | None


@dataclass(frozen=True)
class Record:
    """What belongs to a shard: the digest of its rows, and what they were made from.

    Attributes:
        sha256: of the rows; see ``rows_digest``.
        signature: of all files of the data when they were read; None if they have none.
        pictures: of each row; empty for rows that were not made from pictures.
    """

    sha256: str
    signature: str | None = None
    pictures: list[Picture] = field(default_factory=list)


class _Stored(TypedDict):
    """``Record`` in its file; a picture is a list."""

    sha256: str
    signature: str | None
    pictures: list[list[Any]]


def shard_path(split: Path, start: int) -> Path:
    """The folder of the shard that begins with a row, in the folder of a split."""
    return split / SHARDS / f"{start:09d}"


def record_path(shard: Path) -> Path:
    """The file of a shard's record."""
    return shard.parents[1] / CONTENTS / f"{shard.name}.json"


def shards_of(split: Path) -> list[Path]:
    """The complete shards of a split, in the order of their rows; perhaps none."""
    folder = split / SHARDS
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix != PARTIAL and path.is_dir())


def write_shard(
    path: Path, table: Dataset, signature: str | None = None, pictures: Iterable[Picture] = ()
) -> None:
    """Write a shard completely or not at all, its record first.

    Raises:
        OSError: a full disk.
    """
    write_record(path, Record(rows_digest(table), signature, list(pictures)))
    with atomic_path(path) as temporary:
        table.save_to_disk(str(temporary), num_shards=1)


def write_record(shard: Path, record: Record) -> None:
    """Write only the record of a shard."""
    write_json(
        record_path(shard),
        {
            "sha256": record.sha256,
            "signature": record.signature,
            "pictures": record.pictures,
        },
        indent=None,
    )


def read_record(shard: Path) -> Record | None:
    """The record of a shard; None where there is none, or only a damaged one."""
    if not is_there(record_path(shard)):
        return None
    try:
        stored = json_of(record_path(shard), _Stored, "")
        pictures = [Picture(*entry) for entry in stored["pictures"]]
        return Record(stored["sha256"], stored["signature"], pictures)
    except (UserError, TypeError):
        return Record("damaged")


def read_shard(path: Path) -> Dataset:
    """A shard, memory-mapped, once its rows were found to be those that were written.

    Raises:
        UserError: it can't be read, or its rows are not those of its record.
    """
    try:
        for file in path.iterdir():
            refuse_no_file(file)
        table = load_from_disk(str(path))
        names = set(table.column_names) - set(MORE_FEATURES)
        if not isinstance(table, Dataset) or names != set(FEATURES):
            raise ValueError("it holds other columns")
        state, file = Path(table.cache_files[0]["filename"]).stat(), record_path(path)
        record_time = file.stat().st_mtime_ns if file.exists() else 0
        seen = (str(path.resolve()), record_time, state.st_size, state.st_mtime_ns)
        if seen not in _verified:
            record = read_record(path)
            if record is not None and record.sha256 != rows_digest(table):
                raise ValueError(
                    "its rows are not those that were written (another shard, or damaged)"
                )
            _verified.add(seen)
    except (*ERRORS, AttributeError, pa.ArrowException) as error:  # datasets expects its own files
        raise UserError(damaged(path, fault_of(error))) from error
    return table


def damaged(path: Path, problem: str) -> str:
    """The message about a shard that can't be used."""
    return (
        f"{path} can't be used: {problem}. Delete {path} and run `mm-cca prepare RECIPE` again; "
        "it makes only what is missing."
    )


def rows_digest(table: Dataset) -> str:
    """sha256 over rows, all captions, codes, problems and sizes, however the file stores them."""
    digest = hashlib.sha256()
    digest.update(np.asarray(table.data.column("row"), dtype="<i8").tobytes())
    for name in ("caption", "problem"):
        for text in table.data.column(name).to_pylist():
            digest.update(("" if text is None else text).encode(errors="replace") + b"\0")
    for texts in texts_in(table):
        digest.update("\0".join([*texts, ""]).encode(errors="replace"))
    # First all lengths, then all codes, so that it does not matter how rows are cut into chunks.
    chunks: Any = table.data.column("codes").chunks
    for chunk in chunks:
        digest.update(np.diff(np.asarray(chunk.offsets)).astype("<i4").tobytes())
    for chunk in chunks:
        digest.update(np.ascontiguousarray(chunk.flatten(), dtype="<i4").data)
    sizes = sizes_in(table)
    if sizes is not None:
        digest.update(sizes.astype("<i4").tobytes())
    return digest.hexdigest()


def sizes_in(table: Dataset) -> np.ndarray | None:
    """[rows, 2] height and width that each row was encoded at; None where all have one size."""
    if SIZE not in table.column_names:
        return None
    return np.array(table.data.column(SIZE).to_pylist(), dtype=np.int32).reshape(-1, 2)


def texts_in(table: Dataset) -> list[list[str]]:
    """[rows] the captions of every column; empty with a single one."""
    if TEXTS not in table.column_names:
        return []
    texts: list[list[str]] = table.data.column(TEXTS).to_pylist()
    return texts
