"""A tiny Liquid: Gemma's files as transformers 4 wrote them, and Meta's image tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    ChameleonVQVAEConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GenerationConfig,
)
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from mm_cca.adapters.vqgan import VQDecoder
from mm_cca.testing.tiny.shards import with_tokenizer_files
from mm_cca.testing.tiny.sizes import (
    CAPTIONS,
    CODEBOOK_SIZE,
    HIDDEN,
    Layout,
    spread,
    use_many_codes,
)

_FIRST = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]"]
_ADDED = ["<boi>", "<eoi>", "<unconditional>"]
"""They stand where Gemma has ``<unused0>`` to ``<unused2>`` (Liquid's TRAIN.md)."""
MERGES = 100


def write_liquid(folder: Path, side: int, layout: Layout, head_size: int | None) -> None:
    """``vqgan.ckpt`` lies in the same folder; on the hub it is part of Meta's download."""
    vq = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=16,
            num_embeddings=CODEBOOK_SIZE,
            latent_channels=16,
            resolution=16 * side,
            base_channels=32,
            channel_multiplier=[1, 1, 1, 1, 1],
            num_res_blocks=1,
        )
    )
    use_many_codes(vq)
    decoder = VQDecoder(vq.config).state_dict()
    weights = vq.state_dict() | {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    torch.save({"state_dict": weights}, folder / "vqgan.ckpt")

    tokenizer = with_tokenizer_files(folder, _write_tokenizer, layout)
    model = _model(len(tokenizer), side, HIDDEN if head_size is None else head_size)
    if layout == "transformers":
        model.save_pretrained(folder)
        return
    model.bfloat16().save_pretrained(folder, max_shard_size="40KB")
    (folder / "config.json").write_text(json.dumps(_hub_config(model.config), indent=2))


def _model(text_vocabulary: int, side: int, head_size: int) -> GemmaForCausalLM:
    config = GemmaConfig(
        vocab_size=text_vocabulary + CODEBOOK_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=head_size,  # Gemma-7b's heads are wider than hidden_size / heads, too
        max_position_embeddings=side * side + 256,
    )
    model = GemmaForCausalLM(config)
    spread(model.model.layers)
    # Tied to the head and multiplied by the root of the hidden size on the way in.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.3)
    model.generation_config = GenerationConfig(
        bos_token_id=2, eos_token_id=1, pad_token_id=0, do_sample=True
    )
    return model


def _hub_config(config: GemmaConfig) -> dict[str, object]:
    """As transformers 4.39 saved it, which Liquid was trained with."""
    kept = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads head_dim max_position_embeddings"
    )
    return {
        "_name_or_path": "gemma-7b-addtoken",
        "architectures": ["GemmaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "hidden_act": "gelu",  # ignored by that version, which took gelu_pytorch_tanh for null
        "hidden_activation": None,
        "initializer_range": 0.02,
        "model_type": "gemma",
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.39.2",
        "use_cache": False,
        **{name: getattr(config, name) for name in kept.split()},
    }


def _write_tokenizer(folder: Path) -> None:
    """``tokenizer.json`` as Gemma's: BPE over whole texts, with bytes for what it lacks."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.train_from_iterator(
        CAPTIONS, trainers.BpeTrainer(vocab_size=MERGES, show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    special = [*_FIRST, *_ADDED]
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    names = [*special, *in_bytes, *pieces]
    _write_sentencepiece(folder / "tokenizer.model", in_bytes, pieces)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: number for number, name in enumerate(names)},
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{role}_token": f"<{role}>" for role in ("bos", "eos", "pad", "unk")}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    rest = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(number): {
                "content": name,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for number, name in enumerate(special)
        },
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000_000_000_019_884_624_838_656,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "use_default_system_prompt": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named | rest, indent=2))


def _write_sentencepiece(file: Path, in_bytes: list[str], pieces: list[str]) -> None:
    """Gemma's own file: Liquid's added tokens are only in the JSON files (its TRAIN.md)."""
    proto: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    kinds = proto.ModelProto.SentencePiece.Type
    unused = [f"<unused{number}>" for number in range(len(_ADDED))]
    model = proto.ModelProto()
    for name in ("<pad>", "<eos>", "<bos>"):
        model.pieces.add(piece=name, score=0.0, type=kinds.CONTROL)
    model.pieces.add(piece="<unk>", score=0.0, type=kinds.UNKNOWN)
    for name in (*_FIRST[4:], *unused):
        model.pieces.add(piece=name, score=0.0, type=kinds.USER_DEFINED)
    for name in in_bytes:
        model.pieces.add(piece=name, score=0.0, type=kinds.BYTE)
    for rank, name in enumerate(pieces):
        model.pieces.add(piece=name, score=-float(rank), type=kinds.NORMAL)
    trained, normal = model.trainer_spec, model.normalizer_spec
    trained.model_type = proto.TrainerSpec.ModelType.BPE
    trained.vocab_size, trained.byte_fallback = len(model.pieces), True
    trained.pad_id, trained.eos_id, trained.bos_id, trained.unk_id = range(4)
    trained.pad_piece, trained.eos_piece, trained.bos_piece, trained.unk_piece = _FIRST[:4]
    normal.name, normal.add_dummy_prefix, normal.remove_extra_whitespaces = "identity", False, False
    file.write_bytes(model.SerializeToString())
