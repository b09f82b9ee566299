"""Pictures inside the report: small ones as they are, larger ones shrunk, within a size limit."""

import base64
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

EXACT_SIDE = 96
"""A picture with no longer side is kept as it is, pixel by pixel."""
THUMB_SIDE = 192
PREFIX = "data:image/webp;base64,"


def thumbnail(image: Image.Image) -> str:
    """base64 of a WebP."""
    buffer = io.BytesIO()
    if is_exact(image):
        image.save(buffer, "WEBP", lossless=True)
    else:
        small = image.copy()
        small.thumbnail((THUMB_SIDE, THUMB_SIDE))
        small.save(buffer, "WEBP", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def is_exact(image: Image.Image) -> bool:
    """Whether the thumbnail holds every pixel."""
    return max(image.size) <= EXACT_SIDE


def open_picture(path: Path) -> Image.Image:
    """A picture, read to its end.

    Raises:
        ValueError: missing or unreadable, in words.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise ValueError("missing") from error
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable ({error})") from error


def check_picture(path: Path) -> None:
    """The same without decoding: checksums only. Raises ValueError."""
    try:
        with Image.open(path) as image:
            image.verify()
    except FileNotFoundError as error:
        raise ValueError("missing") from error
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable ({error})") from error


class Budget:
    """How many more characters of pictures the report takes."""

    def __init__(self, megabytes: float) -> None:
        self._left = megabytes * 1e6

    def takes(self, text: str) -> bool:
        """Whether ``text`` still fits; the first that does not ends it."""
        self._left -= len(text)
        return self._left >= 0

    @property
    def is_spent(self) -> bool:
        return self._left <= 0
