"""What ``tests/bench_training.py`` times: models with a batch, and steps of training on them."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mm_cca.adapters import load_adapter
from mm_cca.adapters.base import Grid, UnifiedModel
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import LossConfig
from mm_cca.modeling.cpu_attention import training_attention
from mm_cca.modeling.inputs import right_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.lora import attach_lora
from mm_cca.training.collate import MicroBatch
from mm_cca.training.losses import code_terms_of, loss_of
from mm_cca.training.reference import CopyReference, LoraReference
from tests.support import random_shapes as shapes
from tests.support.random_shapes import Prompts, random_codes
from tests.support.reference_training import ReferenceTraining

SCALE = 3.0
Kind = Literal["ours", "whole", "lora", "reference"]
"""Ours; ours over the whole vocabulary; ours as a LoRA without a copy; the reference pattern."""


@dataclass(frozen=True)
class Case:
    """A model and the batch that it trains on.

    Attributes:
        build: the model, on the default device in the default dtype.
        grid: of codes.
        batch: images.
        prompts: lengths of their prompts.
        bf16: train in autocast.
        checkpointing: recompute activations.
    """

    build: Callable[[], UnifiedModel]
    grid: Grid
    batch: int
    prompts: Prompts
    bf16: bool
    checkpointing: bool = False


CPU = {
    "emoji": Case(
        lambda: load_adapter("emu3", "emu3-emoji", dtype="float32"),
        (8, 8), 16, Prompts(10, 24), bf16=True,
    ),
    "emu3-vocabulary": Case(
        lambda: shapes.emu3(shapes.SMALL), (16, 16), 2, Prompts(12, 60), bf16=False
    ),
}  # fmt: skip
"""Small enough for a CPU: the demo's model, and a small decoder with Emu3's real vocabulary."""

GPU = {
    "emu3-8b-lora": (Case(
        lambda: shapes.emu3(shapes.EMU3_8B), (90, 90), 1, Prompts(12, 60), True, True), "lora"),
    "janus-pro-1b-full": (Case(
        lambda: shapes.janus(shapes.JANUS_1B), (24, 24), 8, Prompts(12, 60), True), "ours"),
    "janus-pro-7b-lora": (Case(
        lambda: shapes.janus(shapes.JANUS_7B), (24, 24), 8, Prompts(12, 60), True, True), "lora"),
    "chameleon-7b-lora": (Case(
        lambda: shapes.chameleon(shapes.CHAMELEON_7B), (32, 32), 8, Prompts(12, 60), True, True),
        "lora"),
}  # fmt: skip
"""Random weights at real shapes, and how each is tuned."""


class Training:
    """A model with its optimizer and one batch; ``step`` trains on it once."""

    def __init__(self, case: Case, kind: Kind, objective: str, device: torch.device) -> None:
        torch.manual_seed(0)
        half = torch.bfloat16 if kind == "lora" and device.type == "cuda" else torch.float32
        before = torch.get_default_dtype()
        torch.set_default_dtype(half)
        with torch.device(device):
            self.model = case.build()
        torch.set_default_dtype(before)
        self.model.module.to(device)
        generator = torch.Generator().manual_seed(0)
        self._codes = random_codes(self.model, case.grid, case.batch, generator).to(device)
        self._prompts = case.prompts.rows(case.batch, generator)
        if objective == "cca":
            self._prompts += case.prompts.rows(case.batch, generator)
        self._unconditional = [row[-6:] for row in self._prompts[: case.batch]]
        self._device, self._bf16, self._objective = device, case.bf16, objective
        self._is_lora = kind == "lora"
        loss = LossConfig(objective=objective, scale=SCALE, whole_vocabulary=kind == "whole")
        self._terms = LossTerms.of(loss)
        layout = self.model.layout(case.grid)
        if kind == "lora":
            attach_lora(self.model, rank=16, alpha=32)
        if case.checkpointing:
            self.model.enable_gradient_checkpointing()
        self._policy = CodeLogProbs(self.model, layout, whole_vocabulary=loss.whole_vocabulary)
        self._loss = self._ours
        if kind == "reference":
            beta = 0.02 * 576 / layout.num_codes
            naive = ReferenceTraining(self.model, layout, beta=beta, scale=SCALE)
            self._loss = lambda: naive.loss(
                objective, self._prompts, self._unconditional, self._codes
            )
        elif kind == "lora":
            self._reference = LoraReference(self._policy)
        elif objective != "nll":
            half = torch.bfloat16 if case.bf16 else None
            self._reference = CopyReference(self._policy, half=half)
        self._trained = [p for p in self._policy.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=1e-4)

    def flops(self) -> float:
        """What a step must compute: no padding, no recomputation, image rows of the head only.

        Forward passes of the model and the frozen one; backward twice as much, or as much for a
        LoRA, whose base gets no gradient.
        """
        decoder: Any = self.model._decoder  # type: ignore[attr-defined]
        inside = sum(p.numel() for p in decoder.layers.parameters() if p.ndim == 2)
        inside -= sum(p.numel() for n, p in decoder.named_parameters() if "lora_" in n)
        codes, width = self._codes.shape[1], decoder.config.hidden_size
        rows = len(self.model.image_head().weight)

        def forward(prompts: list[list[int]]) -> float:
            lengths = [len(prompt) + codes for prompt in prompts]
            # Scores and values, each twice the causal half.
            attention = sum(2 * length**2 * width for length in lengths) * len(decoder.layers)
            return 2 * inside * sum(lengths) + attention + 2 * rows * width * codes * len(prompts)

        passes = {"nll": 0, "cca": 1, "cca_code": 1, "gft": 0}[self._objective]
        frozen = passes * forward(self._prompts)
        if self._objective in ("cca_code", "gft"):
            frozen += forward(self._unconditional)
        return frozen + (2 if self._is_lora else 3) * forward(self._prompts)

    def step(self) -> float:
        """Train once; the loss."""
        self._policy.train()
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)
        # The reference pattern takes the attention that PyTorch chooses by itself.
        ours = self._loss == self._ours
        attention = training_attention(self._device, self._codes.shape[1], half=self._bf16)
        with attention if ours else nullcontext():
            with autocast:
                loss = self._loss()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())

    def _ours(self) -> torch.Tensor:
        batch, terms = self._batch(), self._terms
        ref = self._reference.scores(batch) if terms.needs_reference else None
        base = None
        if terms.needs_base:
            conditional = terms.needs_conditional_base
            base = self._reference.base_states(batch, conditional=conditional)
        scored = self._policy(
            batch.prompts.ids,
            batch.prompts.mask,
            batch.codes,
            base=base,
            code_terms=code_terms_of(terms, SCALE),
        )
        return loss_of(terms, batch, scored, ref)[0]

    def _batch(self) -> MicroBatch:
        count, pad = len(self._codes), self.model.pad_id
        negatives = len(self._prompts) - count
        none = torch.zeros(count, dtype=torch.bool, device=self._device)
        return MicroBatch(
            start=0,
            num_pairs=count,
            prompts=right_pad(self._prompts, pad).to(self._device),
            codes=self._codes.repeat(len(self._prompts) // count, 1),
            dropped=none,
            counts_as_positive=none[:negatives],
            unconditional=right_pad(self._unconditional, pad).to(self._device),
        )
