"""Folders of plain language models: one error each, that names what was found and what to set."""

from pathlib import Path

import pytest
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mm_cca import load_adapter
from mm_cca.config.shipped import ADAPTERS
from mm_cca.demo.small_emu3 import bpe
from mm_cca.errors import UserError
from mm_cca.testing.tiny.sizes import CAPTIONS, HIDDEN
from tests.support.third_party import checkpoint_paths

PLAIN = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "gemma": (GemmaConfig, GemmaForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<pad>"]
OWN = {
    ("emu3p5", "qwen3"): r"holds Qwen3 with a vocabulary of 512.*no <\|extra_200\|>: it is plain "
    "Qwen3.*Set model.path to BAAI/Emu3.5-Image",
    ("simplear", "qwen2"): r"can't draw.*plain qwen2 \(vocabulary of 512\).*Daniel0724/SimpleAR",
    ("liquid", "gemma"): r"can't draw.*plain gemma \(vocabulary of 512\).*Junfeng5/Liquid_V1_7B",
}
"""Where the adapter's family was trained from that model."""
ELSEWHERE = {
    "qwen3": r"holds Qwen3 \(.*no adapter reads that family; Emu3\.5, which .* 282926",
    "qwen2": r"holds Qwen2, as SimpleAR is \(.*if it is SimpleAR, set model\.adapter to simplear",
    "gemma": r"holds Gemma, as Liquid is \(.*if it is Liquid, set model\.adapter to liquid",
    "llama": r"holds model_type 'llama' \(.*no adapter reads that family",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    words = bpe(CAPTIONS, 300, SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", pad_token="<pad>")
    for name, (config, cls) in PLAIN.items():
        shape = config(
            vocab_size=512,  # more than the words, as Qwen's is
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        cls(shape).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_plain_language_model(adapter: str, name: str, plain: Path, folders: Path):
    images = checkpoint_paths(folders, adapter)["image_tokenizer"]
    with pytest.raises(UserError, match=OWN.get((adapter, name), ELSEWHERE[name])) as told:
        load_adapter(adapter, str(plain / name), image_tokenizer=images)
    assert str(plain / name) in str(told.value)


def test_plain_qwen3_with_emu3p5s_words(plain: Path, folders: Path):
    """Its vocabulary ends before the codes start."""
    where = checkpoint_paths(folders, "emu3p5")
    told = r"holds Qwen3 with a vocabulary of 512, and it has no room for image codes: it is plain"
    with pytest.raises(UserError, match=told):
        load_adapter("emu3p5", **where | {"path": str(plain / "qwen3"), "tokenizer": where["path"]})
