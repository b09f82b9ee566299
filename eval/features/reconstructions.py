"""Real images, encoded and decoded by the base's image tokenizer: the best its decoder can do."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import metadata

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import release_memory
from PIL import Image

from mm_cca.adapters.base import Grid, UnifiedModel, grid_of
from mm_cca.config.schema import Recipe
from mm_cca.data.images import fitted
from mm_cca.data.token_cache import open_cache
from mm_cca.errors import UserError
from mm_cca.eval.features.image_sets import RESIZE, ImageSet, resized_to, size_of
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.weights import load_source


class Reconstructor:
    """Decodes codes of the token cache with the base, which is loaded when first needed."""

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self._recipe = recipe
        self._run = run

    @cached_property
    def _model(self) -> UnifiedModel:
        return load_source(self._recipe, self._run, "base")

    def release(self) -> None:
        """Free the model's memory; it is loaded again if needed."""
        self.__dict__.pop("_model", None)
        release_memory()

    def images(self, split: str, rows: Sequence[int]) -> ImageSet:
        """The reconstructions of a split's real images, by their row in the token cache."""

        def open_some(numbers: Sequence[int]) -> list[Image.Image]:
            images: dict[int, Image.Image] = {}
            for grid, places, codes in self._codes(split, [rows[number] for number in numbers]):
                pixels = torch.cat([self._decode(x, grid) for x in codes.split(self._batch_size)])
                found = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in pixels]
                images |= dict(zip(places, found, strict=True))
            size = resized_to(self._recipe)
            in_order = [images[place] for place in range(len(numbers))]
            return in_order if size is None else [fitted(image, *size) for image in in_order]

        return ImageSet(f"reconstructed {split}", len(rows), open_some)

    def made_from(self, split: str, rows: Sequence[int]) -> list[str]:
        """What decides the pixels of ``images``: the codes, the decoder, and the resize.

        The decoder is represented by an image it decodes, so other weights are noticed.
        """
        parts: list[torch.Tensor] = []
        for grid, places, codes in self._codes(split, rows):
            parts += [codes, self._decode(codes[:1], grid)]
            if self._recipe.data.buckets:
                parts.append(torch.tensor([*grid, *places]))
        return [
            "reconstructions",
            *(hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest() for x in parts),
            str(size_of(self._recipe)),
            RESIZE,
            f"pillow {metadata.version('pillow')}",
        ]

    @property
    def _batch_size(self) -> int:
        return self._recipe.sample.batch_size_without_auto

    def _codes(
        self, split: str, rows: Sequence[int]
    ) -> Iterator[tuple[Grid, list[int], torch.Tensor]]:
        """For every image size: its grid, places in ``rows``, and [places, N] codes."""
        cache = open_cache(self._run.tokens / split, self._recipe.data.variants)
        chosen = np.array(rows)
        for size, places in cache.by_size(chosen, self._recipe.data.image_size).items():
            of_size = torch.from_numpy(chosen[places])
            codes = cache.codes(of_size, torch.zeros_like(of_size))
            yield grid_of(self._model, size), places.tolist(), codes

    @torch.no_grad()
    def _decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        try:
            return self._model.decode(codes.to(PartialState().device), grid).cpu()
        except NotImplementedError as error:
            raise UserError(
                f"adapter {self._recipe.model.adapter!r} can't decode images "
                f"({error or 'decode is not implemented'}), so nothing can be reconstructed. "
                "Reconstructions are needed by eval.reference=reconstruction, by the floors and by "
                "the examination of judges: give the adapter a decoder, or leave reconstruction "
                "out of eval.reference and base out of run.sources."
            ) from error
