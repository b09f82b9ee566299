"""The two towers of the demo's scorers: their shapes, their text tokenizer, and their folder.

They are stock models of open_clip, saved in its folder layout, to be loaded with the model name
``local-dir:FOLDER``. Their scores can be compared with each other only, not with CLIP scores.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import open_clip
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mm_cca.config.read_files import refuse_no_file
from mm_cca.demo.small_emu3 import bpe
from mm_cca.errors import UserError

BOS, EOS, PAD = "<start>", "<end>", "<pad>"
CONTEXT_LENGTH = 24
VIT = "vit"


@dataclass(frozen=True)
class ScorerShape:
    """Sizes of the two towers.

    Attributes:
        image_size: side in pixels of what the vision tower sees; images are resized to it.
        patch_size, vision_width, vision_layers: of the vision transformer; unused with others.
        architecture: ``vit``, or a network of timm.
        head: from the features of a timm network to ``embed_dim``: ``linear`` or ``mlp``.
    """

    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    embed_dim: int
    vocab_size: int
    architecture: str = VIT
    head: str = "linear"


def scorer_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that puts a start and an end token around every text."""
    backend = bpe(texts, vocab_size, [PAD, BOS, EOS])
    ids = {name: backend.token_to_id(name) for name in (BOS, EOS)}
    backend.post_processor = TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(name, ids[name]) for name in (BOS, EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD
    )


def model_config(shape: ScorerShape, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    """The ``model_cfg`` block of ``open_clip_config.json``."""
    return {
        "embed_dim": shape.embed_dim,
        "vision_cfg": _vision_config(shape),
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": len(tokenizer),
            "width": shape.text_width,
            "heads": shape.text_width // 32,
            "layers": shape.text_layers,
            "pool_type": "eos",
            "eos_id": tokenizer.eos_token_id,
            "pad_id": tokenizer.pad_token_id,
            # The name does not matter: with "local-dir:" open_clip loads the folder's tokenizer.
            "hf_tokenizer_name": "emoji-clip",
            "tokenizer_kwargs": {"clean": "whitespace"},
        },
    }


def _vision_config(shape: ScorerShape) -> dict[str, object]:
    if shape.architecture == VIT:
        return {
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
            "width": shape.vision_width,
            "layers": shape.vision_layers,
            "head_width": 32,
            "pool_type": "avg",
        }
    return {
        "image_size": shape.image_size,
        "timm_model_name": shape.architecture,
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": shape.head,
    }


def build(shape: ScorerShape, tokenizer: PreTrainedTokenizerFast, seed: int) -> open_clip.CLIP:
    """A scorer with random weights.

    Raises:
        UserError: timm has no such network.
    """
    if shape.architecture != VIT and not timm.is_model(shape.architecture):
        near = get_close_matches(shape.architecture, timm.list_models(), n=3)
        hint = f" Similar names: {', '.join(near)}." if near else ""
        raise UserError(
            f"scorer.architecture is {shape.architecture!r}; allowed: {VIT}, or the name of a "
            f"network of timm {timm.__version__}.{hint}"
        )
    torch.manual_seed(seed)
    return open_clip.CLIP(**model_config(shape, tokenizer))


def load_frozen(model: open_clip.CLIP, file: str, dtype: torch.dtype) -> None:
    """Give the timm network of ``model`` the weights of ``file`` and freeze it.

    Args:
        model: with a timm network.
        file: safetensors with timm's names; a classifier in it is left out.
        dtype: the weights are rounded to it, so that training sees what ``save`` will write.

    Raises:
        UserError: the file can't be read, or is of another network.
    """
    trunk = model.visual.trunk
    try:
        refuse_no_file(Path(file))
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"scorer.frozen {file!r} can't be read: {error}") from error
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier.")}
    rounded = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in kept.items()
    }
    try:
        trunk.load_state_dict(rounded)
    except RuntimeError as error:
        raise UserError(
            f"scorer.frozen {file!r} does not fit scorer.architecture: {error}"
        ) from error
    trunk.requires_grad_(requires_grad=False)


def save(
    model: open_clip.CLIP,
    tokenizer: PreTrainedTokenizerFast,
    shape: ScorerShape,
    folder: Path,
    dtype: torch.dtype,
) -> None:
    """Write the folder that ``open_clip.create_model("local-dir:FOLDER")`` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config = {
        "model_cfg": model_config(shape, tokenizer),
        "preprocess_cfg": {
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {
        # Batch normalisation counts its batches in int64.
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(weights, folder / "open_clip_model.safetensors")
