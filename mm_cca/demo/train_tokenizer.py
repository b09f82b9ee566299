"""Train the small image tokenizer of the emoji demo: a stock ``Emu3VQVAE``.

The loss is that of VQ-VAE (van den Oord et al., 2017) with L1 instead of L2: reconstruction,
codebook and commitment terms, straight-through gradient; dead codes are re-seeded from the data.

Shapes: B images, T = 1 frame, C code dimension, h x w grid of codes, K codes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import Emu3VQVAE

from mm_cca.data.augment import variant_parameters, zoom_and_shift


@dataclass(frozen=True)
class VqSettings:
    """How the tokenizer is trained; the values are in ``recipes/emoji-tokenizer.yaml``."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    commitment: float
    reseed_every: int
    max_zoom: float
    max_shift: float
    seed: int


@dataclass(frozen=True)
class VqStep:
    """What one training step reports."""

    step: int
    l1: float
    commitment: float
    codes_in_use: int


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, H, W] -> float in -1..1, as ``Emu3ImageProcessor`` with mean and std 0.5."""
    return pixels.float() / 127.5 - 1


def quantize(vq: Emu3VQVAE, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T, C, h, w] latents -> [B, T, h, w] codes and [B, T, C, h, w] codebook vectors."""
    codes = vq.quantize(latents)
    vectors = vq.quantize.embedding(codes).permute(0, 1, 4, 2, 3)
    return codes, vectors


def reconstruct(vq: Emu3VQVAE, vectors: torch.Tensor) -> torch.Tensor:
    """[B, T, C, h, w] codebook vectors -> [B, 3, H, W]; ``Emu3VQVAE.decode`` with a gradient."""
    post_quant = vq.post_quant_conv(vectors.permute(0, 2, 1, 3, 4)).permute(0, 2, 1, 3, 4)
    return vq.decoder(post_quant, vectors)


def encode_latents(vq: Emu3VQVAE, images: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] in -1..1 -> [B, T, C, h, w]; ``Emu3VQVAE.encode`` with a gradient."""
    hidden = vq.encoder(images.unsqueeze(1))
    return vq.quant_conv(hidden.permute(0, 2, 1, 3, 4)).permute(0, 2, 1, 3, 4)


def vq_loss(
    vq: Emu3VQVAE, images: torch.Tensor, commitment: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss [], L1 [], commitment loss [], codes [B, T, h, w] and latents; all but loss detached."""
    latents = encode_latents(vq, images).float()
    codes, vectors = quantize(vq, latents)
    codebook_term = F.mse_loss(vectors, latents.detach())
    commitment_term = F.mse_loss(latents, vectors.detach())
    straight_through = latents + (vectors - latents).detach()
    l1 = F.l1_loss(reconstruct(vq, straight_through).float(), images)
    loss = l1 + codebook_term + commitment * commitment_term
    return loss, l1.detach(), commitment_term.detach(), codes, latents.detach()


def reseed_dead_codes(
    vq: Emu3VQVAE, uses: torch.Tensor, latents: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Set every unused code to a random latent; returns [K] bool: which codes were re-seeded."""
    dead = uses == 0
    flat = latents.permute(0, 1, 3, 4, 2).reshape(-1, latents.shape[2])
    picks = torch.randint(len(flat), (int(dead.sum()),), generator=generator)
    with torch.no_grad():
        vq.quantize.embedding.weight[dead] = flat[picks]
    return dead


def train_vq(
    vq: Emu3VQVAE,
    pixels: torch.Tensor,
    settings: VqSettings,
    autocast: Callable[[], torch.autocast],
) -> Iterator[VqStep]:
    """Train in place on uint8 [n, 3, H, W], yielding after every step.

    The learning rate warms up and then decays to zero along a cosine. Dead codes are re-seeded in
    the first 60 % of the steps only, so that the codebook can converge.
    """
    vq.train()
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(vq.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=1e-4)
    uses = torch.zeros(vq.config.codebook_size, dtype=torch.long)
    variant = torch.ones(settings.batch_size, dtype=torch.long)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        indices = torch.randint(len(pixels), (settings.batch_size,), generator=generator)
        parameters = variant_parameters(
            indices,
            variant * (step + 1),
            seed=settings.seed,
            max_zoom=settings.max_zoom,
            max_shift=settings.max_shift,
        )
        images = normalise(zoom_and_shift(pixels[indices], parameters))
        with autocast():
            loss, l1, commitment, codes, latents = vq_loss(vq, images, settings.commitment)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        uses += torch.bincount(codes.flatten(), minlength=len(uses))
        in_use = int((uses > 0).sum())
        early = step < 0.6 * settings.steps
        if (step + 1) % settings.reseed_every == 0:
            if early:
                reseed_dead_codes(vq, uses, latents, generator)
            uses.zero_()
        yield VqStep(step, float(l1), float(commitment), in_use)
    vq.eval()


def _schedule(step: int, settings: VqSettings) -> float:
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def measure(vq: Emu3VQVAE, pixels: torch.Tensor, batch_size: int = 256) -> dict[str, float]:
    """Reconstruction error on uint8 [n, 3, H, W], with the stock ``encode`` and ``decode``.

    Returns ``l1`` (0..1 scale), ``psnr`` in dB and ``codebook_use``, the fraction of codes used.
    """
    used = torch.zeros(vq.config.codebook_size, dtype=torch.bool)
    absolute = squared = 0.0
    for chunk in pixels.split(batch_size):
        images = normalise(chunk)
        sizes = torch.tensor([images.shape[-2:]] * len(images))
        codes = torch.stack(list(vq.encode(images, sizes).image_tokens))
        used[codes.flatten()] = True
        difference = (vq.decode(codes).clamp(-1, 1) - images) / 2
        absolute += difference.abs().sum().item()
        squared += difference.square().sum().item()
    count = pixels.numel()
    return {
        "l1": absolute / count,
        "psnr": -10 * math.log10(squared / count),
        "codebook_use": used.float().mean().item(),
    }
