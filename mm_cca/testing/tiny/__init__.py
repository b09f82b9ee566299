"""Tiny random checkpoints of every family, in the layout of the real ones on the hub.

They use the classes and files of transformers; only the sizes are small, so a recipe runs the same
code on a tiny and on a real checkpoint. The grid of codes is the real one unless ``side`` is given.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from mm_cca.errors import UserError
from mm_cca.testing.tiny.sizes import Layout
from mm_cca.testing.tiny.tiny_chameleon import write_chameleon, write_lumina_mgpt
from mm_cca.testing.tiny.tiny_emu3 import write_emu3
from mm_cca.testing.tiny.tiny_emu3p5 import IMAGE_FOLDER, write_emu3p5
from mm_cca.testing.tiny.tiny_janus import write_janus
from mm_cca.testing.tiny.tiny_liquid import write_liquid
from mm_cca.testing.tiny.tiny_simplear import COSMOS_FOLDER, write_simplear

FAMILIES: dict[str, tuple[Callable[[Path, int, Layout, int | None], None], int]] = {
    "emu3": (write_emu3, 90),
    "emu3p5": (write_emu3p5, 64),
    "chameleon": (write_chameleon, 32),
    "janus": (write_janus, 24),
    "lumina-mgpt": (write_lumina_mgpt, 32),
    "liquid": (write_liquid, 32),
    "simplear": (write_simplear, 64),
}
"""Function that writes a checkpoint, and the side of the real ones' grid (720, 1024, 512, 384,
512, 512 and 1024 pixels)."""
IMAGE_TOKENIZERS = {
    "lumina-mgpt": "vqgan.ckpt",
    "emu3p5": IMAGE_FOLDER,
    "liquid": "vqgan.ckpt",
    "simplear": COSMOS_FOLDER,
}
"""Where the tiny folder holds what ``model.image_tokenizer`` must name; others have their own."""
LAYOUTS: tuple[Layout, ...] = ("hub", "transformers")
"""Those that every family has."""


MAX_SIDE = 256
MAX_HEAD = 1024


def write_tiny(
    family: str,
    folder: Path,
    *,
    side: int | None = None,
    layout: Layout = "hub",
    head_size: int | None = None,
    seed: int = 0,
) -> None:
    """Write a checkpoint of ``family`` that ``from_pretrained`` and the adapter read.

    Args:
        family: a key of ``FAMILIES``.
        folder: where to write it; must not contain a ``config.json`` yet.
        side: codes along each side of an image; None: as many as the real checkpoints have.
        layout: the hub's folder, what ``save_pretrained`` writes today, or DeepSeek's own (Janus).
        head_size: of the decoder's attention; None: less than the CPU kernels of engines take.
        seed: of the weights.

    Raises:
        UserError: an unknown family, a side below 1, an odd head size, or a folder that is in use
            or not writable.
    """
    if family not in FAMILIES:
        raise UserError(f"there is no tiny {family!r}; allowed: {', '.join(FAMILIES)}.")
    if layout not in LAYOUTS and (family, layout) != ("janus", "deepseek"):
        raise UserError(f"--layout is {layout!r}; allowed for {family}: {', '.join(LAYOUTS)}.")
    if (folder / "config.json").exists():
        raise UserError(f"{folder} holds a checkpoint already; choose another folder.")
    if side is not None and not 1 <= side <= MAX_SIDE:
        raise UserError(f"--side is {side}; allowed: 1 to {MAX_SIDE} codes along each side.")
    if head_size is not None and (not 2 <= head_size <= MAX_HEAD or head_size % 2):
        raise UserError(
            f"--head-size is {head_size}; allowed: an even number up to {MAX_HEAD}, such as 32."
        )
    torch.manual_seed(seed)
    write, real_side = FAMILIES[family]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, real_side if side is None else side, layout, head_size)
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error}") from error


def image_tokenizer_of(family: str, folder: Path) -> str | None:
    """``model.image_tokenizer`` for a folder that ``write_tiny`` wrote."""
    name = IMAGE_TOKENIZERS.get(family)
    return None if name is None else str(folder / name)


def tokenizer_of(family: str, folder: Path) -> str | None:
    """``model.tokenizer`` for a folder that ``write_tiny`` wrote, where the hub's lacks one."""
    own = folder / "tokenizer"
    return str(own) if family == "lumina-mgpt" and own.exists() else None
