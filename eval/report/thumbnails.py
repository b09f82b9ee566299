"""Images inside the report: small ones unchanged, larger ones as thumbnails, up to a size limit."""

import base64
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mm_cca.config.read_files import refuse_no_file

EXACT_SIDE = 96
"""Images up to this side, in pixels, are stored losslessly."""
THUMB_SIDE = 192


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


def read_image(path: Path) -> Image.Image:
    """An RGB image, read completely.

    Raises:
        ValueError: it is missing or unreadable.
    """
    try:
        refuse_no_file(path)
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise ValueError("missing") from error
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable ({error})") from error


def check_image(path: Path) -> None:
    """As ``read_image`` without decoding: checksums only. Raises ValueError."""
    try:
        refuse_no_file(path)
        with Image.open(path) as image:
            image.verify()
    except FileNotFoundError as error:
        raise ValueError("missing") from error
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable ({error})") from error


class Budget:
    """How many more characters of images fit into the report."""

    def __init__(self, megabytes: float) -> None:
        self._left = megabytes * 1e6

    def takes(self, text: str, copies: int = 1) -> bool:
        """Whether ``text`` still fits; after the first that does not, nothing fits."""
        self._left -= copies * len(text)
        return self._left >= 0

    @property
    def is_spent(self) -> bool:
        return self._left <= 0
