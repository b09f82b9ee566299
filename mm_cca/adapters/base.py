"""What the rest of the code knows about a model family: one protocol and three small dataclasses.

Shapes: B rows, P prompt tokens, L tokens, S slots of the image span, N free codes, h x w grid of
codes, H x W pixels, D hidden size, R rows of the image head, K image codes, V vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import nn
from transformers import Cache

from mm_cca.errors import UserError

Grid: TypeAlias = tuple[int, int]
"""Rows and columns of codes."""

FREE = -1
"""Marks a slot that holds an image code."""


@dataclass(frozen=True)
class ImageLayout:
    """The image span after the prompt as a sequence of slots, up to the last free code.

    Attributes:
        tokens: [S] int64, the vocabulary id where the token is forced (row ends, size tokens) and
            ``FREE`` where the slot holds an image code.
    """

    tokens: np.ndarray

    @cached_property
    def free_slots(self) -> np.ndarray:
        """[N] int64 positions of the free codes within the span."""
        return np.flatnonzero(self.tokens == FREE)

    @property
    def num_codes(self) -> int:
        """Codes of one image (the size of the codebook is ``codebook_size``)."""
        return len(self.free_slots)


@dataclass(frozen=True)
class ImageHead:
    """The rows of the output head that image codes are scored with.

    Attributes:
        weight: [R, D]; a view into the model's own parameter, never a copy.
        bias: [R] or None.
        row_of_code: [K] int64, the row of ``weight`` for every image code.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    row_of_code: torch.Tensor


@dataclass(frozen=True)
class Defaults:
    """How the family's authors sample."""

    guidance_scale: float
    temperature: float
    top_k: int | None
    top_p: float | None


@dataclass(frozen=True)
class EngineServing:
    """How a stock engine (vLLM) serves the folder that ``save_for_engine`` writes.

    Attributes:
        arguments: of its command line, beyond the folder, its name and its dtype.
        needs_plugin: whether ``mm_cca_vllm`` must be installed beside the engine, because no
            stock class has the network.
    """

    arguments: tuple[str, ...] = ()
    needs_plugin: bool = False


BEYOND_TOKENIZER = ("--structured-outputs-config.backend", "guidance")
"""For codes that are no tokens of the tokenizer: vLLM's other backend, xgrammar, takes their
ids for padding and forbids them."""


class UnifiedModel(Protocol):
    """A text-and-image decoder with its image tokenizer.

    Built by ``mm_cca.load_adapter(name, path)``; a class may have more than this. Most families
    can inherit half of it from ``adapters.common.StandardDecoder``.
    """

    name: str
    module: nn.Module
    codebook_size: int
    """How many image codes there are; ``ImageLayout.num_codes`` is how many one image has."""
    pad_id: int
    defaults: Defaults
    engine_serving: EngineServing

    @property
    def pixels_per_code(self) -> int:
        """Side in pixels of the square that one code represents."""
        ...

    @property
    def max_tokens(self) -> int:
        """The longest prompt and image together that the decoder has positions for."""
        ...

    def layout(self, grid: Grid) -> ImageLayout:
        """The slots of an image of that grid. Raises UserError for a grid it can't generate."""
        ...

    def prompt_ids(self, prompts: Sequence[str], grid: Grid) -> list[list[int]]:
        """Token ids of each prompt, up to and including the last token before the first slot."""
        ...

    def unconditional_ids(
        self, conditional: list[int], grid: Grid, negative_prompt: str = ""
    ) -> list[int]:
        """Token ids of the unconditional prompt, exactly as the family was trained.

        ``conditional`` are the ids of the prompt it is paired with: Janus replaces each of them by
        padding, so its unconditional prompt has the same length; other families ignore them. A
        ``negative_prompt`` takes the place of the unconditional prompt.
        """
        ...

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] uint8 -> [B, N] int64 codes in row order."""
        ...

    def decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        """[B, N] codes -> [B, 3, H, W] uint8."""
        ...

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        """[...] vocabulary ids -> [..., D]."""
        ...

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """[...] image codes -> [..., D]."""
        ...

    def hidden_states(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        position_ids: torch.Tensor,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """[B, L, D] embeddings -> [B, L, D] last hidden states, after the final norm.

        ``mask`` is [B, L] bool, or covers cached tokens too when ``cache`` is given; False is
        padding. In training it is True everywhere, as rows are padded at their end: a decoder that
        does not notice this by itself, as transformers' do, may leave the mask out and use the
        kernels of causal attention.
        """
        ...

    def new_cache(self, max_length: int) -> Cache:
        """An empty key-value cache for ``max_length`` tokens."""
        ...

    def image_head(self, *, whole_vocabulary: bool = False) -> ImageHead:
        """The head's image rows, or all its rows."""
        ...

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain texts with the family's start of a text, without an image."""
        ...

    def text_states(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """[B, L] ids -> [B, L, D] hidden states, the input of ``text_head``."""
        ...

    def text_head(self) -> nn.Linear:
        """The output layer of text, over the whole vocabulary."""
        ...

    def frozen(self) -> list[nn.Module]:
        """Parts that are never trained and stay in eval mode (image tokenizer, vision tower)."""
        ...

    def lora_targets(self) -> list[str]:
        """Names of the linear layers that get a LoRA."""
        ...

    def compile(self) -> None:
        """torch.compile the decoder that ``hidden_states`` runs, in place.

        A copy made with ``copy.deepcopy`` is not compiled.
        """
        ...

    def enable_gradient_checkpointing(self) -> None:
        """Trade a second forward pass for the memory of activations."""
        ...

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write a plain ``save_pretrained`` folder with the processor's files (never a LoRA).

        ``weights``, named as in ``module``, replace its own where each rank holds only a part.
        """
        ...

    def engine_codes(self) -> np.ndarray:
        """[K] int64, the id of every image code in the vocabulary of ``save_for_engine``'s folder.

        Raises UserError where no stock engine can hold the family's codes.
        """
        ...

    def save_for_engine(self, folder: Path) -> None:
        """Write the folder that a stock engine loads: the decoder and its text tokenizer.

        A LoRA must be merged first. Raises UserError where no stock engine can hold the family.
        """
        ...

    def chat_template(self, grid: Grid) -> str | None:
        """A Jinja chat template that gives the ids of ``prompt_ids`` for the last message's text.

        Where the prompt holds the image's size, ``height`` and ``width`` in pixels are variables
        of the template, and those of ``grid`` their defaults. None: there is none.
        """
        ...


def grid_of(model: UnifiedModel, image_size: Sequence[int]) -> Grid:
    """The grid of codes of images of ``image_size`` (height, width) pixels.

    Raises:
        UserError: the size is not a multiple of the pixels per code.
    """
    side = model.pixels_per_code
    height, width = image_size
    if height % side or width % side:
        raise UserError(
            f"data.image_size is [{height}, {width}]; allowed for this checkpoint: multiples of "
            f"{side}, the pixels per code."
        )
    return (height // side, width // side)


def rows_with_ends(grid: Grid, row_end: int) -> ImageLayout:
    """Rows of free codes; the token ``row_end`` ends each row but the last."""
    height, width = grid
    rows = np.full((height, width + 1), FREE, dtype=np.int64)
    rows[:, -1] = row_end
    return ImageLayout(rows.flatten()[:-1])


FOR_ENGINES = frozenset({"engine_serving", "engine_codes", "save_for_engine", "chat_template"})
"""Parts of the protocol that training and sampling here do without; ``StandardDecoder`` has them,
and an adapter that was written before them loads as it did."""


def missing_parts(model: object) -> list[str]:
    """Names of the protocol's methods and attributes that an adapter does not have."""
    return _missing(model, {*UnifiedModel.__annotations__, *vars(UnifiedModel)} - FOR_ENGINES)


def refuse_without_engine(model: UnifiedModel) -> None:
    """Raises UserError for an adapter that lacks the parts that serving needs."""
    missing = _missing(model, FOR_ENGINES)
    if missing:
        raise UserError(
            f"the adapter {model.name!r} can't be served by an engine: it lacks "
            f"{', '.join(missing)}; mm_cca/adapters/base.py says what each must do "
            "(StandardDecoder has them)."
        )


def _missing(model: object, names: Collection[str]) -> list[str]:
    return sorted(n for n in names if not n.startswith("_") and n not in dir(model))
