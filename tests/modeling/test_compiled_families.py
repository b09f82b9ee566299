"""The step of every kind of family compiles to graphs without a break, with the eager codes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from mm_cca import load_adapter
from mm_cca.adapters.base import grid_of
from mm_cca.modeling.draws import image_stream
from mm_cca.modeling.sampler import Sampler, SamplingSettings, sample_codes
from mm_cca.testing.contract import PROMPTS
from tests.support.third_party import THIRD_PARTY, checkpoint_paths


# Emu3 is compiled in test_sampling_step.py. The others are of one kind with these: each takes half
# a minute.
@pytest.mark.parametrize("name", ["lumina-mgpt", "janus", THIRD_PARTY])
def test_a_family_compiles(name: str, folders: Path):
    """Guided, which has all operations; row ends make a second graph."""
    model = load_adapter(name, **checkpoint_paths(folders, name))
    model.module.eval()
    grid = grid_of(model, [64, 64])
    layout = model.layout(grid)
    streams = np.stack([image_stream(0, index, layout.num_codes) for index in range(len(PROMPTS))])
    settings = SamplingSettings(guidance_scale=2.0)
    eager, _ = sample_codes(model, PROMPTS, grid, streams, settings)
    torch._dynamo.reset()
    counters.clear()
    compiled, _ = Sampler(model, grid, compiled=True).sample(PROMPTS, streams, settings)
    assert torch.equal(compiled, eager)
    has_forced = len(layout.tokens) > layout.num_codes
    assert counters["stats"]["unique_graphs"] == (2 if has_forced else 1)
    assert not counters["graph_break"]
