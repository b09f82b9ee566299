"""Reads and decodes the pictures that are to be encoded, in worker processes where there are many.

Shapes: H height, W width.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mm_cca.data.cache_changes import Key, picture_of
from mm_cca.data.contents import Origin
from mm_cca.data.pictures import image_bytes
from mm_cca.data.token_shards import Picture
from mm_cca.errors import UserError

MANY = 2000
"""From so many pictures on, processes are started if ``data.num_workers`` is null."""
MOST = 8
AHEAD = 2
"""Batches of the image tokenizer that are decoded ahead."""


class Read(NamedTuple):
    """One row's picture.

    Attributes:
        picture: which it is, with the sha256 of its bytes if these could be read.
        known: where its codes are already; None if it must be encoded.
        pixels: [3, H, W] uint8; None if it is known, or can't be used.
        problem: why it can't be used; else empty.
    """

    picture: Picture
    known: tuple[int, int] | None
    pixels: np.ndarray | None
    problem: str


@dataclass(frozen=True)
class PictureReader(Dataset[Read | UserError]):
    """The picture of every usable row.

    Attributes:
        cells: place -> the undecoded cell, ``{"bytes", "path"}``.
        pictures: [n] what is known of each without reading it.
        codes: key of a picture -> where its codes are already.
        key: picture and place -> its key.
        decode: a cell -> [3, H, W] uint8; raises ValueError for one that can't be used.
        origin: of the data.
    """

    cells: Callable[[int], dict[str, Any] | None]
    pictures: Sequence[Picture]
    codes: dict[Key, tuple[int, int]]
    key: Callable[[Picture, int], Key]
    decode: Callable[[dict[str, Any] | None], torch.Tensor]
    origin: Origin

    def __getitem__(self, place: int) -> Read | UserError:
        """The error of an address is returned: from a process it would come with a traceback."""
        try:
            return self._read(place)
        except UserError as error:
            return error

    def _read(self, place: int) -> Read:
        cell, picture = self.cells(place), self.pictures[place]
        if self.key(picture, place) not in self.codes:
            cell, picture = _read_once(cell, picture, self.origin)
        known = self.codes.get(self.key(picture, place))
        if known is not None:
            return Read(picture, known, None, "")
        try:
            return Read(picture, None, self.decode(cell).numpy(), "")
        except ValueError as error:
            return Read(picture, None, None, str(error))

    def read(self, places: Sequence[int], num_workers: int, batch: int) -> Iterator[Read]:
        """The pictures of these places, in this order, whatever the number of processes.

        Args:
            places: among the usable rows.
            num_workers: processes that read and decode; 0: this one.
            batch: how many pictures are encoded together.

        Raises:
            UserError: a process died, or an address of the data can't be read.
        """
        if not num_workers:
            yield from map(self._read, places)
            return
        # Not batched by the loader: pictures may differ in size, and known ones have no pixels.
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=places,
            num_workers=num_workers,
            prefetch_factor=max(2, -(-AHEAD * batch // num_workers)),
            collate_fn=_as_it_is,
        )
        try:
            for read in loader:
                if isinstance(read, UserError):
                    raise read
                yield read
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"one of the {num_workers} processes that decode pictures died (killed, perhaps "
                "for lack of memory). Finished shards are kept: run the same command again to "
                f"resume, with fewer than data.num_workers={num_workers}, or 0."
            ) from error


def num_workers_of(wanted: int | None, num_pictures: int) -> int:
    """``data.num_workers``, or where it is null as many as are worth starting."""
    if wanted is not None:
        return min(wanted, num_pictures)
    # Elsewhere than on Linux, every process would import everything anew.
    if num_pictures < MANY or sys.platform != "linux":
        return 0
    cores = len(os.sched_getaffinity(0))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(MOST, cores // ranks - 1))


def _as_it_is(row: Any) -> Any:
    """As arrays, pixels pass through a pipe; tensors would each hold an open file."""
    return row


def _read_once(
    cell: dict[str, Any] | None, picture: Picture, origin: Origin
) -> tuple[dict[str, Any] | None, Picture]:
    """The cell with its bytes, and the picture with their sha256, if they can be read."""
    if cell is None:
        return cell, picture
    if cell["bytes"] is None:
        try:
            cell = {"bytes": image_bytes(cell), "path": cell["path"]}
        except ValueError:  # told when it is decoded
            return cell, picture
    read = picture_of(cell, origin, {}, read=True)
    return cell, picture._replace(sha256=read.sha256)
