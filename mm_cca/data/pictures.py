"""Opens one picture of a data set as RGB, whatever its file type, mode and depth.

Every reason why a picture can't be opened is a ``ValueError`` that names its file.
"""

import io
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as pil
from PIL import ImageOps

from mm_cca.data.tar_members import member_of
from mm_cca.errors import UserError

DRAFT = 2
"""A JPEG is decoded at a half, a quarter or an eighth of its size as long as both sides stay at
least this many times the wanted ones. One with a side below twice this is decoded whole, and so is
one whose sides are no multiples of 8: its fractions would be stretched by part of a pixel."""
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's modes of one channel with more than 8 bits."""
_ADDRESS = re.compile(r" ?<_io\.BytesIO object at 0x[0-9a-f]+>")


def image_bytes(cell: dict[str, Any]) -> bytes:
    """The encoded bytes of an undecoded image cell, read from its file or tar if it holds a path.

    Raises:
        ValueError: there is no such file, or it is something else, such as a FIFO or a device.
        UserError: it is at an address that can't be reached, which says nothing about it.
    """
    if cell["bytes"] is not None:
        data: bytes = cell["bytes"]
        return data
    if cell["path"] is None:
        raise ValueError("neither bytes nor a path")
    path, member = Path(cell["path"]), member_of(cell["path"])
    try:
        if member is not None:
            return member.read()
        if not stat.S_ISREG(path.stat().st_mode):  # reading a FIFO or /dev/zero would never end
            raise ValueError("a folder, FIFO or device, not a file")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


def open_image(cell: dict[str, Any] | None, smallest: int | None = None) -> pil.Image:
    """An undecoded image cell -> an RGB image, EXIF rotation applied, flattened on white.

    Args:
        cell: ``{"bytes", "path"}``.
        smallest: side in pixels that both sides are needed at; a JPEG several times larger may be
            decoded at a fraction of its size (see ``DRAFT``). None: always whole.

    Raises:
        ValueError: not a readable image; with its file's name, where it has one.
        UserError: see ``image_bytes``.
    """
    if cell is None:
        raise ValueError("no image (null)")
    name = f"{cell['path']}: " if cell["path"] else ""
    try:
        with pil.open(io.BytesIO(image_bytes(cell))) as file:
            exact = not any(side % 8 for side in file.size)
            if smallest is not None and file.format == "JPEG" and exact:
                file.draft(None, (DRAFT * smallest, DRAFT * smallest))  # type: ignore[attr-defined]
            return rgb_of(file)
    except UserError:
        raise
    except Exception as error:  # a broken file can make a decoder fail in any way
        why = _ADDRESS.sub("", str(error)) or type(error).__name__
        raise ValueError(f"{name}not a readable image: {why}") from error


def rgb_of(image: pil.Image) -> pil.Image:
    """An image of any mode and depth as RGB, EXIF rotation applied, flattened on white."""
    image = ImageOps.exif_transpose(image)
    image = _to_8_bits(image) if image.mode in DEEP else image
    image = image.convert("RGBA")
    flat = pil.new("RGBA", image.size, "white")
    flat.alpha_composite(image)
    return flat.convert("RGB")


def _to_8_bits(image: pil.Image) -> pil.Image:
    """Grey values of 16 or 32 bits or floats -> 8 bits; Pillow's own ``convert`` clips them.

    16 bits are divided by 257. Of 32-bit integers and floats the file says no range: floats up to
    1 are multiplied by 255, values up to 255 are kept, and up to 65,535 they count as 16 bits.
    """
    values = np.asarray(image).astype(np.float64)
    largest = float(values.max())
    if not np.isfinite(values).all() or largest > 65535:
        raise ValueError(f"grey values up to {largest:g}; allowed: up to 1, 255 or 65535")
    if image.mode.startswith("I;16") or largest > 255:
        values = values / 257
    elif image.mode == "F" and largest <= 1:
        values = values * 255
    return pil.fromarray(values.round().clip(0, 255).astype(np.uint8))


def fitted(image: pil.Image, height: int, width: int) -> pil.Image:
    """The image resized to cover height x width, bicubic with antialiasing, and centre-cropped."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), pil.Resampling.BICUBIC)


def decode_image(cell: dict[str, Any] | None, height: int, width: int) -> torch.Tensor:
    """An undecoded image cell -> [3, H, W] uint8, flattened on white, resized and centre-cropped.

    Raises:
        ValueError: not a readable image.
    """
    rgb = fitted(open_image(cell, max(height, width)), height, width)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
