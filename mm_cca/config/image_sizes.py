"""The sizes of a recipe's images: ``data.image_size``, and those of ``data.buckets``.

A recipe may write both as one list, ``image_size: [[512, 512], [448, 576]]``; its first size is
then ``image_size``, the others are the buckets. The order of buckets decides nothing.
"""

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

AUTO = "auto"
MAX_SIDE = 16_384
ALLOWED = f"auto, or sizes such as 448x576 (height x width), each from 1 to {MAX_SIDE:,}"
_TEXT = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


def size_in(text: str) -> Size | None:
    """``448x576`` -> (448, 576); None if it is no such size."""
    found = _TEXT.fullmatch(text)
    size = (0, 0) if found is None else (int(found[1]), int(found[2]))
    return size if min(size) > 0 and max(size) <= MAX_SIDE else None


def size_text(size: Sequence[int]) -> str:
    """(448, 576) -> ``448x576``."""
    return f"{size[0]}x{size[1]}"


def sizes_in(image_size: Sequence[int], buckets: Sequence[str]) -> list[Size]:
    """``image_size`` and every bucket that the recipe names; ``auto`` names none."""
    sizes = [size_in(text) for text in buckets]
    return [(image_size[0], image_size[1]), *(size for size in sizes if size is not None)]


def split_sizes(data: dict[str, Any]) -> None:
    """Bring a recipe's ``data``, as YAML gives it, to one ``image_size`` and sorted ``buckets``.

    What can't be understood is left for the checks to refuse.
    """
    sizes, buckets = data.get("image_size"), data.get("buckets")
    if isinstance(sizes, list) and sizes and all(isinstance(size, list) for size in sizes):
        data["image_size"] = sizes[0]
        if len(sizes) > 1:
            buckets = [*sizes[1:], *(buckets if isinstance(buckets, list) else [buckets])]
            buckets = [bucket for bucket in buckets if bucket is not None]
    if isinstance(buckets, list):
        texts = ["x".join(map(str, b)) if isinstance(b, list) else b for b in buckets]
        data["buckets"] = sorted(texts, key=_by_shape)


def _by_shape(bucket: Any) -> tuple[float, int, str]:
    size = size_in(bucket) if isinstance(bucket, str) else None
    return (0.0, 0, str(bucket)) if size is None else (size[0] / size[1], size[0], bucket)


def problems_of_sizes(
    image_size: Sequence[int], buckets: Sequence[str]
) -> list[tuple[str | list[str], str]]:
    """What is wrong with the buckets: what is given, and what is allowed instead."""
    if AUTO in buckets:
        return [] if list(buckets) == [AUTO] else [(list(buckets), "auto alone")]
    wrong: list[tuple[str | list[str], str]] = []
    wrong += [(bucket, ALLOWED) for bucket in buckets if size_in(bucket) is None]
    if size_text(image_size) in buckets:
        wrong.append((size_text(image_size), "other sizes than data.image_size"))
    return wrong
