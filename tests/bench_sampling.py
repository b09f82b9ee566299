"""Our sampler against stock ``generate``, run in turn in one process. Run it by hand.

    python -m tests.bench_sampling [--model emu3-emoji] [--batch 1 8 64] [--json FILE]
    python -m tests.bench_sampling --shape emu3-8b janus-1b [--bandwidth 3.35e12]

With --shape, random weights at real shapes on a GPU: codes per second, the fraction of what the
GPU's memory bandwidth allows (weights and half-filled cache, read once per step), peak memory.

Every round draws the same prompts with each contestant, one after the other; only the ratios of one
round mean anything, as other programs slow all of them down alike. Shown are medians over the
rounds and, in brackets, the smallest and largest round. Processor time counts all threads.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Emu3ForConditionalGeneration, Emu3Processor
from transformers.utils import logging as transformers_logging

from mm_cca.adapters import load_adapter
from mm_cca.adapters.base import Grid, UnifiedModel
from mm_cca.config.shipped import shipped
from mm_cca.modeling.draws import image_stream
from mm_cca.modeling.sampler import Sampler, SamplingSettings
from tests.support.sampling_shapes import SHAPES, bench_shape, known_bandwidth

SCALE = 2.5
BASELINE = "stock generate, guided"
WORDS = ("red owl, noto style", "grinning face with big eyes, twemoji style", "small waving hand")

Contestant = Callable[[Sequence[str]], None]
Times = dict[str, list[tuple[float, float]]]


def own(model: UnifiedModel, grid: Grid, scale: float, *, compiled: bool = False) -> Contestant:
    """Our sampler."""
    num_codes = model.layout(grid).num_codes
    settings = SamplingSettings(guidance_scale=scale)
    sampler = Sampler(model, grid, compiled=compiled)

    def run(prompts: Sequence[str]) -> None:
        uniforms = np.stack([image_stream(0, index, num_codes) for index in range(len(prompts))])
        sampler.sample(prompts, uniforms, settings)

    return run


def stock(folder: str, grid: Grid, scale: float) -> Contestant:
    """Emu3's stock ``generate`` as its documentation calls it: guidance processor, allowed ids."""
    model = Emu3ForConditionalGeneration.from_pretrained(folder).float().eval()
    processor = Emu3Processor.from_pretrained(folder)
    mapping = model.vocabulary_mapping
    height, width = grid
    length = height * (width + 1)
    options = {"return_for_image_generation": True, "ratio": "1:1"}
    options["image_area"] = height * width * int(model.model.vqmodel.spatial_scale_factor) ** 2

    def inputs_of(texts: list[str]) -> Any:
        return processor(
            text=texts, return_tensors="pt", padding=True, padding_side="left", **options
        )

    def run(prompts: Sequence[str]) -> None:
        inputs, blank = inputs_of(list(prompts)), inputs_of([""] * len(prompts))
        start = inputs["input_ids"].shape[1]

        def allowed(row: int, ids: torch.Tensor) -> list[int]:
            slot = len(ids) - start
            return [mapping.eol_token_id] if (slot + 1) % (width + 1) == 0 else mapping.image_tokens

        guided: dict[str, Any] = {}
        if scale != 1.0:
            guided = {
                "guidance_scale": scale,
                "negative_prompt_ids": blank["input_ids"],
                "negative_prompt_attention_mask": blank["attention_mask"],
            }
        model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=True,
            top_k=0,
            prefix_allowed_tokens_fn=allowed,
            **guided,
        )

    return run


def in_turn(contestants: dict[str, Contestant], batch: int, rounds: int) -> Times:
    """Seconds of wall and processor time of each contestant in each round, after one to warm up."""
    times: Times = {name: [] for name in contestants}
    # All different, as prompts that occur twice are read once.
    prompts = [f"{index} {WORDS[index % len(WORDS)]}" for index in range(batch)]
    for number in range(rounds + 1):
        for name, run in contestants.items():
            wall, processor = time.perf_counter(), time.process_time()
            run(prompts)
            seconds = (time.perf_counter() - wall, time.process_time() - processor)
            if number:
                times[name].append(seconds)
    return times


def ratios(times: Times, which: int) -> dict[str, tuple[float, float, float]]:
    """Median, smallest and largest of baseline / contestant over the rounds."""
    table = {}
    for name, seconds in times.items():
        rows = [a[which] / b[which] for a, b in zip(times[BASELINE], seconds, strict=True)]
        table[name] = (statistics.median(rows), min(rows), max(rows))
    return table


def show(batch: int, times: Times) -> dict[str, Any]:
    """Print the table of one batch size and return it for the JSON file."""
    wall, processor = ratios(times, 0), ratios(times, 1)
    print(f"\nbatch {batch}: times as fast as {BASELINE!r}")
    print(f"{'':28} {'processor time':>22} {'wall time':>22} {'ms of processor/image':>22}")
    rows: dict[str, Any] = {}
    for name, seconds in times.items():
        milliseconds = statistics.median(s[1] for s in seconds) / batch * 1e3
        rows[name] = {"processor": processor[name], "wall": wall[name], "ms": milliseconds}
        print(f"{name:28} {_text(processor[name])} {_text(wall[name])} {milliseconds:22.1f}")
    return {"batch": batch, "rows": rows}


def _text(ratio: tuple[float, float, float]) -> str:
    spread = f"[{ratio[1]:.2f}..{ratio[2]:.2f}]"
    return f"{ratio[0]:7.2f} {spread:>14}"


def of_shapes(words: argparse.Namespace) -> list[dict[str, Any]]:
    """Each shape on the GPU; "small" on a CPU too."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bandwidth = words.bandwidth or known_bandwidth(device)
    tables = []
    for name in words.shape:
        if device.type == "cpu" and name != "small":
            print(f"{name}: not run, there is no GPU")
            continue
        tables += bench_shape(name, words.batch, words.rounds, bandwidth, device)
    return tables


def of_model(words: argparse.Namespace) -> list[dict[str, Any]]:
    """Ratios of a checkpoint that can be read."""
    grid = (words.grid[0], words.grid[1])
    folder = str(shipped(words.model))
    model = load_adapter("emu3", words.model, dtype="float32")
    model.module.eval()
    contestants = {
        BASELINE: stock(folder, grid, SCALE),
        "stock generate": stock(folder, grid, 1.0),
        "own, guidance-free": own(model, grid, 1.0),
        "own, guided": own(model, grid, SCALE),
    }
    if not words.no_compiled:
        contestants["own, compiled, guidance-free"] = own(model, grid, 1.0, compiled=True)
        contestants["own, compiled, guided"] = own(model, grid, SCALE, compiled=True)
    return [show(b, in_turn(contestants, b, words.rounds)) for b in words.batch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="emu3-emoji", help="an Emu3 folder, or emu3-emoji")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--grid", type=int, nargs=2, default=[8, 8])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-compiled", action="store_true", help="skip the compiled steps")
    parser.add_argument("--shape", nargs="+", choices=[*SHAPES], help="random weights, on a GPU")
    parser.add_argument("--bandwidth", type=float, help="bytes/s, for GPUs that aren't known")
    words = parser.parse_args()
    transformers_logging.set_verbosity_error()
    tables = of_shapes(words) if words.shape else of_model(words)
    if words.json is not None:
        words.json.write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
