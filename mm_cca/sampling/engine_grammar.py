"""The layout of an image as a grammar over token ids, which an engine can hold a drawing to.

Row ends are not trained (the loss is on free codes only), so a request that merely allows the
image's ids draws sheared pictures. The grammar forces them. It is Lark with ranges of token ids, as
llguidance and xgrammar read it; vLLM takes it as ``structured_outputs: {"grammar": ...}``.

Shapes: S slots of the image span, K image codes.
"""

from collections.abc import Iterable
from itertools import groupby

import numpy as np

from mm_cca.adapters.base import FREE, ImageLayout


def grammar_of(layout: ImageLayout, code_ids: np.ndarray) -> str:
    """Lark that accepts exactly the images of ``layout``, and ends after the last code.

    Equal rows are written once with their number, so that Emu3's 8,189 slots take 66 bytes.

    Args:
        layout: the span of an image, [S] slots.
        code_ids: [K] int64, the engine's vocabulary id of every image code, in any order.

    Raises:
        ValueError: a layout without free codes, or no ids.
    """
    if not layout.num_codes or not len(code_ids):
        raise ValueError("a grammar needs at least one free slot and one code")
    blocks = (_counted(block, n) for block, n in _folded(_blocks(layout.tokens.tolist())))
    return f"start: {' '.join(blocks)}\ncode: <[{_ranges(code_ids)}]>\n"


def _blocks(slots: list[int]) -> list[str]:
    """Free codes with the forced tokens up to the next ones, such as ``code{90} <[8]>``."""
    blocks: list[list[str]] = []
    for token, group in groupby(slots):
        count = len(list(group))
        if token == FREE:
            blocks.append([_counted("code", count)])
        elif blocks:
            blocks[-1].append(_counted(f"<[{token}]>", count))
        else:  # forced tokens before the first code
            blocks.append([_counted(f"<[{token}]>", count)])
    return [" ".join(parts) for parts in blocks]


def _folded(blocks: list[str]) -> Iterable[tuple[str, int]]:
    """Equal neighbours once, each with how often it follows itself."""
    return ((block, len(list(group))) for block, group in groupby(blocks))


def _counted(item: str, count: int) -> str:
    if count == 1:
        return item
    return f"({item}){{{count}}}" if " " in item else f"{item}{{{count}}}"


def _ranges(ids: np.ndarray) -> str:
    """Ids as ``2000-2511,2600``: neighbours merged, in increasing order."""
    ordered = np.unique(ids)
    runs = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1)
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)
