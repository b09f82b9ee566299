"""A column of a memory-mapped table as a sequence: its values are read when they are asked for."""

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa

T = TypeVar("T")
AT_ONCE = 1 << 14
"""Rows that are converted together."""


class MappedColumn(Sequence[T], Generic[T]):
    """The values of some rows of a column, in order.

    All ranks share the pages of the file, so that a million captions cost a rank no memory.
    """

    def __init__(self, column: pa.ChunkedArray, rows: np.ndarray | None = None) -> None:
        """``rows`` [n] are the rows that count; None: all."""
        self._column = column
        self._rows = rows

    def __len__(self) -> int:
        return len(self._column) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            return self._values(np.arange(start, stop, step))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        row = place if self._rows is None else int(self._rows[place])
        value: T = self._column[row].as_py()
        return value

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), AT_ONCE):
            yield from self[start : start + AT_ONCE]

    def __eq__(self, other: object) -> bool:
        """Equal to any sequence of the same values."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def at(self, places: np.ndarray) -> "MappedColumn[T]":
        """[m] places -> these values, without reading them; ``self`` if they are all."""
        if len(places) == len(self) and bool((places == np.arange(len(self))).all()):
            return self
        return MappedColumn(self._column, places if self._rows is None else self._rows[places])

    def _values(self, places: np.ndarray) -> list[T]:
        rows = places if self._rows is None else self._rows[places]
        if len(rows) and bool((np.diff(rows) == 1).all()):
            part: Any = self._column.slice(int(rows[0]), len(rows))
        else:
            part = self._column.take(pa.array(rows))
        values: list[T] = part.to_pylist()
        return values
