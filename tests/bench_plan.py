"""What a plan says against what is measured, and what the switches of memory cost. Run it by hand.

    python -m tests.bench_plan --measured          peak of a real step on a CPU against its plan
    python -m tests.bench_plan --ratios STEPS      LoRA and QLoRA, Adam and its 8 bits, in turns
    python -m tests.bench_plan --shape RECIPE...   the plan of a recipe at its model's real shape

The first counts all live tensors of a real step: every allocation is seen. The third needs no
weights: they are on the meta device.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from mm_cca.adapters.base import UnifiedModel
from mm_cca.config.load import load_config
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import Recipe
from mm_cca.training.optimizer import new_optimizer
from mm_cca.training.plan import (
    HALF,
    Plan,
    loss_of_codes,
    micro_batch_of,
    plan_of,
    reference_of,
    training_attention,
)
from mm_cca.training.plan_text import Gpu, plan_text
from mm_cca.training.setup import new_policy
from mm_cca.training.simulated_step import LiveBytes
from tests.support import random_shapes as shapes

CPU = torch.device("cpu")
MIDDLE = shapes.Decoder(256, 704, 6, 8, 8)
VOCABULARY, CODES = 6144, 4096
"""With them the middle model has 8 million parameters, and a step takes some hundred megabytes."""
COMMON = [
    "data.path=none", "train.batch_size=2", "train.micro_batch_size=2", "model.dtype=float32",
    "data.image_size=[128, 128]", "data.caption_template=null", "train.mixed_precision=no",
]  # fmt: skip
LORA = ["train.tuning=lora", "train.reference=lora", "train.lora_rank=32"]
FULL = ["train.tuning=full", "train.reference=copy"]
CASES = {
    "full": FULL,
    "full, 8-bit Adam": [*FULL, "train.optimizer=adamw_8bit"],
    "full, Adafactor": [*FULL, "train.optimizer=adafactor"],
    "LoRA": LORA,
    "LoRA, DoRA": [*LORA, "train.lora_dora=true"],
    "QLoRA nf4": [*LORA, "model.quantization=nf4"],
}
"""Of the middle model, each with and without gradient checkpointing."""
SHAPES: dict[str, Callable[[], UnifiedModel]] = {
    "emu3": lambda: shapes.emu3(shapes.EMU3_8B),
    "janus-pro-1b": lambda: shapes.janus(shapes.JANUS_1B),
    "janus-pro-7b": lambda: shapes.janus(shapes.JANUS_7B),
    "chameleon": lambda: shapes.chameleon(shapes.CHAMELEON_7B),
    "anole": lambda: shapes.chameleon(shapes.CHAMELEON_7B),
    "lumina": lambda: shapes.chameleon(shapes.CHAMELEON_7B),
}
"""Start of a recipe's name -> the model at its real shape."""
PROMPT = 48
"""Tokens of a prompt of models that have no tokenizer here."""


def recipe_of(name: str, keys: list[str]) -> Recipe:
    recipe = load_config(name, keys)
    assert isinstance(recipe, Recipe)
    return recipe


def without_words(model: UnifiedModel) -> UnifiedModel:
    """The models of ``random_shapes`` have no tokenizer: prompts of ``PROMPT`` tokens."""
    any_model: Any = model
    any_model.prompt_ids = lambda prompts, grid: [[1] * PROMPT for _ in prompts]
    any_model.unconditional_ids = lambda ids, grid, negative="": [1] * PROMPT
    any_model.text_ids = lambda texts: [[1] * PROMPT for _ in texts]
    return model


def middle(recipe: Recipe) -> UnifiedModel:
    """The middle model with random weights; quantised by way of a folder."""
    torch.manual_seed(0)
    with patch.multiple(shapes, EMU3_VOCABULARY=VOCABULARY, EMU3_CODES=CODES):
        model = without_words(shapes.emu3(MIDDLE))
    if recipe.model.quantization is not None:
        _quantize(model, recipe.model.quantization)
    return model


def _quantize(model: UnifiedModel, kind: str) -> None:
    """As transformers replaces the layers while it loads; the heads stay."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    blocks = model.module.get_decoder().layers  # type: ignore[operator, union-attr]
    for name, layer in list(blocks.named_modules()):
        if type(layer) is torch.nn.Linear:
            sizes = layer.in_features, layer.out_features
            new: Any
            if kind == "nf4":
                new = Linear4bit(*sizes, bias=False, quant_type="nf4", compute_dtype=torch.float32)
                new.support_avx512bf16_for_cpu = False
            else:
                new = Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
            new.load_state_dict(layer.state_dict())
            blocks.set_submodule(name, new.to("cpu").requires_grad_(False))
    model.module.is_loaded_in_4bit = kind == "nf4"  # type: ignore[assignment]
    model.module.is_loaded_in_8bit = kind == "int8"  # type: ignore[assignment]


class RealTraining:
    """Steps of a recipe's training on the middle model with one batch."""

    def __init__(self, keys: list[str]) -> None:
        self.recipe = recipe_of("emu3-gen-lora", [*COMMON, *keys])
        self.terms = LossTerms.of(self.recipe.loss)
        self.policy = new_policy(self.recipe, middle(self.recipe), whole_vocabulary=False)
        self.reference = reference_of(self.recipe.train, self.terms, self.policy)
        self.optimizer = new_optimizer(self.policy, self.recipe.train)
        self.batch, _ = micro_batch_of(self.recipe, self.terms, self.policy.model, None)

    def step(self) -> float:
        """Seconds of a step."""
        started = time.perf_counter()
        self.policy.train()
        half = HALF[self.recipe.train.mixed_precision]
        with training_attention(CPU, self.batch.codes.shape[1], half=half is not None):
            loss = loss_of_codes(self.policy, self.reference, self.batch, self.terms, half)
            (loss / self.batch.codes.numel()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - started

    def plan(self) -> Plan:
        return plan_of(self.recipe, self.recipe.loss, self.policy, CPU, None)


def storages(tensors: Iterator[torch.Tensor]) -> int:
    """Bytes of all different storages."""
    found = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}
    return sum(found.values())


def all_tensors() -> Iterator[torch.Tensor]:
    """Every tensor of this process that the garbage collector knows, with its storage."""
    gc.collect()
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and type(thing).__name__ != "FakeTensor":
            yield thing


def live_peak(keys: list[str]) -> int:
    """Bytes at the fullest moment of the second step of a real training."""
    training = RealTraining(keys)
    training.step()
    before = storages(all_tensors())
    counted = LiveBytes(set())
    counted.ignore(all_tensors())
    with counted:
        training.step()
    return before + counted.cost.peak.total()


def measured() -> None:
    """Print a row for each case: planned, counted live bytes, and their ratio."""
    print(f"{'':34}{'planned':>9}{'measured':>10}{'ratio':>7}")
    for name, keys in CASES.items():
        for checkpointing in ("false", "true"):
            more = [*keys, f"train.gradient_checkpointing={checkpointing}"]
            planned = RealTraining(more).plan().total
            before = storages(all_tensors())
            peak = live_peak(more) - before
            title = name + (", checkpointing" if checkpointing == "true" else "")
            print(f"{title:34}{planned / 1e6:6.0f} MB{peak / 1e6:7.0f} MB{planned / peak:7.3f}",
                  flush=True)  # fmt: skip


def ratios(steps: int) -> None:
    """Seconds of a step in turns, and the plan's memory, relative to the first of each pair."""
    pairs = {
        "LoRA": {"LoRA": LORA, "QLoRA nf4": [*LORA, "model.quantization=nf4"],
                 "QLoRA int8": [*LORA, "model.quantization=int8"]},
        "Adam": {"AdamW": FULL, "8-bit AdamW": [*FULL, "train.optimizer=adamw_8bit"],
                 "Adafactor": [*FULL, "train.optimizer=adafactor"]},
    }  # fmt: skip
    for kinds in pairs.values():
        trainings = {name: RealTraining(keys) for name, keys in kinds.items()}
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(steps + 1):
            for name, training in trainings.items():
                took = training.step()
                if number:
                    seconds[name].append(took)
        first = next(iter(kinds))
        base = trainings[first].plan()
        for name, training in trainings.items():
            plan = training.plan()
            speed = median(a / b for a, b in zip(seconds[name], seconds[first], strict=True))
            print(
                f"{name:14}{median(seconds[name]):7.2f} s a step (x{speed:.2f})  memory "
                f"{plan.total / 1e6:6.0f} MB (x{plan.total / base.total:.2f}): "
                + ", ".join(f"{part} {size / 1e6:.0f}" for part, size in plan.memory.items())
            )


def at_real_shape(name: str, keys: list[str]) -> None:
    """Print the plan of a built-in recipe for a 24 GB GPU."""
    recipe = recipe_of(name, keys)
    build = next(make for start, make in SHAPES.items() if name.startswith(start))
    torch.set_default_dtype(getattr(torch, recipe.model.dtype))
    with OnMeta():
        model = without_words(build())
    torch.set_default_dtype(torch.float32)
    for part in model.frozen():
        part.to(torch.float32)
    policy = new_policy(recipe, model, whole_vocabulary=recipe.loss.whole_vocabulary)
    plan = plan_of(recipe, recipe.loss, policy, torch.device("cuda"), None)
    print(name, " ".join(keys))
    print(plan_text(plan, Gpu.of("4090")))


class OnMeta:
    """Inside, the classes of ``random_shapes`` make their weights on the meta device."""

    NAMES = tuple(n for n in vars(shapes) if n.endswith("ForConditionalGeneration"))

    def __enter__(self) -> None:
        self._real = {name: getattr(shapes, name) for name in self.NAMES}
        for name, cls in self._real.items():
            setattr(shapes, name, _made_on_meta(cls))

    def __exit__(self, *error: object) -> None:
        for name, cls in self._real.items():
            setattr(shapes, name, cls)


def _made_on_meta(cls: Any) -> Callable[[Any], Any]:
    def make(config: Any) -> Any:
        with torch.device("meta"):
            return cls(config)

    return make


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_plan")
    parser.add_argument("--measured", action="store_true")
    parser.add_argument("--ratios", type=int, metavar="STEPS")
    parser.add_argument("--shape", nargs="+", metavar="RECIPE_OR_KEY=VALUE")
    args = parser.parse_args()
    if args.measured:
        measured()
    if args.ratios:
        ratios(args.ratios)
    if args.shape:
        keys = [word for word in args.shape if "=" in word]
        for name in args.shape:
            if "=" not in name:
                at_real_shape(name, keys)


if __name__ == "__main__":
    main()
