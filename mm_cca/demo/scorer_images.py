"""What a scorer of the demo is trained on: augmented images and reconstructions, or features.

Shapes: n images of the data set, V variants of each, B images of a batch, H x W pixels, side S of
the vision tower's images, D features.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.data.augment import variant_parameters, zoom_and_shift

CHUNK = 128
"""Images that are reconstructed, or passed through a frozen network, at a time."""


class TrainingImages(Protocol):
    """Gives the training images of any step.

    Attributes:
        are_features: whether ``batch`` gives features of a frozen network instead of images.
    """

    @property
    def are_features(self) -> bool: ...

    def batch(self, indices: torch.Tensor, step: int) -> torch.Tensor:
        """What the tower sees of images ``indices`` [B]: float [B, 3, S, S] or [B, D]."""
        ...


@dataclass(frozen=True)
class Augmentation:
    """Seeded changes of scale and position, as ``data.max_zoom`` and ``data.max_shift``."""

    max_zoom: float
    max_shift: float
    seed: int

    def of(self, pixels: torch.Tensor, indices: torch.Tensor, variant: int) -> torch.Tensor:
        """Variant ``variant`` (0: unchanged) of images ``indices`` [B] of uint8 [n, 3, H, W]."""
        parameters = variant_parameters(
            indices,
            torch.full_like(indices, variant),
            seed=self.seed,
            max_zoom=self.max_zoom,
            max_shift=self.max_shift,
        )
        return zoom_and_shift(pixels[indices], parameters)


@dataclass(frozen=True)
class Drawings:
    """Images, augmented anew in every step; about half of them reconstructed, if there are any.

    Attributes:
        pixels: uint8 [n, 3, H, W].
        reconstructions: uint8 [V, n, 3, H, W], or None.
        augmentation: of the images; the reconstructions are of augmented images already.
        size: side S of the images that the tower sees.
    """

    pixels: torch.Tensor
    reconstructions: torch.Tensor | None
    augmentation: Augmentation
    size: int

    are_features = False

    def batch(self, indices: torch.Tensor, step: int) -> torch.Tensor:
        images = self.augmentation.of(self.pixels, indices, step + 1)
        if self.reconstructions is not None:
            variants = len(self.reconstructions)
            stream = np.random.default_rng([self.augmentation.seed, step])
            chosen = torch.from_numpy(stream.random(len(indices)) < 0.5)
            variant = torch.from_numpy(stream.integers(variants, size=len(indices)))
            images[chosen] = self.reconstructions[variant[chosen], indices[chosen]]
        return resized(images, self.size)


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of a frozen network, computed before training; each batch takes random variants.

    Attributes:
        features: [V, n, D], reconstructions among the variants.
        seed: of the choice of variants.
    """

    features: torch.Tensor
    seed: int

    are_features = True

    def batch(self, indices: torch.Tensor, step: int) -> torch.Tensor:
        stream = np.random.default_rng([self.seed, step])
        variant = torch.from_numpy(stream.integers(len(self.features), size=len(indices)))
        return self.features[variant, indices].float()


def resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [B, 3, H, W] -> float [B, 3, S, S] in -1..1, as the folder's ``preprocess_cfg`` does.

    PIL's bicubic kernel, to whole pixel values; PIL also rounds and clips between rows and columns.
    """
    if pixels.shape[-1] != size:
        shape = (size, size)
        wide = F.interpolate(pixels.float(), shape, mode="bicubic", antialias=True)
        pixels = wide.round().clamp(0, 255)
    return normalise(pixels)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """0..255 -> -1..1: mean and std 0.5, the same as in ``preprocess_cfg``."""
    return pixels.float() / 127.5 - 1


def variants_of(
    pixels: torch.Tensor, augmentation: Augmentation, count: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Variants 0 (unchanged) to ``count - 1`` of all images, in chunks.

    Yields:
        variant, indices [B] of the images, uint8 [B, 3, H, W].
    """
    for variant in range(count):
        for indices in torch.arange(len(pixels)).split(CHUNK):
            yield variant, indices, augmentation.of(pixels, indices, variant)


def reconstruct_variants(
    model: UnifiedModel,
    pixels: torch.Tensor,
    augmentation: Augmentation,
    count: int,
    advance: Callable[[int], object],
) -> torch.Tensor:
    """uint8 [n, 3, H, W] -> [count, n, 3, H, W]: what the image tokenizer makes of the variants.

    Args:
        model: of an image tokenizer that works on H x W pixels.
        pixels: all images.
        augmentation: of the images, before they are encoded.
        count: number of variants; the first is the unchanged image.
        advance: called with the number of images after each chunk.

    Raises:
        UserError: H or W is not a multiple of the pixels per code.
    """
    grid = grid_of(model, pixels.shape[-2:])
    out = torch.empty(count, *pixels.shape, dtype=torch.uint8)
    for variant, indices, images in variants_of(pixels, augmentation, count):
        out[variant, indices] = model.decode(model.encode(images), grid)
        advance(len(indices))
    return out


@torch.no_grad()
def frozen_features(
    trunk: nn.Module,
    variants: Sequence[torch.Tensor],
    size: int,
    autocast: Callable[[], torch.autocast],
    advance: Callable[[int], object],
) -> torch.Tensor:
    """[V, n, D] bf16 features of V times uint8 [n, 3, H, W] by a frozen network.

    Args:
        trunk: from [B, 3, S, S] to [B, D]; its batch normalisation is not updated.
        variants: the images.
        size: S.
        autocast: of the network.
        advance: called with the number of images after each chunk.
    """
    trunk.eval()
    rows = []
    for images in variants:
        parts = []
        for chunk in images.split(CHUNK):
            seen = resized(chunk, size).contiguous(memory_format=torch.channels_last)
            with autocast():
                parts.append(trunk(seen).to(torch.bfloat16))
            advance(len(chunk))
        rows.append(torch.cat(parts))
    return torch.stack(rows)
