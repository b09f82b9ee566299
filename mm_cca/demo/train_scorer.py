"""Train ``emoji-clip``, the small CLIP-like scorer of the emoji demo, with open_clip.

A custom ``open_clip.CLIP`` (vision transformer, text transformer, BPE of the captions) is trained
with open_clip's ``ClipLoss`` and saved in open_clip's folder layout, to be loaded with the model
name ``local-dir:FOLDER``. Its scores can be compared with each other only, not with CLIP scores.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mm_cca.data.augment import variant_parameters, zoom_and_shift
from mm_cca.demo.small_emu3 import bpe
from mm_cca.modeling.logprobs import training_attention

BOS, EOS, PAD = "<start>", "<end>", "<pad>"
CONTEXT_LENGTH = 24


@dataclass(frozen=True)
class ScorerShape:
    """Sizes of the two towers."""

    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    embed_dim: int
    vocab_size: int


@dataclass(frozen=True)
class ScorerSettings:
    """How the scorer is trained; the values are in ``recipes/emoji-scorer.yaml``."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    max_zoom: float
    max_shift: float
    seed: int


@dataclass(frozen=True)
class ScorerStep:
    """What one training step reports."""

    step: int
    loss: float


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
        "vision_cfg": {
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
            "width": shape.vision_width,
            "layers": shape.vision_layers,
            "head_width": 32,
            "pool_type": "avg",
        },
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


def build(shape: ScorerShape, tokenizer: PreTrainedTokenizerFast, seed: int) -> open_clip.CLIP:
    """A scorer with random weights."""
    torch.manual_seed(seed)
    return open_clip.CLIP(**model_config(shape, tokenizer))


def train_scorer(
    model: open_clip.CLIP,
    pixels: torch.Tensor,
    tokens: torch.Tensor,
    settings: ScorerSettings,
    autocast: Callable[[], torch.autocast],
) -> Iterator[ScorerStep]:
    """Train in place on uint8 [n, 3, H, W] and text ids [n, L], yielding after every step."""
    model.train()
    generator = torch.Generator().manual_seed(settings.seed)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    gains_and_biases = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": gains_and_biases, "weight_decay": 0.0},
        ],
        lr=0.0,
        betas=(0.9, 0.98),
    )
    loss_of = ClipLoss()
    order = torch.empty(0, dtype=torch.long)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        if len(order) < settings.batch_size:
            order = torch.randperm(len(pixels), generator=generator)
        indices, order = order[: settings.batch_size], order[settings.batch_size :]
        parameters = variant_parameters(
            indices,
            torch.full_like(indices, step + 1),
            seed=settings.seed,
            max_zoom=settings.max_zoom,
            max_shift=settings.max_shift,
        )
        images = normalise(zoom_and_shift(pixels[indices], parameters))
        with autocast(), training_attention(pixels.device):
            features, text_features, scale = model(images, tokens[indices])
            loss = loss_of(features.float(), text_features.float(), scale.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        yield ScorerStep(step, loss.item())
    model.eval()


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 -> -1..1: mean and std 0.5, the same as in ``preprocess_cfg``."""
    return pixels.float() / 127.5 - 1


def _schedule(step: int, settings: ScorerSettings) -> float:
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


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
    weights = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
