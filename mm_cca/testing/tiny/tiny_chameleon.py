"""Tiny checkpoints of the Chameleon family: Anole and Lumina-mGPT."""

from pathlib import Path

import torch
from tokenizers import processors
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessor,
    ChameleonProcessor,
    ChameleonVQVAEConfig,
    PreTrainedTokenizerFast,
)

from mm_cca.adapters.vqgan import VQDecoder
from mm_cca.demo.small_emu3 import bpe
from mm_cca.testing.tiny.sizes import (
    CAPTIONS,
    CODEBOOK_SIZE,
    HIDDEN,
    TEXT_VOCABULARY,
    Layout,
    spread,
    use_many_codes,
)


def write_chameleon(folder: Path, side: int, layout: Layout) -> None:
    model = _chameleon_model(side)
    vq = model.model.vqmodel
    vq.decoder = VQDecoder(vq.config)  # in the same weights file, as in Anole's conversion
    model.save_pretrained(folder)
    tokenizer = chameleon_tokenizer()
    ChameleonProcessor(
        ChameleonImageProcessor(), tokenizer, image_seq_length=side * side
    ).save_pretrained(folder)


def write_lumina_mgpt(folder: Path, side: int, layout: Layout) -> None:
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
    spread(model.model.layers, model.model.embed_tokens, model.lm_head)
    use_many_codes(model.model.vqmodel)
    return model


def chameleon_tokenizer() -> PreTrainedTokenizerFast:
    """Chameleon's special tokens and image tokens by their real names, codes in permuted order."""
    order = torch.randperm(CODEBOOK_SIZE, generator=torch.Generator().manual_seed(0)).tolist()
    reserved = [8706, *range(8799, 8930)]
    names = [
        *("<s>", "<pad>", "</s>", "<unk>"),
        *(_image_token(code) for code in order),
        *("<eoss>", "<racm3:break>", "<image>"),
        *(f"<reserved{number:05d}>" for number in reserved),
    ]
    backend = bpe(CAPTIONS, TEXT_VOCABULARY + len(names), names)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        sep_token="<reserved08706>",
        image_token="<image>",
        boi_token="<racm3:break>",
        eoi_token="<eoss>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def _image_token(code: int) -> str:
    """``IMGIMG``, the code's digits as letters A to J, ``Z``."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"
