"""The benchmark's models and steps work without a GPU, and its operations are counted right."""

import pytest
import torch

from tests.bench_training import at_real_shapes
from tests.support import random_shapes as shapes
from tests.support.closeness import CPU
from tests.support.random_shapes import Decoder, Prompts
from tests.support.training_cases import GPU, Case, Training

TINY = Decoder(16, 32, 2, 2, 2)


def _case(family: str) -> Case:
    build, grid = {
        "emu3": (shapes.emu3, (2, 2)),
        "chameleon": (shapes.chameleon, (32, 32)),
        "janus": (shapes.janus, (24, 24)),
    }[family]
    return Case(lambda: build(TINY), grid, 2, Prompts(6, 9), bf16=True, checkpointing=True)


@pytest.mark.parametrize("kind", ["ours", "lora", "reference"])
@pytest.mark.parametrize("family", ["emu3", "chameleon", "janus"])
def test_a_step_of_every_family(family: str, kind: str):
    training = Training(_case(family), kind, "cca_code", CPU)
    first, second = training.step(), training.step()
    assert second != first


def test_operations_by_hand():
    """2 x weights x tokens, attention 2 x tokens^2 x width a layer, and the image rows of the head.

    16 x 16 for each of four projections, 16 x 32 for each of three; 32,768 rows; 4 codes, which
    makes no difference to what the row ends would add.
    """
    training = Training(_case("emu3"), "ours", "nll", CPU)
    lengths = [len(prompt) + 4 for prompt in training._prompts]
    layer = 4 * 16 * 16 + 3 * 16 * 32
    forward = 2 * 2 * layer * sum(lengths)
    forward += 2 * sum(2 * n * n * 16 for n in lengths)
    forward += 2 * 32_768 * 16 * 4 * 2
    assert training.flops() == 3 * forward
    assert Training(_case("emu3"), "lora", "nll", CPU).flops() == 2 * forward


def test_without_a_gpu_shapes_are_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = at_real_shapes(list(GPU), ["nll"], 2)
    assert [row["result"] for row in rows] == ["not run"] * len(GPU)
    assert "not run, as there is no GPU" in capsys.readouterr().out
