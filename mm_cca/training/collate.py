"""From the pairs of a step to the tensors of a forward pass.

Shapes: B pairs, m negative captions per image, P prompt tokens, N codes per image; W = m * B rows
with a negative caption, in m blocks of B; R = B or 0 rows with a drawn picture; M = B + W + R rows
in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mm_cca.adapters.base import Grid, UnifiedModel, grid_of
from mm_cca.config.prompt_templates import filled
from mm_cca.data.texts import TextStream
from mm_cca.data.token_cache import TokenCache
from mm_cca.modeling.inputs import PaddedTokens, right_pad
from mm_cca.modeling.text_nll import text_batch
from mm_cca.negatives import normalise
from mm_cca.training.drawn_pictures import DrawnPictures
from mm_cca.training.schedule import Pairs


@dataclass(frozen=True)
class MicroBatch:
    """The inputs of one forward pass: first all own prompts, then the negatives, if planned, then
    the pictures that the base drew for the own prompts, if the loss needs them.

    An image's own and negative rows hold the same codes, but after different prompts, and every
    code's state depends on its prompt: nothing of one row's pass can serve another. ``cca_code``
    needs no negative rows, so its pass of the model is half as large as that of ``cca``.

    Attributes:
        start: place of the first pair in the order of training.
        num_pairs: B.
        prompts: [M, P] ids and mask.
        codes: [M, N].
        dropped: [B] bool, all prompts are the unconditional prompt.
        counts_as_positive: [W] bool, the row's prompt is not a true negative: dropped, or equal to
            a caption of the image.
        unconditional: [B, P'] ids and mask of the unconditional prompts, if a teacher needs them.
        texts: [B, T] ids and mask of plain texts, if the loss has a text term.
        num_drawn: R.
        grid: of all images; None: that of ``data.image_size``, as there are no buckets.
    """

    start: int
    num_pairs: int
    prompts: PaddedTokens
    codes: torch.Tensor
    dropped: torch.Tensor
    counts_as_positive: torch.Tensor
    unconditional: PaddedTokens | None = None
    texts: PaddedTokens | None = None
    num_drawn: int = 0
    grid: Grid | None = None

    @property
    def negatives(self) -> slice:
        """The W rows with a negative caption."""
        return slice(self.num_pairs, len(self.codes) - self.num_drawn)

    @property
    def drawn(self) -> slice:
        """The R rows with a drawn picture."""
        return slice(len(self.codes) - self.num_drawn, len(self.codes))

    @property
    def num_tokens(self) -> int:
        """Prompt tokens and codes that the model scores."""
        return int(self.prompts.mask.sum()) + self.codes.numel()


class Collator:
    """Looks up codes and captions, and tokenises prompts in the model family's template."""

    def __init__(
        self,
        model: UnifiedModel,
        cache: TokenCache,
        image_size: Sequence[int],
        device: torch.device,
        *,
        template: str | None,
        with_unconditional: bool = False,
        texts: TextStream | None = None,
        drawn: DrawnPictures | None = None,
    ) -> None:
        """``template`` is data.caption_template, for own and negative captions."""
        self._model = model
        self._cache = cache
        self._image_size = image_size
        self._device = device
        self._template = template
        self._with_unconditional = with_unconditional
        self._texts = texts
        self._drawn = drawn
        self.num_codes = _codes_of(model, cache, image_size)
        """Per image; with buckets the mean over the images, rounded."""

    def __call__(self, pairs: Pairs) -> MicroBatch:
        """The micro-batch of these pairs, on the device. Their images must have one size."""
        (size,) = self._cache.by_size(pairs.rows, self._image_size)
        grid = grid_of(self._model, size)
        own, all_own = self._own_captions(pairs)
        planned = pairs.negatives.read()
        negatives: list[str] = planned.T.flatten().tolist()
        num_negatives = planned.shape[1]
        ids = self._prompt_ids(own, grid)
        # Tokenised row by row, so only where needed.
        needed = (
            range(len(own)) if self._with_unconditional else np.flatnonzero(pairs.dropped).tolist()
        )
        unconditional = {i: self._model.unconditional_ids(ids[i], grid) for i in needed}
        if negatives:
            ids = ids + self._prompt_ids(negatives, grid)
        dropped = np.tile(pairs.dropped, 1 + num_negatives)
        ids = [unconditional[i % len(own)] if dropped[i] else row for i, row in enumerate(ids)]
        same = [normalise(c) in all_own[i % len(own)] for i, c in enumerate(negatives)]
        codes = self._cache.codes(torch.from_numpy(pairs.rows), torch.from_numpy(pairs.variants))
        counts_as_positive = dropped[len(own) :] | np.array(same, dtype=bool)
        codes = codes.repeat(1 + num_negatives, 1)
        drawn = self._drawn_codes(pairs)
        if drawn is not None:
            ids = ids + ids[: len(own)]
            codes = torch.cat([codes, drawn])
        return MicroBatch(
            start=pairs.start,
            num_pairs=len(own),
            prompts=right_pad(ids, self._model.pad_id).to(self._device),
            codes=codes.to(self._device),
            dropped=torch.from_numpy(pairs.dropped).to(self._device),
            counts_as_positive=torch.from_numpy(counts_as_positive).to(self._device),
            unconditional=self._unconditional_rows(unconditional),
            texts=self._text_rows(pairs),
            num_drawn=0 if drawn is None else len(drawn),
            grid=None if self._cache.sizes is None else grid,
        )

    def rows_by_size(self) -> list[np.ndarray]:
        """The rows of the images of each size."""
        return list(self._cache.by_size(np.arange(len(self._cache)), self._image_size).values())

    def _own_captions(self, pairs: Pairs) -> tuple[list[str], list[set[str]]]:
        """[B] the captions that are trained on, and all captions of each image, normalised."""
        rows = pairs.rows.tolist()
        if pairs.columns is None:
            own = [self._cache.captions[row] for row in rows]
            return own, [{normalise(caption)} for caption in own]
        assert self._cache.texts is not None
        texts = [self._cache.texts[row] for row in rows]
        own = [of_row[i] for of_row, i in zip(texts, pairs.columns.tolist(), strict=True)]
        return own, [{normalise(text) for text in of_row if text} for of_row in texts]

    def _prompt_ids(self, captions: Sequence[str], grid: Grid) -> list[list[int]]:
        return self._model.prompt_ids(filled(self._template, captions), grid)

    def _drawn_codes(self, pairs: Pairs) -> torch.Tensor | None:
        if self._drawn is None:
            return None
        places = np.arange(pairs.start, pairs.start + len(pairs.rows))
        return self._drawn.codes(pairs.rows, places // len(self._cache.captions))

    def _unconditional_rows(self, unconditional: dict[int, list[int]]) -> PaddedTokens | None:
        if not self._with_unconditional:
            return None
        return right_pad(list(unconditional.values()), self._model.pad_id).to(self._device)

    def _text_rows(self, pairs: Pairs) -> PaddedTokens | None:
        if self._texts is None:
            return None
        places = range(pairs.start, pairs.start + len(pairs.rows))
        return text_batch(self._model, list(self._texts.at(places))).to(self._device)


def _codes_of(model: UnifiedModel, cache: TokenCache, image_size: Sequence[int]) -> int:
    counts = cache.by_size(np.arange(len(cache)), image_size)
    codes = [
        (model.layout(grid_of(model, size)).num_codes, len(rows)) for size, rows in counts.items()
    ]
    return round(sum(n * rows for n, rows in codes) / len(cache))
