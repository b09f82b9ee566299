"""A tiny SimpleAR: Qwen2.5's files as transformers 4 wrote them, and NVIDIA's two files."""

import json
import re
import warnings
from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from torch import nn
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from mm_cca.adapters.cosmos import CosmosTokenizer, shape_of
from mm_cca.adapters.cosmos_network import CosmosShape
from mm_cca.testing.tiny.shards import with_tokenizer_files
from mm_cca.testing.tiny.sizes import CAPTIONS, TEXT_VOCABULARY, Layout, hidden_size, spread

COSMOS_FOLDER = "Cosmos-1.0-Tokenizer-DV8x16x16"
SHAPE = CosmosShape(channels=(8, 16, 16), first=8, blocks=1, latent=8, levels=(4, 4, 4))
"""64 codes."""
_QWENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_ADDED = ["<|t2i|>", "<|i2t|>", "<|soi|>", "<|vtokens|>", "<|t2v|>", "<|v2t|>", "<|sov|>"]
_OVER_TIME = re.compile(r"conv(\d|_in|_out)\.1$|(downsample\.conv2|upsample\.conv1)$")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_simplear(folder: Path, side: int, layout: Layout, head_size: int | None) -> None:
    """The image tokenizer lies in ``COSMOS_FOLDER``; on the hub it is a folder of NVIDIA's."""
    write_cosmos(folder / COSMOS_FOLDER)
    tokenizer = with_tokenizer_files(folder, _write_tokenizer, layout)
    model = _model(len(tokenizer), side, hidden_size(4, head_size))
    if layout == "transformers":
        model.save_pretrained(folder)
        return
    model.bfloat16().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(_hub_config(model.config), indent=2))


def _model(text_vocabulary: int, side: int, hidden: int) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=text_vocabulary + 64,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=side * side + 256,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=text_vocabulary - 10,
        eos_token_id=text_vocabulary - 8,
    )
    model = Qwen2ForCausalLM(config)
    spread(model.model)
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            nn.init.normal_(projection.bias, std=0.3)
    # Qwen2.5-Instruct's, which the training script saves again: for its chats, not for images.
    model.generation_config = GenerationConfig(
        bos_token_id=text_vocabulary - 10,
        eos_token_id=[text_vocabulary - 8, text_vocabulary - 10],
        pad_token_id=text_vocabulary - 10,
        do_sample=True,
        repetition_penalty=1.1,
        temperature=0.7,
        top_k=20,
        top_p=0.8,
    )
    return model


def _hub_config(config: Qwen2Config) -> dict[str, object]:
    """As transformers 4 saved it from the authors' class."""
    kept = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads max_position_embeddings bos_token_id eos_token_id"
    )
    return {
        "_name_or_path": "Qwen2.5-1.5B-Instruct",
        "architectures": ["SimpARForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0",
        "use_cache": True,
        "use_sliding_window": False,
        **{name: getattr(config, name) for name in kept.split()},
    }


def _write_tokenizer(folder: Path) -> None:
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(
        CAPTIONS,
        trainers.BpeTrainer(
            vocab_size=TEXT_VOCABULARY, show_progress=False, initial_alphabet=alphabet
        ),
    )
    first = learner.get_vocab_size()  # Qwen's special tokens follow the words
    names = [*_QWENS, *_ADDED]
    learner.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    learner.save(str(folder / "tokenizer.json"))
    model = json.loads(learner.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    ids = {name: first + number for number, name in enumerate(names)}
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    named = {
        "additional_special_tokens": _ADDED,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    rest = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(number): {"content": name, "special": True} | flags for name, number in ids.items()
        },
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 4608,
        "padding_side": "right",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named | rest, indent=2))


class _Node(nn.Module):
    """A part of the scripted file; what it does is never asked."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_cosmos(folder: Path) -> None:
    """``encoder.jit`` and ``decoder.jit`` with the names and shapes of NVIDIA's."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _cosmos_weights()
    halves: dict[str, tuple[str, ...]] = {
        "encoder.jit": ("encoder.", "quant_conv.", "quantizer."),
        "decoder.jit": ("decoder.", "post_quant_conv."),
    }
    for file, starts in halves.items():
        tree = _tree({n: t for n, t in tensors.items() if n.startswith(starts)})
        with warnings.catch_warnings():  # torch would rather have another format
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(tree), str(folder / file))


def _cosmos_weights() -> dict[str, torch.Tensor]:
    """Random, by NVIDIA's names, such that pictures of noise use many codes."""
    tensors: dict[str, torch.Tensor] = {"quantizer._levels": torch.tensor(SHAPE.levels)}
    for name, value in CosmosTokenizer(SHAPE).state_dict().items():
        parent, _, kind = name.rpartition(".")
        if re.search(r"norm\w*$", parent):
            tensors[f"{parent}.norm.{kind}"] = value
        elif value.ndim == 4:  # time is before height and width
            frames = 3 if _OVER_TIME.search(parent) else 1
            kernel = value.unsqueeze(2).repeat(1, 1, frames, 1, 1)
            tensors[f"{parent}.conv3d.{kind}"] = kernel + 0.1 * torch.randn_like(kernel)
        else:
            tensors[f"{parent}.conv3d.{kind}"] = value
    for half in ("encoder", "decoder"):  # unused where there is one frame
        attention = f"{half}.mid.attn_1.1"
        for unused in ("q", "k"):
            for kind in ("weight", "bias"):
                value = tensors[f"{attention}.v.conv3d.{kind}"]
                tensors[f"{attention}.{unused}.conv3d.{kind}"] = torch.randn_like(value)
    _use_many_codes(tensors)
    return tensors


@torch.no_grad()
def _use_many_codes(tensors: dict[str, torch.Tensor]) -> None:
    vq = CosmosTokenizer(shape_of(tensors, "the tiny one")).eval()
    vq.fill(tensors, "the tiny one")
    latents = vq.quant_conv(vq.encoder(torch.rand(4, 3, 64, 64) * 2 - 1))
    mean, spread_ = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    weight, bias = (tensors[f"quant_conv.conv3d.{kind}"] for kind in ("weight", "bias"))
    tensors["quant_conv.conv3d.weight"] = weight / spread_.view(-1, 1, 1, 1, 1)
    tensors["quant_conv.conv3d.bias"] = (bias - mean) / spread_


def _tree(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Modules that hold the tensors under their names."""
    children: dict[str, dict[str, torch.Tensor]] = {}
    own: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            children.setdefault(first, {})[rest] = tensor
        else:
            own[first] = tensor
    parts = {name: _tree(inside) for name, inside in children.items()}
    if parts and all(name.isdigit() for name in parts):
        return nn.ModuleList(parts[name] for name in sorted(parts, key=int))
    node = _Node()
    for name, part in parts.items():
        node.add_module(name, part)
    for name, tensor in own.items():
        if tensor.is_floating_point():
            node.register_parameter(name, nn.Parameter(tensor))
        else:
            node.register_buffer(name, tensor)
    return node
