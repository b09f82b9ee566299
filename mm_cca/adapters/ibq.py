"""Emu3.5's image tokenizer: Chameleon's VQGAN with another quantizer (IBQ, arXiv 2412.02692).

transformers has its encoder as ``Apertus1p5VisionTokenizerModel`` from version 5.24 on, under other
names and without the decoder. Chameleon's classes are the same network under the names of BAAI's
file and in every version; a test compares the two. Shapes: see ``adapters/base.py``.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import ChameleonVQVAEConfig, PreTrainedConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from mm_cca.adapters.checkpoint_files import damaged_file, is_hub_name
from mm_cca.adapters.config_limits import refuse_unusable
from mm_cca.adapters.loading import CheckpointError, read_tensors, reading_checkpoint
from mm_cca.adapters.sound_weights import kinds_of, refuse_other_kinds
from mm_cca.adapters.vqgan import VQDecoder
from mm_cca.errors import UserError

FIELDS = {
    "embed_dim": "embed_dim",
    "num_embeddings": "codebook_size",
    "double_latent": "double_z",
    "latent_channels": "z_channels",
    "resolution": "resolution",
    "in_channels": "in_channels",
    "base_channels": "ch",
    "channel_multiplier": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
    "dropout": "dropout",
}
"""Names in ChameleonVQVAEConfig -> in BAAI's config.json."""
IMAGE_TOKENIZER = "Emu3p5VisionVQ"
"""model_type of its config.json."""
ALLOWED = (
    "allowed for emu3p5: BAAI/Emu3.5-VisionTokenizer, or a folder that holds its config.json and "
    "model.safetensors"
)
AT_ONCE = 512
"""Positions whose scores of all codes are in memory together (131,072 codes: 268 MB)."""


class IBQ(ChameleonVQVAE):
    """The stock encoder and codebook with a ``decoder``, and the code by inner product."""

    def __init__(self, config: ChameleonVQVAEConfig) -> None:
        super().__init__(config)
        self.decoder = VQDecoder(config)
        # As theirs: uint8 / 127.5 - 1 in float64, then float32.
        levels = torch.arange(256, dtype=torch.float64, device="cpu") / 127.5 - 1
        self._levels = levels.float()

    def codes_of(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] uint8 -> [B, N] int64 codes in row order."""
        images = self._levels.to(pixels.device)[pixels.long()]
        latents = self.quant_conv(self.encoder(images)).flatten(2).transpose(1, 2)
        codebook = self.quantize.embedding.weight
        pieces = latents.flatten(0, 1).split(AT_ONCE)
        codes = torch.cat([(piece @ codebook.T).argmax(dim=-1) for piece in pieces])
        return codes.view(len(pixels), -1)


def read_ibq(source: str) -> IBQ:
    """The image tokenizer of a folder or hub name, in float32: half precision changes codes.

    Raises:
        UserError: another image tokenizer, or a file is missing or damaged.
    """
    if not Path(source).is_dir() and not is_hub_name(source):
        raise UserError(
            f"model.image_tokenizer {source!r} can't be read: there is no such folder; {ALLOWED}."
        )
    try:
        with reading_checkpoint():
            raw: dict[str, Any] = PreTrainedConfig.get_config_dict(source)[0]
            found = raw.get("model_type")
        _expect(found, source)
        refuse_unusable(raw)
        lacks = [theirs for theirs in FIELDS.values() if theirs not in raw]
        if lacks:
            raise CheckpointError(f"config.json lacks {', '.join(lacks)}: download it again")
        with reading_checkpoint():
            config = ChameleonVQVAEConfig(**{name: raw[theirs] for name, theirs in FIELDS.items()})
        tensors = read_tensors(source, "")
        refuse_other_kinds(kinds_of(tensors))
    except CheckpointError as error:
        told = damaged_file(source) or error
        raise UserError(
            f"model.image_tokenizer {source!r} can't be read: {told}; {ALLOWED}."
        ) from error
    with torch.device("meta"):
        vq = IBQ(config)
    own = vq.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    if missing:
        raise UserError(
            f"model.image_tokenizer {source!r} lacks {len(missing)} weights, such as {missing[0]}; "
            f"{ALLOWED}."
        )
    for name in sorted(own):
        found, expected = list(tensors[name].shape), list(own[name].shape)
        if found != expected:
            raise UserError(
                f"model.image_tokenizer {source!r}: {name} has shape {found}, but config.json "
                f"describes {expected}; {ALLOWED}."
            )
    vq.load_state_dict({name: tensors[name].float() for name in own}, assign=True)
    return vq


def _expect(found: str | None, source: str) -> None:
    if found is None:
        raise CheckpointError(
            "config.json is missing or has no model_type: download or copy it again"
        )
    if found != IMAGE_TOKENIZER:
        raise UserError(
            f"model.image_tokenizer {source!r} holds a {found!r}, not Emu3.5's image tokenizer "
            f"({IMAGE_TOKENIZER!r}); {ALLOWED}."
        )
