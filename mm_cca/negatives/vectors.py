"""Embedded captions and their cosines, bit-identical for any number of threads.

Shapes: D captions, F features, p pairs, r rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

GRID = 2.0**11
"""Unit vectors are rounded to multiples of 1/GRID. float16 holds these exactly, and a sum of their
products stays below 2**24 units in float32, so that it is exact in any order of summation. Rounding
changes a cosine by about 0.0002."""

BLOCK = 1 << 14
SVD_FEATURES = 128
SVD_ROWS = 100_000


class Vectors(Protocol):
    """[D, F] unit vectors; all zeros for a caption without known words."""

    def __len__(self) -> int: ...

    def cosines(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """[p] and [p] indices -> [p] float32 cosines."""

    def against_all(self, rows: np.ndarray) -> np.ndarray:
        """[r] indices -> [r, D] float32 cosines with all captions."""

    def searchable(self) -> np.ndarray:
        """[D, F'] float16 vectors with nearly the same cosines, for an approximate search."""


@dataclass(frozen=True)
class SparseVectors:
    """Rows of a scipy CSR matrix; scipy computes its products in one thread."""

    matrix: Any

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def cosines(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        cosines = np.empty(len(left), np.float32)
        for part in blocks(len(left)):
            products = self.matrix[left[part]].multiply(self.matrix[right[part]])
            cosines[part] = np.asarray(products.sum(axis=1)).ravel()
        return cosines.clip(-1, 1)

    def against_all(self, rows: np.ndarray) -> np.ndarray:
        cosines: np.ndarray = (self.matrix[rows] @ self.matrix.T).toarray()
        return cosines.clip(-1, 1)

    def searchable(self) -> np.ndarray:
        from sklearn.decomposition import TruncatedSVD
        from threadpoolctl import threadpool_limits

        rows, features = self.matrix.shape
        svd = TruncatedSVD(min(SVD_FEATURES, features, rows), random_state=0)
        # One thread, as the last bits of a decomposition depend on the number of threads.
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
        cosines = np.empty(len(left), np.float32)
        for part in blocks(len(left)):
            products = self.matrix[left[part]].astype(np.float32) * self.matrix[right[part]]
            cosines[part] = products.sum(axis=1)
        return cosines.clip(-1, 1)

    def against_all(self, rows: np.ndarray) -> np.ndarray:
        own = self.matrix[rows].astype(np.float32)
        cosines = np.empty((len(rows), len(self)), np.float32)
        for part in blocks(len(self)):
            np.matmul(own, self.matrix[part].astype(np.float32).T, out=cosines[:, part])
        return cosines.clip(-1, 1)

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
