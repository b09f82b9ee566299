"""Train a small CLIP-like scorer of the emoji demo with open_clip's ``ClipLoss``.

``emoji-clip`` and the judges are trained by this; ``scorer_towers.py`` builds and saves them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import open_clip
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import nn

from mm_cca.demo.scorer_images import TrainingImages
from mm_cca.modeling.cpu_attention import matrix_products


@dataclass(frozen=True)
class ScorerSettings:
    """How the scorer is trained; the values are in the recipes."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    seed: int


@dataclass(frozen=True)
class ScorerStep:
    """What one training step reports."""

    step: int
    loss: float


def train_scorer(
    model: open_clip.CLIP,
    images: TrainingImages,
    tokens: torch.Tensor,
    settings: ScorerSettings,
    autocast: Callable[[], torch.autocast],
) -> Iterator[ScorerStep]:
    """Train in place on n images and their text ids [n, L], yielding after every step.

    If ``images`` gives features of the frozen network, only what follows it is trained.
    """
    model.train()
    tower: nn.Module = model.visual.head if images.are_features else model.visual
    generator = torch.Generator().manual_seed(settings.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    gains_and_biases = [p for p in trained if p.ndim < 2]
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
            order = torch.randperm(len(tokens), generator=generator)
        indices, order = order[: settings.batch_size], order[settings.batch_size :]
        batch = images.batch(indices, step)
        with autocast(), matrix_products(batch.device):
            features = F.normalize(tower(batch), dim=-1)
            text_features = model.encode_text(tokens[indices], normalize=True)
            scale = model.logit_scale.exp()
            loss = loss_of(features.float(), text_features.float(), scale.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        yield ScorerStep(step, loss.item())
    model.eval()


def _schedule(step: int, settings: ScorerSettings) -> float:
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))
