"""Seeded augmentation for small data sets: small changes of scale and position.

Shapes: B images, H height, W width.
"""

import numpy as np
import torch
import torch.nn.functional as F


def variant_parameters(
    indices: torch.Tensor, variants: torch.Tensor, *, seed: int, max_zoom: float, max_shift: float
) -> torch.Tensor:
    """Scale and shift of variant ``v`` of image ``i``: depends on (seed, i, v) only.

    Args:
        indices: [B] position of each image in the data set.
        variants: [B] number of the variant; 0 is always the unchanged image.
        seed: of the run.
        max_zoom: largest scale; the smallest is ``max_zoom ** -0.5``.
        max_shift: largest shift, as a fraction of the image's side.

    Returns:
        [B, 3] scale, shift to the right, shift downwards (fractions of the side).
    """
    rows = []
    for index, variant in zip(indices.tolist(), variants.tolist(), strict=True):
        if variant == 0:
            rows.append((1.0, 0.0, 0.0))
            continue
        stream = np.random.default_rng([seed, index, variant])
        zoom = np.exp(stream.uniform(-0.5, 1.0) * np.log(max_zoom))
        rows.append((float(zoom), *stream.uniform(-max_shift, max_shift, 2).tolist()))
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 3)


def zoom_and_shift(pixels: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Scale about the centre and shift; pixels from outside the image are white.

    Args:
        pixels: [B, 3, H, W] uint8.
        parameters: [B, 3] from ``variant_parameters``.

    Returns:
        [B, 3, H, W] uint8; rows with parameters (1, 0, 0) are returned unchanged, bit for bit.
    """
    scale, right, down = parameters.unbind(1)
    theta = torch.zeros(len(pixels), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, 0, 2] = -2 * right / scale
    theta[:, 1, 2] = -2 * down / scale
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    # grid_sample pads with 0; on the inverted image that is white.
    inverted = 255 - pixels.float()
    moved = F.grid_sample(inverted, grid, mode="bilinear", align_corners=False)
    out = (255 - moved).round().clamp(0, 255).to(torch.uint8)
    unchanged = (parameters == torch.tensor([1.0, 0.0, 0.0])).all(dim=1)
    out[unchanged] = pixels[unchanged]
    return out


def mirrored(pixels: torch.Tensor, variants: torch.Tensor) -> torch.Tensor:
    """Every second variant mirrored, left and right exchanged.

    Args:
        pixels: [B, 3, H, W].
        variants: [B]; those with odd numbers are mirrored, so never variant 0.
    """
    return torch.where((variants % 2 == 1)[:, None, None, None], pixels.flip(-1), pixels)
