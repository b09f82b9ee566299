"""A tiny Emu3-Gen."""

from pathlib import Path

import torch
from transformers import Emu3VQVAE, Emu3VQVAEConfig, GenerationConfig

from mm_cca.demo import small_emu3
from mm_cca.testing.tiny.sizes import (
    CAPTIONS,
    CODEBOOK_SIZE,
    HIDDEN,
    TEXT_VOCABULARY,
    Layout,
    spread,
)


def write_emu3(folder: Path, side: int, layout: Layout) -> None:
    vq = Emu3VQVAE(
        Emu3VQVAEConfig(
            codebook_size=CODEBOOK_SIZE,
            embed_dim=4,
            latent_channels=4,
            temporal_downsample_factor=1,
            base_channels=32,
            channel_multiplier=[1, 1, 2, 2],
            num_res_blocks=1,
            attn_resolutions=[],
            hidden_size=64,
        )
    )
    words = small_emu3.build_tokenizer(CAPTIONS, TEXT_VOCABULARY, CODEBOOK_SIZE)
    positions = side * (side + 1) + 256
    shape = small_emu3.DecoderShape(HIDDEN, 2 * HIDDEN, 2, 2, positions)
    model = small_emu3.assemble(vq, words, shape, seed=int(torch.initial_seed()))
    spread(model.model.text_model, model.lm_head)
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=2048, guidance_scale=3.0, pad_token_id=words.pad_token_id
    )
    small_emu3.save(model, small_emu3.build_processor(words, 8 * side, 8), folder, torch.float32)
