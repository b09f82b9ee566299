"""WebDataset tars as a table whose pictures stay where they are: the headers are read, and texts.

Samples and columns are those of ``datasets``: neighbouring members of the same name before its
first full stop are a sample, and what follows the full stop is the column.
"""

import json
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
from datasets import Dataset, Image
from tqdm import tqdm

from mm_cca.config.read_files import refuse_no_file
from mm_cca.data.image_folders import is_picture
from mm_cca.data.kept_index import keep_index, read_index
from mm_cca.data.remote_files import in_parallel, is_address, opened, persistently, versions_of
from mm_cca.data.tar_members import TarMember

KEY, URL = "__key__", "__url__"
Kind = Literal["text", "number", "json", "picture", "other"]
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("txt", "text", "transcript"), "text"),
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), "number"),
    **dict.fromkeys(("json", "jsn"), "json"),
}
BUFFER = 2**16
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_IMAGE = Image(decode=False)
_MISFITS = (pa.ArrowException, OverflowError, TypeError, ValueError)
"""What pyarrow raises for JSON whose types don't fit together."""


class _Member(tarfile.TarInfo):
    """Keeps the checksum of its header."""

    head = 0

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        member.head = zlib.crc32(buf)
        return member


def tar_table(tars: Sequence[str], kept: Path | None = None) -> Dataset:
    """The samples of tars, in their order.

    Args:
        tars: absolute paths or addresses.
        kept: folder of the indexes of what lies at addresses; None: it is indexed every time.

    Returns:
        texts as strings, numbers as int64, JSON as it is, pictures as undecoded cells with a path;
        null where a sample lacks one. Other members are left out.

    Raises:
        ValueError: damaged, or a member that is not what its name says; names the tar.
        UserError: an address that can't be read.
    """
    addresses = [tar for tar in tars if is_address(tar)]
    versions = versions_of(addresses)
    states = [versions[tar] if tar in versions else _state(tar) for tar in tars]
    return _table(tuple(tars), tuple(states), kept)


def _state(tar: str) -> tuple[int, int]:
    refuse_no_file(Path(tar))
    state = Path(tar).stat()
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=2)
def _table(tars: tuple[str, ...], states: tuple[object, ...], kept: Path | None) -> Dataset:
    """Kept for the other stages and splits of a run; ``states`` tell the same tars apart."""
    remote = any(is_address(tar) for tar in tars)
    found: list[pa.Table] = []
    with tqdm(
        total=len(tars), desc="indexing", unit="tar", disable=len(tars) < 2, file=sys.stderr
    ) as bar:
        scan = partial(_indexed, versions=dict(zip(tars, states, strict=True)), kept=kept)
        for table in in_parallel(scan, tars) if remote else map(_scan, tars):
            found.append(table)
            bar.update()
    joined = _joined([table for table in found if len(table)] or found[:1])
    names = [name for name in joined.column_names if name not in (KEY, URL)]
    table = Dataset(joined.select([*names, KEY, URL]))
    for name in names:
        if _kind(name) == "picture":
            table = table.cast_column(name, _IMAGE)
    return table


def _indexed(tar: str, versions: Mapping[str, object], kept: Path | None) -> pa.Table:
    """``_scan``, or what is kept of it."""
    if kept is None or not is_address(tar):
        return _scan(tar)
    table = read_index(kept, tar, versions[tar])
    if table is None:
        table = _scan(tar)
        keep_index(kept, tar, versions[tar], table)
    return table


def _scan(tar: str) -> pa.Table:
    """The samples of one tar."""
    wrong = (tarfile.TarError, ValueError)
    try:
        if is_address(tar):
            return persistently(tar, lambda: _rows(tar, opened(tar)), but=wrong)
        return _rows(tar, Path(tar).open("rb", BUFFER))
    except (*wrong, OSError) as error:
        raise ValueError(f"{tar}: {error}") from None


def _rows(tar: str, opening: AbstractContextManager[IO[bytes]]) -> pa.Table:
    columns: dict[str, list[Any]] = {}
    keys: list[str] = []
    with opening as file:
        for key, sample in _samples(tar, file):
            for name, value in sample.items():
                column = columns.setdefault(name, [])
                column += [None] * (len(keys) - len(column))
                column.append(value)
            keys.append(key)
    arrays = {
        name: _array(name, column + [None] * (len(keys) - len(column)))
        for name, column in columns.items()
    }
    urls = pa.array([tar] * len(keys), pa.string())
    return pa.table({**arrays, KEY: pa.array(keys, pa.string()), URL: urls})


def _samples(tar: str, file: IO[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and column -> value of every sample; of a picture its path."""
    key, sample = None, dict[str, Any]()
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # they take more memory than rows
            named = _NAME.fullmatch(member.name)
            hidden = member.name.rpartition("/")[2].startswith((".", "__"))
            if named is None or hidden or not member.isreg():
                continue
            own, field = named.groups()
            if own != key:
                if key is not None:
                    yield key, sample
                key, sample = own, {}
            if field in sample:
                raise ValueError(f"the sample {own!r} has two members {field!r}")
            if _kind(field) != "other":
                sample[field] = _value(tar, archive, member, _kind(field))
        # Where a header is damaged, tarfile ends as if the tar did.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise ValueError(f"damaged at byte {archive.offset:,}")
    if key is not None:
        yield key, sample


@lru_cache(maxsize=1024)
def _kind(field: str) -> Kind:
    if is_picture(f"x.{field}"):
        return "picture"
    return _KINDS.get(field.rpartition(".")[2].lower(), "other")


def _value(tar: str, archive: tarfile.TarFile, member: tarfile.TarInfo, kind: Kind) -> Any:
    assert isinstance(member, _Member)
    if kind == "picture":
        if member.issparse():
            raise ValueError(f"{member.name} is stored sparse: pack the tar without --sparse")
        return TarMember(tar, member.name, member.offset_data, member.size, member.head).path
    content = archive.extractfile(member)
    data = b"" if content is None else content.read()
    try:
        if kind == "json":
            return json.loads(data)
        if kind == "number":
            number = int(data)
            if abs(number) >= 1 << 63:
                raise ValueError(f"a number of more than 64 bits, {str(number)[:40]}")
            return number
        return data.decode("utf-8")
    except ValueError as error:
        raise ValueError(f"{member.name}: {error}") from error


def _array(name: str, values: list[Any]) -> pa.Array:
    kind = _kind(name)
    if kind == "picture":
        paths = pa.array(values, pa.string())
        parts = [pa.nulls(len(values), pa.binary()), paths]
        return pa.StructArray.from_arrays(parts, ["bytes", "path"], mask=paths.is_null())
    if kind == "json":
        return _json_array(values)
    return pa.array(values, pa.string() if kind == "text" else pa.int64())


def _json_array(values: list[Any]) -> pa.Array:
    """With the keys of all; what has another type from sample to sample becomes JSON as text."""
    try:
        return pa.array(values)
    except _MISFITS:
        pass
    if not all(value is None or isinstance(value, dict) for value in values):
        return pa.array([None if value is None else json.dumps(value) for value in values])
    keys = list(dict.fromkeys(key for value in values if value for key in value))
    columns = [
        _json_array([None if value is None else value.get(key) for value in values]) for key in keys
    ]
    mask = pa.array([value is None for value in values])
    return pa.StructArray.from_arrays(columns, keys, mask=mask)


def _joined(tables: list[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except _MISFITS:
        pass
    names = dict.fromkeys(n for table in tables for n in table.column_names if _kind(n) == "json")
    for name in names:  # one of them differs from tar to tar
        lists = [
            table.column(name).to_pylist() if name in table.column_names else [None] * len(table)
            for table in tables
        ]
        united = _json_array([value for values in lists for value in values])
        start = 0
        for place, table in enumerate(tables):
            part = united.slice(start, len(table))
            start += len(table)
            rest = table.drop_columns([name]) if name in table.column_names else table
            tables[place] = rest.append_column(name, part)
    return pa.concat_tables(tables, promote_options="permissive")
