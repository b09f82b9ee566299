"""Small seeded changes of scale and position, so that a small data set shows more variety.

Shapes: B images, H height, W width.
"""

import numpy as np
import torch
import torch.nn.functional as F


def variant_parameters(
    indices: torch.Tensor, variants: torch.Tensor, *, seed: int, max_zoom: float, max_shift: float
) -> torch.Tensor:
    """How variant ``v`` of image ``i`` is drawn, as a function of (seed, i, v) and nothing else.

    Args:
        indices: [B] position of each image in the data set.
        variants: [B] number of the variant; 0 is always the image as it is.
        max_zoom: images are scaled by up to this factor, down to its reciprocal's square root.
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
    """Scale about the centre and shift; what comes in from outside is white.

    Args:
        pixels: [B, 3, H, W] uint8.
        parameters: [B, 3] from ``variant_parameters``.

    Returns:
        [B, 3, H, W] uint8; rows whose parameters are (1, 0, 0) are returned bit for bit.
    """
    scale, right, down = parameters.unbind(1)
    theta = torch.zeros(len(pixels), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, 0, 2] = -2 * right / scale
    theta[:, 1, 2] = -2 * down / scale
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    # White is 255: sampling the inverted image lets the zero padding stand for it.
    inverted = 255 - pixels.float()
    moved = F.grid_sample(inverted, grid, mode="bilinear", align_corners=False)
    out = (255 - moved).round().clamp(0, 255).to(torch.uint8)
    unchanged = (parameters == torch.tensor([1.0, 0.0, 0.0])).all(dim=1)
    out[unchanged] = pixels[unchanged]
    return out
