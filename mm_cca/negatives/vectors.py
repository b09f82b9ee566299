"""Embedded captions and their cosines, with the same bits for any number of threads.

Shapes: D captions, F features, p pairs, r rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

GRID = 2.0**11
"""Dense vectors of length 1 are rounded to multiples of 1/GRID: float16 holds these exactly, and a
sum of their products stays below 2**24 units in float32, so that it is exact in any order. A
cosine moves by about 0.0002."""

BLOCK = 1 << 14
SVD_FEATURES = 128
SVD_ROWS = 100_000


class Vectors(Protocol):
    """[D, F] vectors of length 1, or 0 where a caption has nothing that counts."""

    def __len__(self) -> int: ...

    def cosines(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """[p] and [p] indices -> [p] float32."""

    def against_all(self, rows: np.ndarray) -> np.ndarray:
        """[r] indices -> [r, D] float32."""

    def searchable(self) -> np.ndarray:
        """[D, F'] float16 whose cosines are close to these, for an approximate search."""


@dataclass(frozen=True)
class SparseVectors:
    """Rows of a scipy CSR matrix; its products are sums in one thread."""

    matrix: Any

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def cosines(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        found = np.empty(len(left), np.float32)
        for part in blocks(len(left)):
            products = self.matrix[left[part]].multiply(self.matrix[right[part]])
            found[part] = np.asarray(products.sum(axis=1)).ravel()
        return found.clip(-1, 1)

    def against_all(self, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = (self.matrix[rows] @ self.matrix.T).toarray()
        return found.clip(-1, 1)

    def searchable(self) -> np.ndarray:
        from sklearn.decomposition import TruncatedSVD
        from threadpoolctl import threadpool_limits

        rows, features = self.matrix.shape
        svd = TruncatedSVD(min(SVD_FEATURES, features, rows), random_state=0)
        # One thread: the last bits of a decomposition depend on their number.
        with threadpool_limits(limits=1):
            svd.fit(self.matrix[:: max(1, rows // SVD_ROWS)])
            parts = [on_grid(svd.transform(self.matrix[part])) for part in blocks(rows)]
        return np.concatenate(parts)


@dataclass(frozen=True)
class DenseVectors:
    """[D, F] float16 on the grid, see ``on_grid``."""

    matrix: np.ndarray

    def __len__(self) -> int:
        return len(self.matrix)

    def cosines(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        found = np.empty(len(left), np.float32)
        for part in blocks(len(left)):
            products = self.matrix[left[part]].astype(np.float32) * self.matrix[right[part]]
            found[part] = products.sum(axis=1)
        return found.clip(-1, 1)

    def against_all(self, rows: np.ndarray) -> np.ndarray:
        own = self.matrix[rows].astype(np.float32)
        found = np.empty((len(rows), len(self)), np.float32)
        for part in blocks(len(self)):
            np.matmul(own, self.matrix[part].astype(np.float32).T, out=found[:, part])
        return found.clip(-1, 1)

    def searchable(self) -> np.ndarray:
        return self.matrix


def on_grid(vectors: np.ndarray) -> np.ndarray:
    """[r, F] vectors of any length -> [r, F] float16 of length 1 on the grid; 0 stays 0."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    rounded: np.ndarray = (np.rint(unit * GRID) / GRID).astype(np.float16)
    return rounded


def blocks(total: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``total``."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
