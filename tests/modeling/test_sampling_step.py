"""A step of the sampler: no synchronisation with the host, no float64, one graph for any length."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.exc import InductorError
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from mm_cca.adapters.base import FREE, ImageLayout, UnifiedModel
from mm_cca.modeling import compiled_step
from mm_cca.modeling import sampler as sampler_module
from mm_cca.modeling.draws import image_stream
from mm_cca.modeling.sampler import Sampler, SamplingSettings, sample_codes
from mm_cca.modeling.sampling_step import widths
from mm_cca.testing.naive_sampler import sample_naively

PROMPTS = ["red owl", "grinning face with big eyes, twemoji style", "red owl", ""]
SYNCHRONISING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class OnDeviceOnly(TorchDispatchMode):
    """Refuses operations that wait for the device, and float64 tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in SYNCHRONISING, f"{func} waits for the device"
        result = func(*args, **(kwargs or {}))
        tensors = [result] if isinstance(result, torch.Tensor) else []
        assert all(tensor.dtype != torch.float64 for tensor in tensors), f"float64 from {func}"
        return result


def _streams(count: int, num_codes: int) -> np.ndarray:
    return np.stack([image_stream(0, index, num_codes) for index in range(count)])


def test_the_probe_refuses_what_it_should():
    with OnDeviceOnly(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(1).item()
    with OnDeviceOnly(), pytest.raises(AssertionError, match="float64"):
        torch.ones(1).double()


@pytest.mark.parametrize(
    "settings",
    [SamplingSettings(), SamplingSettings(guidance_scale=2.0, top_k=5, top_p=0.9)],
    ids=["plain", "guided"],
)
def test_steps_stay_on_the_device_and_in_float32(
    tiny_model: UnifiedModel, settings: SamplingSettings, monkeypatch: pytest.MonkeyPatch
):
    real, steps = compiled_step.step, []

    def watched(*arguments: Any) -> None:
        steps.append(arguments[4])
        with OnDeviceOnly():
            real(*arguments)

    monkeypatch.setattr(compiled_step, "step", watched)
    sample_codes(tiny_model, PROMPTS, (4, 4), _streams(4, 16), settings)
    assert steps == [1, 1, 1, 2] * 3 + [1, 1, 1]


def test_widths():
    layout = ImageLayout(np.array([7, FREE, FREE, 8, 9, FREE, FREE]))
    assert widths(layout, one_width=False) == [1, 3, 1]
    assert widths(layout, one_width=True) == [1] * 5


@pytest.fixture(scope="module")
def long_grid() -> tuple[int, int]:
    """Few row ends, so that all steps have one width."""
    return (6, 24)


def test_one_graph_from_the_first_code_to_the_last(
    tiny_model: UnifiedModel, long_grid: tuple[int, int]
):
    """Also for a smaller batch, other prompts, and other numbers; codes equal the eager ones."""
    torch._dynamo.reset()
    counters.clear()
    num_codes = long_grid[0] * long_grid[1]
    streams = _streams(4, num_codes)
    sampler = Sampler(tiny_model, long_grid, compiled=True, rows=4)
    for prompts, settings in (
        (PROMPTS, SamplingSettings()),
        (PROMPTS[1:3], SamplingSettings(temperature=1.5)),
        (["small waving hand " * 3], SamplingSettings()),
    ):
        compiled, passes = sampler.sample(prompts, streams[: len(prompts)], settings)
        eager, _ = sample_codes(tiny_model, prompts, long_grid, streams[: len(prompts)], settings)
        assert torch.equal(compiled, eager)
        assert passes == num_codes
    another = Sampler(tiny_model, long_grid, compiled=True, rows=4)  # as the next arm has one
    compiled, _ = another.sample(["small waving hand " * 3], streams[:1], SamplingSettings())
    assert torch.equal(compiled, eager)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_without_a_compiler_sampling_goes_on(
    tiny_model: UnifiedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    sampler = Sampler(tiny_model, (4, 4), compiled=True)

    def broken(*arguments: Any) -> None:
        raise InductorError(RuntimeError("no working C++ compiler\nlong text"), None)

    monkeypatch.setattr(sampler._runner, "_step", broken)
    streams = _streams(4, 16)
    with caplog.at_level(logging.WARNING):
        codes, _ = sampler.sample(PROMPTS, streams, SamplingSettings())
    eager, _ = sample_codes(tiny_model, PROMPTS, (4, 4), streams, SamplingSettings())
    assert torch.equal(codes, eager)
    (record,) = caplog.records
    assert "no working C++ compiler" in record.getMessage()
    assert "long text" not in record.getMessage()


def test_fixed_shapes_as_on_a_gpu(tiny_model: UnifiedModel, monkeypatch: pytest.MonkeyPatch):
    """Masks and caches of full length, at the same place in memory for every batch."""
    monkeypatch.setattr(sampler_module, "has_fixed_shapes", lambda *_, **__: True)
    seen: set[tuple[int, ...]] = set()

    def watched(*arguments: Any) -> None:
        _, cache, tensors, mask, *_ = arguments
        places = (*tensors, mask, *(layer.keys for layer in cache.layers))
        seen.add(tuple(tensor.data_ptr() for tensor in places))
        assert mask.shape[1] == cache.layers[0].keys.shape[2]
        real(*arguments)

    real = compiled_step.step
    monkeypatch.setattr(compiled_step, "step", watched)
    sampler = Sampler(tiny_model, (4, 4))
    streams = _streams(4, 16)
    settings = SamplingSettings(temperature=1.5)
    first, _ = sampler.sample(PROMPTS, streams, settings)
    again, _ = sampler.sample(["owl", *PROMPTS[1:]], streams, settings)
    assert torch.equal(first, sample_naively(tiny_model, PROMPTS, (4, 4), streams, settings))
    assert torch.equal(again[1:], first[1:])
    assert len(seen) == 1
    both, _ = sampler.sample(PROMPTS, streams, SamplingSettings(guidance_scale=2.0))
    expected = SamplingSettings(guidance_scale=2.0)
    assert torch.equal(both, sample_naively(tiny_model, PROMPTS, (4, 4), streams, expected))


def test_another_cache_than_transformers_plain_one(
    tiny_model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
):
    """The adapter's own cache is used as the protocol says, uncompiled, with a growing mask."""
    monkeypatch.setattr(tiny_model, "new_cache", lambda max_length: DynamicCache())
    settings = SamplingSettings(guidance_scale=2.0)
    streams = _streams(4, 16)
    drawn, _ = Sampler(tiny_model, (4, 4), compiled=True).sample(PROMPTS, streams, settings)
    assert torch.equal(drawn, sample_naively(tiny_model, PROMPTS, (4, 4), streams, settings))


def test_a_prompt_that_occurs_twice_is_read_once(
    tiny_model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
):
    """With guidance, the unconditional prompt is one row for all images."""
    read: list[int] = []
    hidden_states = tiny_model.hidden_states

    def counted(embeds: torch.Tensor, *rest: Any) -> torch.Tensor:
        read.append(len(embeds))
        return hidden_states(embeds, *rest)

    monkeypatch.setattr(tiny_model, "hidden_states", counted)
    sample_codes(tiny_model, PROMPTS, (4, 4), _streams(4, 16), SamplingSettings(guidance_scale=2))
    assert read == [3] + [8] * 15  # "" is the unconditional prompt itself
