"""Loose pictures with captions, in a folder or a zip: a table of their paths or bytes.

Captions come from metadata files, else from a text file beside each picture, else (as the column
``label``) from the names of the folders that the pictures lie in.
"""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from datasets import Dataset, Image, concatenate_datasets

from mm_cca.config.read_files import refuse_no_file
from mm_cca.data.metadata import EXAMPLE, METADATA, columns_of, decoded, read_metadata
from mm_cca.errors import UserError

IMAGE, TEXT, LABEL = "image", "text", "label"
SIDECARS = (".txt", ".caption")
PICTURES = frozenset(
    f".{ending}"
    for ending in (
        *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "dib", "gif", "tif", "tiff"),
        *("avif", "heic", "heif", "jp2", "j2k", "jpx", "jxl", "dds", "qoi", "tga", "ppm", "pgm"),
        *("pbm", "pnm", "ico", "icns", "pcx", "psd", "sgi"),
    )
)
"""File name endings that make a file a picture where no metadata names it."""
_FEATURE = Image(decode=False)


def is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in PICTURES


def folder_table(root: Path, names: Sequence[str]) -> Dataset:
    """The pictures of a folder, as paths.

    Args:
        root: the folder.
        names: paths below it of the files that may be used.

    Raises:
        UserError: no captions, or metadata that can't be used.
    """

    def cells(wanted: Sequence[str | None]) -> list[Cell]:
        return [{"bytes": None, "path": name and str(root / name)} for name in wanted]

    return _table(str(root), names, lambda name: _read(root / name), cells)


def zip_table(file: Path) -> Dataset:
    """The pictures of a zip, as bytes, which ``datasets`` copies into its cache once.

    Raises:
        UserError: damaged, no captions, or metadata that can't be used.
    """
    try:
        features = _zip_rows(file).features
        status = file.stat()
        # Another zip of this name is read anew. Not a list: datasets takes one for shards.
        changes = f"{status.st_mtime_ns} {status.st_size}"
        table: Dataset = Dataset.from_generator(
            _zip_pictures, features=features, gen_kwargs={"file": str(file), "changes": changes}
        )
        return table
    except _BROKEN_ZIP as error:
        raise UserError(f"{file} can't be read as a zip: {error}. Unpack it.") from error


_BROKEN_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, zlib.error)
"""What zipfile raises for damaged, encrypted and unknown archives."""


def _zip_rows(file: Path) -> Dataset:
    """The rows of a zip; each image's path is its name in the zip."""
    with zipfile.ZipFile(file) as archive:
        names = sorted(n for n in archive.namelist() if not n.endswith("/") and not _hidden(n))

        def cells(wanted: Sequence[str | None]) -> list[Cell]:
            return [{"bytes": None, "path": name} for name in wanted]

        return _table(str(file), names, archive.read, cells)


def _zip_pictures(file: str, changes: str) -> Iterator[dict[str, Any]]:
    """Every row with its pictures; one that is missing or damaged is empty."""
    table = _zip_rows(Path(file))
    images = [name for name, feature in table.features.items() if feature == _FEATURE]
    with zipfile.ZipFile(file) as archive:
        for row in table:
            for image in images:
                try:
                    row[image] = row[image] | {"bytes": archive.read(row[image]["path"] or "")}
                except (KeyError, *_BROKEN_ZIP):
                    row[image] = row[image] | {"bytes": b""}
            yield row


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__")) for part in PurePosixPath(name).parts)


def _read(path: Path) -> bytes:
    try:
        refuse_no_file(path)
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error


Cell = dict[str, Any]
Read = Callable[[str], bytes]
Cells = Callable[[Sequence[str | None]], list[Cell]]


def _table(source: str, names: Sequence[str], read: Read, cells: Cells) -> Dataset:
    metadata = [name for name in names if PurePosixPath(name).name in METADATA]
    if metadata:
        return _from_metadata(source, sorted(metadata), read, cells)
    pictures = sorted(name for name in names if is_picture(name))
    texts = {str(PurePosixPath(n).with_suffix("")): n for n in names if n.endswith(SIDECARS)}
    beside = [texts.get(str(PurePosixPath(name).with_suffix(""))) for name in pictures]
    if any(beside):
        captions = [
            None if n is None else " ".join(decoded(read(n), f"{source}/{n}").split("\n")).strip()
            for n in beside
        ]
        return _dataset({TEXT: pa.array(captions, pa.string())}, {IMAGE: cells(pictures)})
    labels = [PurePosixPath(name).parent.name for name in pictures]
    if len(set(labels)) > 1:
        return _dataset({LABEL: pa.array(labels)}, {IMAGE: cells(pictures)})
    raise UserError(
        f"{source} has {len(pictures)} pictures but no captions. Put a metadata.jsonl into it with "
        f"lines such as {EXAMPLE}, or 0001.txt beside 0001.jpg."
    )


def _from_metadata(source: str, files: Sequence[str], read: Read, cells: Cells) -> Dataset:
    folders = [PurePosixPath(name).parent for name in files]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        both = ", ".join(n for n, folder in zip(files, folders, strict=True) if folder == twice)
        raise UserError(f"{source} has several metadata files in one folder: {both}. Keep one.")
    tables = []
    for name, folder in zip(files, folders, strict=True):
        full = f"{source}/{name}"
        columns = columns_of(read_metadata(read(name), full))
        named = {column: _image_name(column) for column in columns}
        images = {}
        for column, image in named.items():
            if image is not None:
                values = columns.pop(column).to_pylist()
                images[image] = cells([_inside(value, folder, full) for value in values])
        if not images:
            raise UserError(
                f"{full} has the columns {', '.join(columns)}, but no file_name, which must name "
                f"each row's picture: {EXAMPLE}"
            )
        tables.append(_dataset(columns, images))
    try:
        return concatenate_datasets(tables)
    except (ValueError, pa.ArrowException) as error:
        raise UserError(f"{source}: its metadata files differ in their columns: {error}") from error


def _image_name(column: str) -> str | None:
    """The image column that a column of file names stands for; None if it is another column."""
    if column == "file_name":
        return IMAGE
    return column.removesuffix("_file_name") if column.endswith("_file_name") else None


def _inside(value: Any, folder: PurePosixPath, metadata: str) -> str | None:
    """A row's file name relative to the source, or None where it has none: a bad row later.

    It may not lead out of the metadata's folder, or metadata of a stranger could name any file.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    name = value.replace("\\", "/") if isinstance(value, str) else ""
    path = os.path.normpath(name)
    wrong = not name or "\0" in name or "://" in name or path[1:2] == ":"
    if wrong or path.startswith("/") or path.split("/")[0] in ("..", "."):
        raise UserError(
            f"{metadata}: file_name is {str(value)[:200]!r}; allowed: the path of a picture "
            "relative to the metadata file and inside its folder, no absolute path and no URL. "
            "Move or link (ln -s) the pictures into that folder."
        )
    return str(folder / path)


def _dataset(columns: dict[str, pa.Array], images: dict[str, list[Cell]]) -> Dataset:
    parts = {name: pa.array(cells, _FEATURE.pa_type) for name, cells in images.items()}
    table = Dataset(pa.table({**parts, **columns}))
    for name in images:
        table = table.cast_column(name, _FEATURE)
    return table
