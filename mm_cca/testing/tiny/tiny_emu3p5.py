"""A tiny Emu3.5-Image, with its image tokenizer and its text tokenizer in folders of their own."""

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import ChameleonVQVAEConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mm_cca.adapters.emu3p5_tokenizer import SPECIAL_TOKENS, TOKENIZER_FOLDER, read_tokenizer
from mm_cca.adapters.ibq import FIELDS, IBQ, IMAGE_TOKENIZER
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

IMAGE_FOLDER = "Emu3.5-VisionTokenizer"


def write_emu3p5(folder: Path, side: int, layout: Layout, head_size: int | None) -> None:
    words = folder / TOKENIZER_FOLDER
    _write_text_tokenizer(words)
    _write_image_tokenizer(folder / IMAGE_FOLDER)
    tokenizer = read_tokenizer([str(words)])
    config = Qwen3Config(
        vocab_size=len(tokenizer) + CODEBOOK_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        # As in the real one, the heads are wider together than the hidden states.
        head_dim=24 if head_size is None else head_size,
        max_position_embeddings=side * (side + 1) + 256,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    spread(model.model.layers, model.model.embed_tokens, model.lm_head)
    if layout == "transformers":
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for file in words.iterdir():
            file.unlink()
        words.rmdir()
        return
    model.bfloat16().save_pretrained(folder, max_shard_size="60KB")
    _write_json(folder / "config.json", _hub_config(config, tokenizer.get_vocab()))
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    written = {"_from_model_config": True, "transformers_version": "4.48.2"}
    _write_json(folder / "generation_config.json", ids | written)


def _hub_config(config: Qwen3Config, vocabulary: dict[str, int]) -> dict[str, Any]:
    """As BAAI's configuration class writes it, with the dropout that it has by default."""
    same = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act"),
        *("max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
    )
    return {name: getattr(config, name) for name in same} | {
        "architectures": ["Emu3ForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_emu3.Emu3Config",
            "AutoModelForCausalLM": "modeling_emu3.Emu3ForCausalLM",
        },
        "model_type": "Emu3",
        "attention_dropout": 0.1,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "pretraining_tp": 1,
        "img_token_id": vocabulary["<|image token|>"],
        "boi_token_id": vocabulary["<|image start|>"],
        "eoi_token_id": vocabulary["<|image end|>"],
        "eol_token_id": vocabulary["<|extra_200|>"],
        "eof_token_id": vocabulary["<|extra_201|>"],
        "image_area": 1048576,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.48.2",
    }


def _write_text_tokenizer(folder: Path) -> None:
    """The files of src/tokenizer_emu3_ibq in BAAI's repository, but for its Python."""
    folder.mkdir()
    vocabulary = bpe(CAPTIONS, TEXT_VOCABULARY, []).get_vocab()
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    lines = [
        f"{b64encode(bytes(byte_of[x] for x in token)).decode()} {rank}\n"
        for token, rank in sorted(vocabulary.items(), key=lambda item: item[1])
    ]
    (folder / "emu3.tiktoken").write_text("".join(lines))
    codes = [f"<|visual token {code:06d}|>" for code in range(CODEBOOK_SIZE)]
    (folder / "emu3_vision_tokens.txt").write_text("\n".join([*SPECIAL_TOKENS[-3:], *codes]) + "\n")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "model_max_length": 10**18,
            "tokenizer_class": "Emu3Tokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_emu3.Emu3Tokenizer", None]},
        },
    )


@torch.no_grad()
def _write_image_tokenizer(folder: Path) -> None:
    folder.mkdir()
    config = ChameleonVQVAEConfig(
        embed_dim=16,
        num_embeddings=CODEBOOK_SIZE,
        latent_channels=16,
        resolution=256,
        base_channels=32,
        channel_multiplier=[1, 1, 2, 2, 4],
        num_res_blocks=1,
        attn_resolutions=[16],
    )
    vq = IBQ(config)
    use_many_codes(vq)
    # The code is the entry with the largest inner product, so of entries of different lengths the
    # longest would always win.
    entries = vq.quantize.embedding.weight
    entries.copy_(F.normalize(entries, dim=-1))
    save_file(vq.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    names = {theirs: getattr(config, name) for name, theirs in FIELDS.items()}
    _write_json(
        folder / "config.json",
        names
        | {
            "architectures": ["Emu3p5VisionVQModel"],
            "auto_map": {
                "AutoConfig": "configuration_emu3p5visionvq.Emu3p5VisionVQConfig",
                "AutoModel": "modeling_emu3p5visionvq.Emu3p5VisionVQModel",
            },
            "model_type": IMAGE_TOKENIZER,
            "out_ch": 3,
            "torch_dtype": "float32",
        },
    )


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n")
