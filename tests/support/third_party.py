"""A tiny checkpoint for the example of a third-party adapter, and the paths of all checkpoints."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mm_cca.demo.small_emu3 import bpe
from mm_cca.testing.tiny import image_tokenizer_of, tokenizer_of
from mm_cca.testing.tiny.sizes import CAPTIONS

THIRD_PARTY = "tests.example_adapter:AppendedCodes"


def write_third_party(folder: Path, vqgan: Path) -> None:
    """A Llama with 64 codes after its text vocabulary, in the layout of Liquid's checkpoints."""
    special = ["<pad>", "<s>", "<boi>", "<unconditional>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe(CAPTIONS, 300, special), pad_token="<pad>", bos_token="<s>"
    )
    stored = torch.load(vqgan)["state_dict"]
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    config.vq_config = {
        "embed_dim": 16,
        "num_embeddings": 64,
        "latent_channels": 16,
        "resolution": 64,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1, 1],
        "num_res_blocks": 1,
    }
    assert stored["quantize.embedding.weight"].shape == (64, 16)
    torch.manual_seed(0)
    language = LlamaForCausalLM(config)
    for parameter in language.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    language.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def checkpoint_paths(folders: Path, name: str) -> dict[str, object]:
    """What a recipe's ``model`` says of an adapter's tiny checkpoint, in the hub's layout."""
    if name == THIRD_PARTY:
        vqgan = image_tokenizer_of("lumina-mgpt", folders / "lumina-mgpt")
        return {"path": str(folders / "third-party"), "image_tokenizer": vqgan}
    folder = folders / name
    return {
        "path": str(folder),
        "image_tokenizer": image_tokenizer_of(name, folder),
        "tokenizer": tokenizer_of(name, folder),
    }
