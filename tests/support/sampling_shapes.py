"""Sampling with random weights at real shapes: tokens per second against what memory allows.

Shapes: B images, M rows, C tokens that the cache has room for.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mm_cca.adapters.base import FREE, Grid, UnifiedModel
from mm_cca.modeling.draws import image_stream
from mm_cca.modeling.sampler import Sampler, SamplingSettings
from tests.support import random_shapes as shapes

SCALE = 3.0
PROMPT_TOKENS = 32
STOCK_TOKENS = 48
"""Stock ``generate`` is timed over so many tokens, as its allowed ids are lists in Python."""
BANDWIDTH = {
    "B200": 8.0e12,
    "H200": 4.8e12,
    "H100 PCIe": 2.0e12,
    "H100 NVL": 3.9e12,
    "H100": 3.35e12,
    "A100": 2.04e12,
    "L40S": 0.864e12,
    "RTX 4090": 1.008e12,
}
"""Bytes per second by a part of the device's name, the first that fits; from data sheets."""


@dataclass(frozen=True)
class Shape:
    """A model to build and the grid of its images; ``stock``: whether plain generate guides it."""

    build: Callable[[], UnifiedModel]
    grid: Grid
    stock: bool = True


SHAPES = {
    "emu3-8b": Shape(lambda: shapes.emu3(shapes.EMU3_8B), (8, 64)),
    "chameleon-7b": Shape(lambda: shapes.chameleon(shapes.CHAMELEON_7B), (32, 32)),
    "janus-1b": Shape(lambda: shapes.janus(shapes.JANUS_1B), (24, 24), stock=False),
    "janus-7b": Shape(lambda: shapes.janus(shapes.JANUS_7B), (24, 24), stock=False),
    "small": Shape(lambda: shapes.emu3(shapes.SMALL), (2, 32)),
}


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> UnifiedModel:
    """Made on the device, in its dtype, with prompts of random ids in place of a tokenizer."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = shape.build()
    finally:
        torch.set_default_dtype(before)
    model.module.eval().requires_grad_(False)
    rows = np.random.default_rng(0).integers(4, 200, (4096, PROMPT_TOKENS)).tolist()

    def prompt_ids(prompts: Sequence[str], grid: Grid) -> list[list[int]]:
        return [list(rows[int(prompt)]) for prompt in prompts]

    def unconditional_ids(conditional: list[int], grid: Grid, negative: str = "") -> list[int]:
        return list(rows[-1])

    model.prompt_ids = prompt_ids  # type: ignore[method-assign]
    model.unconditional_ids = unconditional_ids  # type: ignore[method-assign]
    return model


def bytes_per_step(model: UnifiedModel, rows: int, tokens: int) -> int:
    """Weights that a step reads, and the keys and values of ``tokens`` tokens in M rows."""
    aside = {id(p) for part in model.frozen() for p in part.parameters()}
    head = model.image_head().weight
    text = model.text_head().weight
    embeddings = {id(text), id(model.module.get_input_embeddings().weight)}
    weights = [p for p in model.module.parameters() if id(p) not in aside | embeddings]
    size = sum(p.nbytes for p in weights)
    if head.untyped_storage().data_ptr() == text.untyped_storage().data_ptr():
        size += head.nbytes  # else a layer of its own, counted above
    config = model.module.config.get_text_config()
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * width * head.element_size()
    return size + rows * tokens * per_token


def bench_shape(
    name: str, batches: Sequence[int], rounds: int, bandwidth: float | None, device: torch.device
) -> list[dict[str, Any]]:
    """Time one model at each batch size, print a line for each way, and return the figures."""
    shape = SHAPES[name]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = random_model(shape, device, dtype)
    num_codes = model.layout(shape.grid).num_codes
    print(f"\n{name}, {num_codes} codes, {dtype}: codes/s, of the memory roofline, peak GiB")
    ways = {
        "own, guidance-free": (1.0, False),
        "own, guided": (SCALE, False),
        "own, compiled, guidance-free": (1.0, True),
        "own, compiled, guided": (SCALE, True),
    }
    table = []
    for batch in batches:
        samplers = {
            way: (Sampler(model, shape.grid, compiled=compiled), SamplingSettings(scale))
            for way, (scale, compiled) in ways.items()
        }
        for way, (sampler, settings) in samplers.items():
            rows = batch * (2 if settings.is_guided else 1)
            row = _timed(_own(sampler, settings, batch, num_codes), batch * num_codes, rounds)
            filled = PROMPT_TOKENS + len(model.layout(shape.grid).tokens)
            size = bytes_per_step(model, rows, filled // 2)
            share = None
            if bandwidth is not None:
                share = row["codes_per_second"] / batch * size / bandwidth
            table.append({"model": name, "batch": batch, "way": way, "roofline": share, **row})
            _show(table[-1])
        if shape.stock:
            row = _timed(_stock(model, shape.grid, batch), batch * STOCK_TOKENS, 1)
            table.append({"model": name, "batch": batch, "way": "stock generate, guided", **row})
            _show(table[-1])
    return table


def known_bandwidth(device: torch.device) -> float | None:
    """Of the GPU by its name; None if the table does not have it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for part, value in BANDWIDTH.items() if part in name), None)


def _own(
    sampler: Sampler, settings: SamplingSettings, batch: int, num_codes: int
) -> Callable[[], None]:
    uniforms = np.stack([image_stream(0, index, num_codes) for index in range(batch)])
    prompts = [str(index) for index in range(batch)]

    def run() -> None:
        sampler.sample(prompts, uniforms, settings)[0].cpu()

    return run


def _stock(model: UnifiedModel, grid: Grid, batch: int) -> Callable[[], None]:
    """transformers' guidance processor and allowed ids, over the first tokens of an image."""
    device = next(model.module.parameters()).device
    ids = torch.tensor(model.prompt_ids([str(i) for i in range(batch)], grid), device=device)
    blank = torch.tensor([model.unconditional_ids([], grid)] * batch, device=device)
    tokens = model.layout(grid).tokens.tolist()
    codes = model._codes.ids.tolist()  # type: ignore[attr-defined]

    def allowed(row: int, so_far: torch.Tensor) -> list[int]:
        token = tokens[len(so_far) - PROMPT_TOKENS]
        return codes if token == FREE else [token]

    def run() -> None:
        model.module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            negative_prompt_ids=blank,
            negative_prompt_attention_mask=torch.ones_like(blank),
            guidance_scale=SCALE,
            max_new_tokens=STOCK_TOKENS,
            min_new_tokens=STOCK_TOKENS,
            do_sample=True,
            top_k=0,
            prefix_allowed_tokens_fn=allowed,
        )

    return run


def _timed(run: Callable[[], None], codes: int, rounds: int) -> dict[str, Any]:
    """Median over rounds, after one to warm up; ends on the host, so the device is done."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    return {"codes_per_second": codes / statistics.median(seconds), "peak_gib": peak}


def _show(row: dict[str, Any]) -> None:
    share = "" if row.get("roofline") is None else f"{row['roofline']:.0%}"
    peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
    speed = row["codes_per_second"]
    print(f"batch {row['batch']:3} {row['way']:30} {speed:10.0f} {share:>6} {peak:>7}", flush=True)
