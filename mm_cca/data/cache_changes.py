"""A token cache compared with what its data hold now: what changed, and which codes can be kept."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from datasets import Dataset

from mm_cca.config.schema import DataConfig
from mm_cca.data.contents import Origin, column, is_whole, read_content
from mm_cca.data.filters import LEFT_OUT
from mm_cca.data.images import BadRow, Split
from mm_cca.data.pictures import image_bytes
from mm_cca.data.remote_files import is_address
from mm_cca.data.tar_members import member_of
from mm_cca.data.token_shards import (
    Picture,
    Record,
    read_record,
    read_shard,
    record_path,
    shards_of,
    texts_in,
)
from mm_cca.errors import UserError
from mm_cca.runs.stage import Stage, recorded

Key: TypeAlias = tuple[str, ...]
CELLS_PER_READ = 256


@dataclass(frozen=True)
class StoredShard:
    """A shard as it is now: its rows, and what they were made from (None: not recorded then).

    ``texts`` are all captions of each row, if there are several columns; else empty.
    """

    table: Dataset
    record: Record | None
    rows: list[int]
    captions: list[str]
    problems: list[str]
    texts: list[list[str]]


@dataclass
class Comparison:
    """A cache, finished or not, against its data.

    Attributes:
        pictures: of every usable row of the data; the sha256 of a row that is not encoded yet is
            None.
        stored: the shards, by first row.
        size: rows per shard.
        stale: first rows of the shards that must be written.
        untold: first rows of shards that are right, but whose record must be written again.
        superfluous: first rows of shards that belong to no row any more.
        codes: where the codes of a row are already: key -> stored shard and place in it.
        broken: names of shards that can't be used, and why.
        changes: what changed in a cache that had all rows; empty if nothing did.
        lost: rows that were encoded and whose pictures can't be read any more.
    """

    pictures: list[Picture]
    stored: dict[int, StoredShard]
    size: int
    stale: list[int] = field(default_factory=list)
    untold: list[int] = field(default_factory=list)
    superfluous: list[int] = field(default_factory=list)
    codes: dict[Key, tuple[int, int]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    lost: list[BadRow] = field(default_factory=list)

    @property
    def is_old(self) -> bool:
        """Whether the cache is from before contents were recorded."""
        return any(shard.record is None for shard in self.stored.values())


def row_key(picture: Picture, row: int, config: DataConfig) -> Key:
    """Rows with the same key have the same codes: augmented versions depend on the row."""
    return (_identity(picture),) if config.variants == 1 else (_identity(picture), str(row))


def _identity(picture: Picture) -> str:
    return picture.sha256 or f"{picture.name}\0{picture.size}\0{picture.mtime}"


def compare(source: Split, split: Path, config: DataConfig, origin: Origin) -> Comparison:
    """Compare a cache with the data it is made from.

    Args:
        source: the data as they are now.
        split: folder of the split's cache.
        config: the recipe's ``data``.
        origin: of the data.
    """
    stored, broken = _stored(split)
    size = rows_per_shard(split, config)
    starts = range(0, len(source.rows), size)
    pictures = _pictures(source, stored, config, origin, size)
    found = Comparison(pictures, stored, size, broken=broken)
    # The same bytes of a finished cache are as bad as before.
    finished, differs = Stage.ended(split), False
    for start in starts:
        rows = slice(start, start + size)
        state = _state_of(stored.get(start), source, found.pictures, rows, again=not finished)
        if state != "same":
            (found.untold if state == "untold" else found.stale).append(start)
        differs = differs or state == "other"
    found.superfluous = sorted(stored.keys() - set(starts))
    for start, shard in stored.items():
        made_from = _made_from(shard, source, found.pictures)
        for place, (row, problem) in enumerate(zip(shard.rows, shard.problems, strict=True)):
            if not problem:
                found.codes.setdefault(row_key(made_from[place], row, config), (start, place))
    content = read_content(split)
    was_whole = not broken and content is not None and is_whole(split, content)
    grown = was_whole and any(start not in stored for start in starts)
    if differs or found.superfluous or grown:
        found.changes = _in_words(source, found)
    found.lost = _lost(source, found)
    return found


def _stored(split: Path) -> tuple[dict[int, StoredShard], dict[str, str]]:
    stored, broken, content = {}, {}, read_content(split)
    paths = shards_of(split)
    keeps_records = any(record_path(path).exists() for path in paths)
    for path in paths:
        try:
            if keeps_records and not record_path(path).exists():
                raise ValueError("it is not of this cache")
            table, record = read_shard(path), read_record(path)
            if content is not None and not content.holds(path, record):
                raise ValueError("it is of another cache")
            rows, captions, problems = (column(table, n) for n in ("row", "caption", "problem"))
            stored[int(path.name)] = StoredShard(
                table, record, rows, captions, problems, texts_in(table)
            )
        except (UserError, ValueError) as error:
            broken[path.name] = str(error)
    return stored, broken


def rows_per_shard(split: Path, config: DataConfig) -> int:
    """Of the cache there is: a finished one keeps its own, whatever the recipe says."""
    kept = (recorded(split) or {}).get("until_done", {}).get("data.rows_per_shard")
    return config.rows_per_shard if kept is None else int(kept)


def _pictures(
    source: Split,
    stored: Mapping[int, StoredShard],
    config: DataConfig,
    origin: Origin,
    size: int,
) -> list[Picture]:
    """[n] the picture of every row; bytes are read only where nothing else tells."""
    records = [shard.record for shard in stored.values() if shard.record is not None]
    known = {p.name: p for record in records for p in record.pictures if p.name}
    pictures: list[Picture] = []
    for start in range(0, len(source.rows), size):
        rows = source.rows[start : start + size]
        shard = stored.get(start)
        record = None if shard is None else shard.record
        untouched = record is not None and record.signature == origin.signature
        # Nothing at all was touched since, or nothing can be: data on the hub.
        if shard is not None and record is not None and untouched and shard.rows == rows:
            pictures += record.pictures
            continue
        for first in range(0, len(rows), CELLS_PER_READ):
            part = source.table.select(rows[first : first + CELLS_PER_READ])
            for cell in part[config.image_column][:]:  # all at once: one by one is slow
                # Rows that are to be encoded are read then.
                pictures.append(picture_of(cell, origin, known, read=record is not None))
    return pictures


def picture_of(
    cell: dict[str, Any] | None, origin: Origin, known: Mapping[str, Picture], *, read: bool
) -> Picture:
    """The picture in a cell.

    Args:
        cell: ``{"bytes", "path"}``.
        origin: of the data.
        known: pictures by name, which are not read if their files kept size and time.
        read: whether to read the bytes of others; else their sha256 is None.

    Raises:
        UserError: it is at an address that can't be reached.
    """
    if cell is None:
        return Picture("", -1, 0, None)
    name = _name_of(cell["path"], origin)
    try:
        if cell["bytes"] is not None:
            data, size, mtime = cell["bytes"], len(cell["bytes"]), 0
        else:
            data, (size, mtime) = None, _size_and_time(cell["path"], origin)
            if name in known and known[name][1:3] == (size, mtime):
                return known[name]
        if not read:
            return Picture(name, size, mtime, None)
        data = image_bytes(cell) if data is None else data
    except (OSError, ValueError, TypeError):
        return Picture(name, -1, 0, None)
    return Picture(name, size, mtime, hashlib.sha256(data).hexdigest())


def _size_and_time(path: str, origin: Origin) -> tuple[int, int]:
    """Of a file; of a member of a tar its own size and the time of the tar."""
    member = member_of(path)
    if member is not None and is_address(member.tar):
        return member.size, origin.versions.get(member.tar, 0)
    state = Path(path if member is None else member.tar).stat()
    return state.st_size if member is None else member.size, state.st_mtime_ns


def _name_of(path: str | None, origin: Origin) -> str:
    if not path or origin.root is None or not Path(path).is_absolute():
        return path or ""
    relative = os.path.relpath(path, origin.root)
    return path if relative.startswith("..") else relative


State: TypeAlias = Literal["same", "untold", "missing", "problem", "other"]


def _state_of(
    shard: StoredShard | None,
    source: Split,
    pictures: Sequence[Picture],
    rows: slice,
    *,
    again: bool,
) -> State:
    """``again``: rows with a problem are looked at again."""
    if shard is None:
        return "missing"
    now = pictures[rows]
    before = list(now) if shard.record is None else shard.record.pictures
    same = [_identity(p) for p in before] == [_identity(p) for p in now]
    captions = shard.captions == source.captions[rows] and shard.texts == source.texts[rows]
    if shard.rows != source.rows[rows] or not captions or not same:
        return "other"
    if again and any(p and not p.startswith(LEFT_OUT) for p in shard.problems):
        return "problem"
    return "same" if shard.record is not None and before == list(now) else "untold"


def _made_from(shard: StoredShard, source: Split, pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures of a shard; where they were not recorded, those of the same rows now."""
    if shard.record is not None and len(shard.record.pictures) == len(shard.rows):
        return shard.record.pictures
    by_row = dict(zip(source.rows, pictures, strict=True))
    return [by_row.get(row, Picture(f"row {row}", -1, 0, None)) for row in shard.rows]


def _in_words(source: Split, found: Comparison) -> list[str]:
    """What changed: pictures that are new or gone, and captions of pictures that are neither."""
    old: Counter[tuple[str, str]] = Counter()
    for shard in found.stored.values():
        pictures = _made_from(shard, source, found.pictures)
        captions = _all_captions(shard.captions, shard.texts)
        old.update(zip(map(_identity, pictures), captions, strict=True))
    captions = _all_captions(source.captions, source.texts)
    now = [(_identity(p), c) for p, c in zip(found.pictures, captions, strict=True)]
    old_pictures = Counter[str]()
    for (identity, _), count in old.items():
        old_pictures[identity] += count
    new_pictures = Counter(identity for identity, _ in now)
    new, gone = new_pictures - old_pictures, old_pictures - new_pictures
    words = []
    recaptioned = [
        (source.rows[place], pair)
        for place, pair in enumerate(now)
        if pair not in old and pair[0] in old_pictures
    ]
    if recaptioned:
        row, (identity, caption) = recaptioned[0]
        was = next(text for other, text in old if other == identity)
        more = f" and those of {len(recaptioned) - 1} other rows" if len(recaptioned) > 1 else ""
        words.append(f"the caption of row {row} was {_short(was)}, is now {_short(caption)}{more}")
    exchanged = min(new.total(), gone.total())
    for count, state in (
        (exchanged, "exchanged"),
        (new.total() - exchanged, "added"),
        (gone.total() - exchanged, "taken out"),
    ):
        if count:
            words.append(f"{count} picture{'s' if count > 1 else ''} {state}")
    return words or ["the rows have other numbers"]


def _all_captions(captions: list[str], texts: list[list[str]]) -> list[str]:
    """[rows] one text of all captions of a row."""
    return [" | ".join(row) for row in texts] if texts else captions


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _lost(source: Split, found: Comparison) -> list[BadRow]:
    """Rows whose file was encoded, is still named by the data, and can't be read."""
    encoded = {
        picture.name
        for shard in found.stored.values()
        if shard.record is not None
        for picture, problem in zip(shard.record.pictures, shard.problems, strict=False)
        if picture.name and not problem
    }
    return [
        BadRow(row, f"{picture.name} can't be read")
        for row, picture in zip(source.rows, found.pictures, strict=True)
        if picture.size < 0 and picture.name in encoded
    ]
