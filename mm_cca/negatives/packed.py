"""Many texts in one piece of memory: half of what a list of strings takes, and no object each."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class PackedTexts(Sequence[str]):
    """Texts of which single ones are made when they are asked for."""

    def __init__(self, data: bytes | bytearray, offsets: "array[int]") -> None:
        """``data`` is all texts in UTF-8, ``offsets`` [n + 1] where each starts, and the end."""
        self._data = data
        self._offsets = offsets

    @classmethod
    def of(cls, texts: Iterable[str]) -> "PackedTexts":
        """Pack texts; half of a surrogate pair is kept as it is."""
        data, offsets = bytearray(), array("q", [0])
        for text in texts:
            data += text.encode("utf-8", "surrogatepass")
            offsets.append(len(data))
        return cls(data, offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return self.raw(range(len(self))[place]).decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def raw(self, place: int) -> bytes:
        """A text's UTF-8; ``place`` is not below 0."""
        return bytes(self._data[self._offsets[place] : self._offsets[place + 1]])

    def sorted_distinct(self) -> tuple["PackedTexts", np.ndarray]:
        """The D distinct texts, sorted, and [n] int64 where each text is among them."""
        import pyarrow as pa
        from pyarrow import compute

        buffers = [None, pa.py_buffer(self._offsets), pa.py_buffer(self._data)]
        packed = pa.Array.from_buffers(pa.large_binary(), len(self), buffers).dictionary_encode()
        # Bytes of UTF-8 sort as their code points do, so this is the order of Python's strings.
        order = compute.sort_indices(packed.dictionary)
        places = np.empty(len(order), np.int64)
        places[order.to_numpy()] = np.arange(len(order))
        _, offsets, data = packed.dictionary.take(order).buffers()
        ends = array("q", offsets.to_pybytes()[: 8 * (len(order) + 1)])
        own = PackedTexts(b"" if data is None else data.to_pybytes(), ends)
        return own, places[packed.indices.to_numpy()]
