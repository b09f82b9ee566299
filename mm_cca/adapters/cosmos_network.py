"""The layers of Cosmos DV8x16x16 for one frame; ``cosmos.py`` says why they are those of an image.

Attributes are named as NVIDIA's, because their names are those of the weights.
Shapes: B images, C channels, H x W pixels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

NVIDIAS_LEVELS = (8, 8, 8, 5, 5, 5)
RESOLUTIONS = 3
_PATCH_CHANNELS = 3 * 4**3  # a patch of 4 frames of 4 x 4 pixels


@dataclass(frozen=True)
class CosmosShape:
    """Sizes of the network. The defaults are those of Cosmos-1.0-Tokenizer-DV8x16x16.

    Attributes:
        channels: at full and at half and at quarter the resolution of the patches, coarsest last.
        first: channels before the first level.
        blocks: residual blocks a level of the encoder has; the decoder has one more.
        latent: channels between the network and the quantizer's projection.
        levels: how many values each number of a code has; a code is one of all their combinations.
    """

    channels: tuple[int, ...] = (256, 512, 512)
    first: int = 128
    blocks: int = 2
    latent: int = 16
    levels: tuple[int, ...] = NVIDIAS_LEVELS


def _conv(inside: int, outside: int) -> nn.Sequential:
    """3 x 3 pixels, and then 3 frames."""
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.Conv2d(outside, outside, 1))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels, eps=1e-6)


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inside), _conv(inside, outside)
        self.norm2, self.conv2 = _norm(outside), _conv(outside, outside)
        same = inside == outside
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(inside, outside, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        result: torch.Tensor = self.nin_shortcut(x) + hidden
        return result


class _Attention(nn.Module):
    """Over the pixels of the frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(x)
        q, k, v = (f(hidden).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).view(x.shape)
        result: torch.Tensor = x + self.proj_out(attended)
        return result


class _AttentionOverTime(nn.Module):
    """A frame that is alone attends to itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.v, self.proj_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.proj_out(self.v(self.norm(x)))
        return result


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = _Block(channels, channels)
        self.attn_1 = nn.Sequential(_Attention(channels), _AttentionOverTime(channels))
        self.block_2 = _Block(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return result


class _Downsample(nn.Module):
    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self._temporal = temporal
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=2)
        self.conv2 = nn.Conv2d(channels, channels, 1)  # stored even where it isn't used
        self.conv3 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.pad(x, (0, 1, 0, 1))) + F.avg_pool2d(x, 2)
        if self._temporal:
            hidden = self.conv2(hidden) + hidden
        result: torch.Tensor = self.conv3(hidden)
        return result


class _Upsample(nn.Module):
    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self._temporal = temporal
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv3 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(x) + x if self._temporal else x
        hidden = F.interpolate(hidden, scale_factor=2.0, mode="nearest")
        result: torch.Tensor = self.conv3(self.conv2(hidden) + hidden)
        return result


class _Level(nn.Module):
    """Residual blocks, and the change of resolution after them."""

    def __init__(self, inside: int, outside: int, blocks: int) -> None:
        super().__init__()
        sizes = [(inside, outside), *[(outside, outside)] * (blocks - 1)]
        self.block = nn.Sequential(*(_Block(a, b) for a, b in sizes))
        self.downsample: nn.Module
        self.upsample: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.block(x)
        for name in ("downsample", "upsample"):
            if name in self._modules:
                result = getattr(self, name)(result)
        return result


class CosmosEncoder(nn.Module):
    def __init__(self, shape: CosmosShape) -> None:
        super().__init__()
        self.conv_in = _conv(_PATCH_CHANNELS, shape.first)
        inside = (shape.first, *shape.channels)
        self.down = nn.Sequential()
        for number, outside in enumerate(shape.channels):
            level = _Level(inside[number], outside, shape.blocks)
            if number < RESOLUTIONS - 1:  # time is halved once, at the finest level
                level.downsample = _Downsample(outside, temporal=number == 0)
            self.down.append(level)
        self.mid = _Middle(inside[-1])
        self.norm_out, self.conv_out = _norm(inside[-1]), _conv(inside[-1], shape.latent)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = images
        for _ in range(2):
            hidden = haar(hidden)
            hidden = torch.cat([hidden, torch.zeros_like(hidden)], dim=1)  # what differs in time
        hidden = self.mid(self.down(self.conv_in(hidden)))
        result: torch.Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return result


class CosmosDecoder(nn.Module):
    def __init__(self, shape: CosmosShape) -> None:
        super().__init__()
        inside = shape.channels[-1]
        self.conv_in = _conv(shape.latent, inside)
        self.mid = _Middle(inside)
        levels: list[nn.Module] = []
        for number in reversed(range(RESOLUTIONS)):
            level = _Level(inside, shape.channels[number], shape.blocks + 1)
            inside = shape.channels[number]
            if number:  # time is doubled once, at the middle level
                level.upsample = _Upsample(inside, temporal=number == 1)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = _norm(inside), _conv(inside, _PATCH_CHANNELS)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            hidden = level(hidden)
        hidden = self.conv_out(F.silu(self.norm_out(hidden)))
        for _ in range(2):
            low, high = hidden.chunk(2, dim=1)
            hidden = inverse_haar(low - high)  # the last frame of those that the patch stands for
        return hidden


def haar(x: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, 4C, H/2, W/2]: the mean of 2 x 2 pixels and three differences."""
    top, bottom = x[:, :, ::2], x[:, :, 1::2]
    parts = []
    for rows in (top + bottom, top - bottom):
        left, right = rows[..., ::2], rows[..., 1::2]
        parts += [left + right, left - right]
    return torch.cat(parts, dim=1) / 4


def inverse_haar(x: torch.Tensor) -> torch.Tensor:
    """[B, 4C, H, W] -> [B, C, 2H, 2W]."""
    mean, across, down, both = x.chunk(4, dim=1)
    rows = []
    for low, high in ((mean + down, across + both), (mean - down, across - both)):
        rows.append(torch.stack([low + high, low - high], dim=-1).flatten(-2))
    return torch.stack(rows, dim=-2).flatten(-3, -2)
