"""Between uint8 images and what an image tokenizer works on, by the checkpoint's own numbers."""

from typing import Any

import torch


def normalised(pixels: torch.Tensor, image_processor: Any) -> torch.Tensor:
    """[B, 3, H, W] uint8 -> float32, as the stock image processor rescales and normalises."""
    mean, std = _statistics(image_processor, pixels.device)
    return (pixels.float() * image_processor.rescale_factor - mean) / std


def to_uint8(images: torch.Tensor, image_processor: Any) -> torch.Tensor:
    """The way back, [B, 3, H, W] any float -> uint8, rounded."""
    mean, std = _statistics(image_processor, images.device)
    pixels = (images.float() * std + mean) / image_processor.rescale_factor
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _statistics(image_processor: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1)
        for values in (image_processor.image_mean, image_processor.image_std)
    )
    return mean, std
