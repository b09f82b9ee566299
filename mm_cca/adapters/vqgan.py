"""The decoder half of Chameleon's VQGAN, which transformers lacks, and how its weights are read.

The network is the one of taming-transformers (``taming/modules/diffusionmodules/model.py``,
``Decoder``) that Meta trained for Chameleon; its blocks are transformers' own encoder blocks.
Parameter names are those of ``vqgan.ckpt`` and of the Anole folders on the hub alike.

Shapes: B images, h x w grid of codes, C latent channels, f pixels per code.
"""

import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from transformers import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonVQVAE,
    ChameleonVQVAEEncoderAttnBlock,
    ChameleonVQVAEEncoderResnetBlock,
)

from mm_cca.adapters.base import Grid
from mm_cca.adapters.checkpoint_files import read_file
from mm_cca.adapters.headers import reads_headers_only
from mm_cca.adapters.loading import read_tensors
from mm_cca.adapters.sound_weights import kinds_of, refuse_other_kinds
from mm_cca.errors import UserError

PREFIXES = ("model.vqmodel.", "vqmodel.", "")
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
META = (
    "Set model.image_tokenizer to Meta's vqgan.ckpt (in the Chameleon download, folder tokenizer/; "
    "also as a .safetensors file)."
)
WHERE = (
    f"{META} Or use a Chameleon checkpoint that holds the decoder, such as leloy/Anole-7b-v0.1-hf."
)


class _Inert:
    """Replaces a Lightning class that a checkpoint mentions next to its tensors."""


LIGHTNING = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Classes that a Lightning checkpoint such as ``vqgan.ckpt`` may hold; none of their code runs."""


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return result


class VQDecoder(nn.Module):
    """[B, C, h, w] latents (after ``post_quant_conv``) -> [B, 3, f*h, f*w] pixels in about [-1, 1].

    ``up[0]`` is the finest level, as in taming-transformers.
    """

    def __init__(self, config: ChameleonVQVAEConfig) -> None:
        super().__init__()
        levels = len(config.channel_multiplier)
        resolution = config.resolution // 2 ** (levels - 1)
        with_attention = config.attn_type == "vanilla"
        channels = config.base_channels * config.channel_multiplier[-1]

        def block(inside: int, outside: int) -> nn.Module:
            return ChameleonVQVAEEncoderResnetBlock(config, inside, outside)

        self.conv_in = nn.Conv2d(config.latent_channels, channels, kernel_size=3, padding=1)
        self.mid = nn.Module()
        self.mid.block_1 = block(channels, channels)
        attention = ChameleonVQVAEEncoderAttnBlock(channels) if with_attention else nn.Identity()
        self.mid.attn_1 = attention
        self.mid.block_2 = block(channels, channels)
        ups: list[nn.Module] = []
        for level in reversed(range(levels)):
            up = nn.Module()
            outside = config.base_channels * config.channel_multiplier[level]
            sizes = [(channels, outside), *[(outside, outside)] * config.num_res_blocks]
            up.block = nn.ModuleList(block(a, b) for a, b in sizes)
            attends = with_attention and resolution in (config.attn_resolutions or ())
            up.attn = nn.ModuleList(
                ChameleonVQVAEEncoderAttnBlock(outside) for _ in sizes if attends
            )
            channels = outside
            if level:
                up.upsample = _Upsample(channels)
                resolution *= 2
            ups.insert(0, up)
        self.up = nn.ModuleList(ups)
        self.norm_out = nn.GroupNorm(num_groups=32, num_channels=channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, 3, kernel_size=3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        mid: Any = self.mid
        hidden = mid.block_2(mid.attn_1(mid.block_1(self.conv_in(latents))))
        for level in reversed(range(len(self.up))):
            up: Any = self.up[level]
            for number, block in enumerate(up.block):
                hidden = block(hidden)
                if len(up.attn):
                    hidden = up.attn[number](hidden)
            if level:
                hidden = up.upsample(hidden)
        result: torch.Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return result


def attach_decoder(vq: ChameleonVQVAE, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Give the stock tokenizer a ``decoder``, under the name that Anole's folders use.

    Raises:
        UserError: no decoder among the tensors, a different architecture, or a different codebook.
    """
    refuse_without_decoder(tensors, source)
    weights = {n.removeprefix("decoder."): t for n, t in tensors.items() if n.startswith("decoder")}
    codebook = tensors.get("quantize.embedding.weight")
    if codebook is not None:
        own = vq.quantize.embedding.weight
        if codebook.shape != own.shape or not (reads_headers_only() or _close(codebook, own)):
            raise UserError(
                f"the decoder in {source} belongs to another codebook than the checkpoint's: "
                f"its images would be noise. {WHERE}"
            )
    with torch.device("meta") if reads_headers_only() else nullcontext():
        decoder = VQDecoder(vq.config)
    _fill(decoder, weights, source)
    vq.decoder = decoder


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one.to(other), other.detach(), rtol=1e-2, atol=1e-6)


def decode_codes(vq: ChameleonVQVAE, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """[B, h*w] codes -> [B, 3, f*h, f*w] uint8, with the decoder of ``attach_decoder``."""
    entries = vq.quantize.embedding(codes.view(-1, *grid)).permute(0, 3, 1, 2)
    decoder: Any = vq.decoder
    images = decoder(vq.post_quant_conv(entries)).float()
    # The decoder was trained on [-1, 1]; the stock image processor's 0.0078 is a rounded 1/127.5.
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def refuse_without_decoder(tensors: dict[str, torch.Tensor], source: str) -> None:
    """Raises UserError if there is no decoder among the tensors."""
    if not any(name.startswith("decoder.") for name in tensors):
        raise UserError(f"{source} holds no image decoder, so it can't generate images. {WHERE}")


def fill_encoder(vq: ChameleonVQVAE, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Fill the stock encoder half from a VQGAN file, for folders that were saved without it."""
    weights = {n: t for n, t in tensors.items() if not n.startswith("decoder")}
    _fill(vq, weights, source)


def _fill(module: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    own = module.state_dict()
    wrong = sorted(own.keys() ^ weights.keys())
    wrong += sorted(n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape)
    if wrong:
        name = wrong[0]
        found, expected = (
            f"shape {list(held[name].shape)}" if name in held else "none" for held in (weights, own)
        )
        raise UserError(
            f"{source} does not fit this checkpoint's vq_config: {len(wrong)} weights differ, such "
            f"as {name} ({found} in the file, {expected} by config.json). {WHERE}"
        )
    module.load_state_dict(weights)


def read_image_tokenizer(source: str) -> dict[str, torch.Tensor]:
    """The tensors of a VQGAN, named as in taming-transformers, from any of the usual files.

    Args:
        source: ``vqgan.ckpt`` (or .pt, .pth), a .safetensors file, or a checkpoint folder or hub
            name whose names start with ``model.vqmodel.``.

    Raises:
        UserError: the file can't be read, or holds more than tensors and plain values.
        CheckpointError: a file of the folder is missing or damaged, or weights are integers.
    """
    path = Path(source)
    if path.suffix in (".ckpt", ".pt", ".pth"):
        found = _read_pickle(path)
    elif path.suffix == ".safetensors":
        try:
            found = read_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"model.image_tokenizer {source!r} can't be read: {error}") from error
    else:
        found = read_tensors(source, "model.vqmodel.")
    for prefix in PREFIXES:
        part = {
            name.removeprefix(prefix): tensor
            for name, tensor in found.items()
            if name.startswith(tuple(prefix + part for part in PARTS))
        }
        if part:
            refuse_other_kinds(kinds_of(part), source)
            return part
    return {}


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """A Lightning or plain checkpoint; only tensors and plain values are ever unpickled."""
    if not path.exists():
        raise UserError(f"model.image_tokenizer {str(path)!r} is not there. {META}")
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in LIGHTNING]):
            place = "meta" if reads_headers_only() else "cpu"
            content = torch.load(path, map_location=place, weights_only=True)
    except Exception as error:  # torch raises nearly anything for a damaged file
        # What torch says of a pickle goes on for a page, and advises to run its code.
        told = "" if isinstance(error, pickle.UnpicklingError) else f": {error}"
        raise UserError(
            f"model.image_tokenizer {str(path)!r} can't be read{told}\nIt is damaged, or holds "
            "more than tensors and plain values, which would run as code. Download it again, or "
            "save its 'state_dict' alone as a .safetensors file."
        ) from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {n: t for n, t in weights.items() if isinstance(t, torch.Tensor)}
