"""What ``prepare`` tells of the rows of a split: left out by the recipe, or there several times."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from mm_cca.data.contents import column
from mm_cca.data.filters import LEFT_OUT, count_by_key
from mm_cca.data.images import BadRow, Split
from mm_cca.data.token_shards import read_record, read_shard, shards_of
from mm_cca.runs.files import write_text

LEFT_OUT_FILE = "left_out.jsonl"


def tell_rows(folder: Path, source: Split) -> None:
    """Print how many rows are left out and how many repeat another; list those left out.

    Args:
        folder: of the split's finished cache.
        source: its data.
    """
    left_out = source.left_out + _too_small(folder)
    path = folder / LEFT_OUT_FILE
    path.unlink(missing_ok=True)
    if left_out:
        lines = [json.dumps({"row": row.row, "problem": row.problem}) for row in left_out]
        write_text(path, "\n".join(lines) + "\n")
        why = count_by_key(row.problem for row in left_out)
        total = len(source.rows) + len(source.left_out) + len(source.bad)
        print(
            f"{folder.name}: {len(left_out):,} of {total:,} rows are left out ({why}): {path}",
            file=sys.stderr,
        )
    pictures, captions = count_repeats(folder)
    repeated = [
        f"{count:,} {'row has' if count == 1 else 'rows have'} the same {what} as an earlier row"
        for count, what in ((pictures, "picture"), (captions, "caption"))
        if count
    ]
    if repeated:
        print(f"{folder.name}: {', '.join(repeated)}; all are trained on", file=sys.stderr)


def _too_small(folder: Path) -> list[BadRow]:
    found = []
    for path in shards_of(folder):
        table = read_shard(path)
        for row, problem in zip(column(table, "row"), column(table, "problem"), strict=True):
            if problem.startswith(LEFT_OUT):
                found.append(BadRow(row, problem))
    return found


def count_repeats(folder: Path) -> tuple[int, int]:
    """How many usable rows have the bytes of an earlier row's picture, and how many its caption.

    Captions are compared without case and with white space collapsed.
    """
    pictures, captions = _Seen(), _Seen()
    for path in shards_of(folder):
        table, record = read_shard(path), read_record(path)
        usable = [not problem for problem in column(table, "problem")]
        texts = column(table, "caption")
        captions.add(
            hash(" ".join(text.casefold().split()))
            for text, is_usable in zip(texts, usable, strict=True)
            if is_usable
        )
        if record is not None and len(record.pictures) == len(usable):
            pictures.add(
                int(picture.sha256[:16], 16)
                for picture, is_usable in zip(record.pictures, usable, strict=True)
                if is_usable and picture.sha256 is not None
            )
    return pictures.repeats, captions.repeats


class _Seen:
    """Counts values that were there before; 64 bits of each are kept."""

    def __init__(self) -> None:
        self._values: set[int] = set()
        self.repeats = 0

    def add(self, values: Iterable[int]) -> None:
        for value in values:
            self.repeats += value in self._values
            self._values.add(value)
