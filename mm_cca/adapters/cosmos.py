"""NVIDIA's Cosmos tokenizer DV8x16x16 for single images: pictures to 64,000 codes and back.

The published network is one for videos, whose causal convolutions see the first frame repeated
before it. For a video of one frame everything along time is therefore constant, and each layer is
one of an image: a convolution with its kernel summed over time, attention over time as its value
projection alone, the wavelets' temporal halves zero. Only these are kept here (``_image_weights``).
https://github.com/NVIDIA/Cosmos-Tokenizer: networks/configs.py (``discrete_video``),
modules/layers3d.py, patching.py and quantizers.py.

Shapes: B images, H x W pixels, h x w grid of codes, C channels, K codes, D numbers of a code.
"""

import math
import re

import torch
from torch import nn

from mm_cca.adapters.cosmos_network import (
    NVIDIAS_LEVELS,
    RESOLUTIONS,
    CosmosDecoder,
    CosmosEncoder,
    CosmosShape,
)
from mm_cca.adapters.sound_weights import kinds_of, refuse_other_kinds
from mm_cca.errors import UserError

PIXELS_PER_CODE = 16


def shape_of(encoder: dict[str, torch.Tensor], source: str) -> CosmosShape:
    """From the encoder's tensors. Raises UserError if they are not of this architecture."""
    first = encoder.get("encoder.conv_in.0.conv3d.weight")
    last = encoder.get("encoder.conv_out.0.conv3d.weight")
    blocks = {n.split(".")[4] for n in encoder if n.startswith("encoder.down.0.block.")}
    tops = [encoder.get(f"encoder.down.{n}.block.0.conv1.0.conv3d.weight") for n in range(3)]
    found = [t.shape[0] for t in tops if t is not None]
    more = any(re.match(r"encoder\.down\.(\d\.attn|[3-9])\.", name) for name in encoder)
    if first is None or last is None or len(found) != RESOLUTIONS or more:
        raise UserError(
            f"{source} is no Cosmos tokenizer of the kind DV8x16x16, which this family was "
            "trained with: the names of its weights are others."
        )
    levels = encoder.get("quantizer._levels")  # a constant, which not every file stores
    return CosmosShape(
        tuple(found),
        first.shape[0],
        len(blocks),
        last.shape[0],
        NVIDIAS_LEVELS if levels is None else tuple(int(n) for n in levels),
    )


class CosmosTokenizer(nn.Module):
    """The encoder and decoder of one frame, in float32 and frozen by the adapter."""

    basis: torch.Tensor
    sizes: torch.Tensor

    def __init__(self, shape: CosmosShape) -> None:
        super().__init__()
        self.codebook_size = math.prod(shape.levels)
        size = len(shape.levels)
        self.encoder = CosmosEncoder(shape)
        self.quant_conv = nn.Conv2d(shape.latent, size, 1)
        self.post_quant_conv = nn.Conv2d(size, shape.latent, 1)
        self.decoder = CosmosDecoder(shape)
        sizes = torch.tensor(shape.levels)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("basis", sizes.cumprod(0) // sizes, persistent=False)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, h, w] int64 codes; H and W are multiples of 16."""
        latents = self.quant_conv(self.encoder(images)).permute(0, 2, 3, 1)
        # Finite scalar quantization: each number is squeezed into its range and rounded.
        half = (self.sizes - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.sizes % 2 == 0, 0.5, 0.0)
        squeezed = (latents + (offset / half).atanh()).tanh() * half - offset
        return ((squeezed.round().long() + self.sizes // 2) * self.basis).sum(dim=-1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """[B, h, w] codes -> [B, 3, H, W] in about [-1, 1]."""
        half = self.sizes // 2
        numbers = codes.unsqueeze(-1) // self.basis % self.sizes
        latents = ((numbers - half) / half).permute(0, 3, 1, 2)
        images: torch.Tensor = self.decoder(self.post_quant_conv(latents))
        return images

    def fill(self, tensors: dict[str, torch.Tensor], source: str) -> None:
        """Take the weights of NVIDIA's two files.

        Raises:
            UserError: one is missing or has another shape.
        CheckpointError: one is of integers.
        """
        refuse_other_kinds(kinds_of(tensors), source)
        own, given = self.state_dict(), _image_weights(tensors)
        missing = sorted(own.keys() - given.keys())
        if missing:
            raise UserError(f"{source} lacks {len(missing)} weights, such as {missing[0]}.")
        for name, value in own.items():
            if given[name].shape != value.shape:
                raise UserError(
                    f"{source}: the weight {name} has shape {list(given[name].shape)} for one "
                    f"frame, but its own other sizes ask for {list(value.shape)}."
                )
        self.load_state_dict({name: given[name] for name in own})


def _image_weights(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """NVIDIA's names without their wrappers, kernels [out, in, time, h, w] summed over time."""
    return {
        re.sub(r"\.(conv3d|norm)(\.\w+)$", r"\2", name): (
            tensor.float().sum(dim=2) if tensor.ndim == 5 else tensor.float()
        )
        for name, tensor in tensors.items()
    }
