"""Tiny random checkpoints of every family, in the layout of the real ones on the hub.

They use the classes and files of transformers; only the sizes are small, so a recipe runs the same
code on a tiny and on a real checkpoint. The grid of codes is the real one unless ``side`` is given.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessor,
    ChameleonProcessor,
    ChameleonVQVAEConfig,
    Emu3VQVAE,
    Emu3VQVAEConfig,
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessor,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

from mm_cca.adapters.vqgan import VQDecoder
from mm_cca.demo import small_emu3 as emu3
from mm_cca.errors import UserError
from mm_cca.testing.tiny_tokenizers import (
    CAPTIONS,
    CODEBOOK_SIZE,
    JANUS_TEMPLATE,
    TEXT_VOCABULARY,
    chameleon_tokenizer,
    janus_tokenizer,
)

HIDDEN = 32
WEIGHT_SPREAD = 0.3
"""Standard deviation of the weights. With transformers' own, every distribution would be nearly
uniform."""


def write_tiny(family: str, folder: Path, *, side: int | None = None, seed: int = 0) -> None:
    """Write a checkpoint of ``family`` that ``from_pretrained`` and the adapter read.

    Args:
        family: a key of ``FAMILIES``.
        folder: where to write it; must not contain a ``config.json`` yet.
        side: codes along each side of an image; None: as many as the real checkpoints have.
        seed: of the weights.

    Raises:
        UserError: an unknown family, a side below 1, or a folder that is in use or not writable.
    """
    if family not in FAMILIES:
        raise UserError(f"there is no tiny {family!r}; allowed: {', '.join(FAMILIES)}.")
    if (folder / "config.json").exists():
        raise UserError(f"{folder} holds a checkpoint already; choose another folder.")
    if side is not None and side < 1:
        raise UserError(f"--side is {side}; allowed: 1 or more codes along each side.")
    torch.manual_seed(seed)
    write, real_side = FAMILIES[family]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, real_side if side is None else side)
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error}") from error


def _emu3(folder: Path, side: int) -> None:
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
    words = emu3.build_tokenizer(CAPTIONS, TEXT_VOCABULARY, CODEBOOK_SIZE)
    positions = side * (side + 1) + 256
    shape = emu3.DecoderShape(HIDDEN, 2 * HIDDEN, 2, 2, positions)
    model = emu3.assemble(vq, words, shape, seed=int(torch.initial_seed()))
    _spread(model.model.text_model, model.lm_head)
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=2048, guidance_scale=3.0, pad_token_id=words.pad_token_id
    )
    emu3.save(model, emu3.build_processor(words, 8 * side, 8), folder, torch.float32)


def _chameleon(folder: Path, side: int) -> None:
    model = _chameleon_model(side)
    vq = model.model.vqmodel
    vq.decoder = VQDecoder(vq.config)  # in the same weights file, as in Anole's conversion
    model.save_pretrained(folder)
    tokenizer = chameleon_tokenizer()
    ChameleonProcessor(
        ChameleonImageProcessor(), tokenizer, image_seq_length=side * side
    ).save_pretrained(folder)


def _lumina_mgpt(folder: Path, side: int) -> None:
    model = _chameleon_model(side)
    vq = model.model.vqmodel
    decoder = VQDecoder(vq.config).state_dict()
    weights = vq.state_dict() | {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    torch.save({"state_dict": weights}, folder / "vqgan.ckpt")  # a file of its own, as Meta's
    model.save_pretrained(folder)
    chameleon_tokenizer().save_pretrained(folder)


def _chameleon_model(side: int) -> ChameleonForConditionalGeneration:
    vocabulary = chameleon_tokenizer().get_vocab()
    config = ChameleonConfig(
        vocab_size=len(vocabulary),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=side * (side + 1) + 256,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        vocabulary_map=vocabulary,
        vq_config=ChameleonVQVAEConfig(
            embed_dim=16,
            num_embeddings=CODEBOOK_SIZE,
            latent_channels=16,
            resolution=16 * side,
            base_channels=32,
            channel_multiplier=[1, 1, 1, 1, 1],
            num_res_blocks=1,
        ).to_dict(),
    )
    model = ChameleonForConditionalGeneration(config)
    _spread(model.model.layers, model.model.embed_tokens, model.lm_head)
    _use_many_codes(model.model.vqmodel)
    return model


def _janus(folder: Path, side: int) -> None:
    tokenizer = janus_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=side * side + 256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = JanusVisionConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16 * side,
        patch_size=16,
        projection_dim=HIDDEN,
        num_image_tokens=side * side,
    )
    vq = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=CODEBOOK_SIZE,
        latent_channels=16,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        projection_dim=HIDDEN,
        image_token_embed_dim=HIDDEN,
    )
    config = JanusConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        vq_config=vq.to_dict(),
        image_token_id=tokenizer.get_vocab()["<image_placeholder>"],
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config)
    inner = model.model
    _spread(inner.language_model, inner.generation_aligner, inner.generation_head)
    nn.init.normal_(inner.generation_embeddings.weight, std=1.0)
    _use_many_codes(inner.vqmodel)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        guidance_scale=5.0,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids("<begin_of_image>")},
    )
    model.save_pretrained(folder)
    pictures = JanusImageProcessor(size={"height": 16 * side, "width": 16 * side})
    JanusProcessor(
        pictures, tokenizer, chat_template=JANUS_TEMPLATE, num_image_tokens=side * side
    ).save_pretrained(folder)


def _spread(*parts: nn.Module) -> None:
    for part in parts:
        for parameter in part.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=WEIGHT_SPREAD)


@torch.no_grad()
def _use_many_codes(vq: Any) -> None:
    """Reset the layers, and set the codebook to latents of noise, so that images use many codes."""
    for layer in vq.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    latents = vq.quant_conv(vq.encoder(torch.randn(4, 3, 64, 64)))
    entries = latents.permute(0, 2, 3, 1).flatten(0, 2)
    vq.quantize.embedding.weight.copy_(entries[torch.randperm(len(entries))[:CODEBOOK_SIZE]])


FAMILIES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "emu3": (_emu3, 90),
    "chameleon": (_chameleon, 32),
    "janus": (_janus, 24),
    "lumina-mgpt": (_lumina_mgpt, 32),
}
"""Function that writes a checkpoint, and the side of the real ones' grid (720, 512, 384 and 512
pixels)."""
