"""What a training will take, before its first step: memory by part, operations, disk, tokens.

The memory of a step is that of a simulated one (``simulated_step.py``); weights, LoRA and gradients
are counted, and the optimizer's state follows from the shapes (``optimizer.state_bytes``).
"""

import heapq
import warnings
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.adapters.quantization import blocks_of
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.prompt_templates import filled
from mm_cca.config.schema import LossConfig, Recipe, TrainConfig
from mm_cca.config.stage_keys import num_steps
from mm_cca.data.buckets import sizes_of
from mm_cca.data.token_cache import TokenCache
from mm_cca.modeling.cpu_attention import training_attention
from mm_cca.modeling.inputs import PaddedTokens, right_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.text_nll import text_batch
from mm_cca.training.collate import MicroBatch
from mm_cca.training.losses import code_terms_of
from mm_cca.training.optimizer import state_bytes
from mm_cca.training.reference import CopyReference, LoraReference, Reference
from mm_cca.training.simulated_step import (
    ACTIVATIONS,
    GRADIENTS,
    LOGITS,
    QuantizedStandIn,
    fake_copy,
    step_cost,
)

HALF = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
ASSUMED_TOKENS = 77
"""Of a caption, where none are known: the most that CLIP reads, for which captions are written."""


@dataclass(frozen=True)
class Plan:
    """What a training takes.

    Attributes:
        memory: bytes on the device by part, at the fullest moment of a step.
        disk: bytes by what is written.
        trained: trained weights.
        pairs: of image and caption that are trained on.
        tokens: that the model is trained on, prompts and codes, over all pairs and prompts.
        tokens_per_row: of a row with the longest caption.
        flops: floating-point operations, over all steps.
        captions_known: whether the longest captions are those of the data.
    """

    memory: dict[str, int]
    disk: dict[str, int]
    trained: int
    pairs: int
    tokens: int
    tokens_per_row: int
    flops: int
    captions_known: bool

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return sum(self.memory.values())


def plan_of(
    recipe: Recipe,
    loss: LossConfig,
    policy: CodeLogProbs,
    device: torch.device,
    cache: TokenCache | None,
) -> Plan:
    """Plan the training of a policy, which is left as it is.

    Args:
        recipe: a validated recipe.
        loss: the recipe's, or the control's.
        policy: with its LoRA; its weights may be on the meta device, and are not yet wrapped.
        device: that it will be trained on; nothing is put there.
        cache: the token cache, whose longest captions decide; None: captions are assumed.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    quantized = _stand_ins(recipe, policy, mode)
    copied = fake_copy(policy, quantized, mode)
    terms, train = LossTerms.of(loss), recipe.train
    batch, per_pair = micro_batch_of(recipe, terms, copied.model, cache)
    half = HALF[train.mixed_precision]
    reference = reference_of(train, terms, copied)
    with mode, training_attention(device, batch.codes.shape[1], half=half is not None):
        micro_batches = train.batch_size // train.micro_batch_size
        cost = step_cost(
            copied,
            lambda policy: loss_of_codes(policy, reference, batch, terms, half),
            with_gradients=micro_batches > 1,
        )
    assert batch.grid is not None
    num_slots = len(copied.model.layout(batch.grid).tokens)
    trained = {n: p for n, p in copied.named_parameters() if p.requires_grad}
    memory = _memory(train, copied, trained, reference, cost.peak, device)
    pairs = num_steps(train) * train.batch_size
    return Plan(
        memory=memory,
        disk=_disk(train, memory, trained),
        trained=sum(p.numel() for p in trained.values()),
        pairs=pairs,
        tokens=pairs * per_pair,
        tokens_per_row=batch.prompts.ids.shape[1] + num_slots,
        flops=cost.flops * micro_batches * num_steps(train),
        captions_known=cache is not None,
    )


def _stand_ins(recipe: Recipe, policy: CodeLogProbs, mode: FakeTensorMode) -> dict[int, nn.Module]:
    kind = recipe.model.quantization
    if kind is None:
        return {}
    dtype = getattr(torch, recipe.model.dtype)
    part = next(x for x in policy.module.modules() if isinstance(x, PreTrainedModel))
    return {
        id(layer): QuantizedStandIn(layer, kind, dtype, mode)
        for name, layer in blocks_of(part).named_modules()
        if isinstance(layer, nn.Linear) and "lora_" not in name
    }


def _longest(cache: TokenCache | None, count: int) -> list[str]:
    """The longest captions, with which a step needs most; of a word if none are known."""
    if cache is None:
        return ["owl"] * count
    captions = heapq.nlargest(count, cache.every_caption()[0], key=len)
    return (captions * count)[:count]


def micro_batch_of(
    recipe: Recipe, terms: LossTerms, model: UnifiedModel, cache: TokenCache | None
) -> tuple[MicroBatch, int]:
    """A micro-batch of the longest captions and images, with codes 0, and the tokens of a pair."""
    captions = _longest(cache, recipe.train.micro_batch_size)
    grids = [grid_of(model, size) for size in sizes_of(model, recipe.data)]
    grid = max(grids, key=lambda grid: len(model.layout(grid).tokens))
    codes = model.layout(grid).num_codes
    own = model.prompt_ids(filled(recipe.data.caption_template, captions), grid)
    if cache is None:
        own = [row[:1] * (len(row) - 1 + ASSUMED_TOKENS) for row in own]
    count, negatives = len(own), recipe.loss.num_negatives if terms.needs_negatives else 0
    drawn = count if terms.needs_drawn else 0
    rows = own * (1 + negatives) + own[:drawn]
    none = torch.zeros(count, dtype=torch.bool)
    unconditional: PaddedTokens | None = None
    if terms.needs_base:
        unconditional = right_pad([model.unconditional_ids(row, grid) for row in own], model.pad_id)
    texts = captions if cache is not None else [" ".join(captions[:1] * ASSUMED_TOKENS)] * count
    batch = MicroBatch(
        start=0,
        num_pairs=count,
        prompts=right_pad(rows, model.pad_id),
        codes=torch.zeros(len(rows), codes, dtype=torch.long),
        dropped=none,
        counts_as_positive=none.repeat(negatives),
        unconditional=unconditional,
        texts=text_batch(model, texts) if terms.needs_text else None,
        num_drawn=drawn,
        grid=grid,
    )
    return batch, (len(own[0]) + codes) * len(rows) // count


def reference_of(train: TrainConfig, terms: LossTerms, policy: CodeLogProbs) -> Reference | None:
    if train.reference == "cached" or not (terms.needs_reference or terms.needs_base):
        return None
    if train.reference == "lora":
        return LoraReference(policy)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # in deepcopy
        return CopyReference(policy, half=HALF[train.mixed_precision])


def loss_of_codes(
    policy: CodeLogProbs,
    reference: Reference | None,
    batch: MicroBatch,
    terms: LossTerms,
    half: torch.dtype | None,
) -> torch.Tensor:
    """Everything that training computes on tensors of codes; what follows is a number a row."""
    base = None
    with torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
        if reference is not None and terms.needs_reference:
            reference.scores(batch)
        if reference is not None and terms.needs_base:
            base = reference.base_states(batch, conditional=terms.needs_conditional_base)
    with torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
        scored = policy(
            batch.prompts.ids,
            batch.prompts.mask,
            batch.codes,
            base=base,
            code_terms=code_terms_of(terms, policy.model.defaults.guidance_scale),
            text_ids=None if batch.texts is None else batch.texts.ids,
            text_mask=None if batch.texts is None else batch.texts.mask,
            grid=batch.grid,
        )
    parts = [scored.per_code, scored.guided_kl, scored.mixed_nll, scored.text_nll]
    if scored.contrast is not None:
        parts.append(scored.contrast.loss)
    return torch.stack([part.float().sum() for part in parts if part is not None]).sum()


def _memory(
    train: TrainConfig,
    policy: CodeLogProbs,
    trained: dict[str, nn.Parameter],
    reference: Reference | None,
    peak: Counter[str],
    device: torch.device,
) -> dict[str, int]:
    """Bytes by part when they are most: in the backward pass, or while the optimizer steps."""
    is_lora = train.tuning == "lora"
    weights = _bytes_of(policy, set())
    tuned = sum(p.numel() * p.element_size() for p in trained.values())
    parts = {"weights": weights - tuned if is_lora else weights}
    if is_lora:
        parts["LoRA"] = tuned
    if isinstance(reference, CopyReference):
        own = {x.untyped_storage()._cdata for x in [*policy.parameters(), *policy.buffers()]}
        parts["reference"] = _bytes_of(reference._frozen, own)
    parts["optimizer"] = sum(state_bytes(p.shape, train.optimizer) for p in trained.values())
    if train.ema is not None:
        parts["moving average"] = 4 * sum(p.numel() for p in trained.values())
    step = dict(peak)
    updating = {GRADIENTS: tuned, "update": _update_bytes(train.optimizer, trained, device)}
    step = step if sum(step.values()) >= sum(updating.values()) else updating
    parts |= {name: step.get(name, 0) for name in (GRADIENTS, ACTIVATIONS, LOGITS)}
    return parts | ({"update": step["update"]} if "update" in step else {})


def _update_bytes(optimizer: str, trained: dict[str, nn.Parameter], device: torch.device) -> int:
    """What an optimizer needs for a moment. AdamW on a GPU updates all weights at once."""
    largest = 4 * max((p.numel() for p in trained.values()), default=0)
    if optimizer == "adamw":
        return 2 * largest if device.type == "cpu" else 4 * sum(p.numel() for p in trained.values())
    return 3 * largest if optimizer == "adafactor" else 0


def _bytes_of(module: nn.Module, without: set[int]) -> int:
    """Bytes of all weights and buffers, tied ones once, but those whose storage is ``without``."""
    storages = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        storage = tensor.untyped_storage()
        if storage._cdata not in without:
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def _disk(
    train: TrainConfig, memory: dict[str, int], trained: dict[str, nn.Parameter]
) -> dict[str, int]:
    """Checkpoints, one more while it is written, and the model at the end."""
    tuned = sum(p.numel() * p.element_size() for p in trained.values())
    one = tuned + memory["optimizer"] + memory.get("moving average", 0)
    model = memory["LoRA"] if train.tuning == "lora" else memory["weights"]
    return {
        f"{train.keep_checkpoints + 1} checkpoints": (train.keep_checkpoints + 1) * one,
        "model": model * (2 if train.keep == "best" else 1),
    }
