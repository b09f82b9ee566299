"""vLLM draws every family as our own sampler does: codes, log-probabilities, layout, prompt ids."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm_cca.adapters.base import FREE, UnifiedModel
from mm_cca.cli.commands.export_engine import export_for_engine
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.sampler import SamplingSettings, sample_codes
from mm_cca.runs.folder import open_run
from mm_cca.sampling.engine_pool import draw_codes, drawn_codes
from mm_cca.sampling.engine_requests import ImageRequest, ImageTask, codes_of, seed_of
from mm_cca.sampling.engine_server import EngineServer
from mm_cca.sampling.weights import load_source
from mm_cca.testing.tiny import FAMILIES, image_tokenizer_of, tokenizer_of, write_tiny
from tests.engine.conftest import started
from tests.support import runs

GRID = (4, 4)
PROMPTS = ("a red owl", "owl", "a small green hand that waves at three friends", "  café\n35mm")


class Served:
    """A tiny checkpoint in an engine, and here."""

    def __init__(self, model: UnifiedModel, server: EngineServer) -> None:
        self.model, self.server = model, server
        (name,) = server.served
        layout, ids = model.layout(GRID), model.engine_codes()
        self.task = ImageTask(name, layout, ids, SamplingSettings())
        self.prompt_ids = model.prompt_ids(PROMPTS, GRID)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self.server._client.post(path, json=body).raise_for_status().json()

    def draw(self, count: int, at_once: int) -> np.ndarray:
        """[count, N] codes of the prompts in turn, each with its own seed."""
        requests = [
            ImageRequest(i, self.prompt_ids[i % len(PROMPTS)], seed_of(0, i)) for i in range(count)
        ]
        groups = draw_codes([self.server], self.task, requests, in_flight=at_once, most=count)
        codes = {drawn.request.index: drawn.codes for group in groups for drawn in group}
        return np.stack([codes[i] for i in range(count)])


@pytest.fixture(scope="module", params=FAMILIES)
def served(
    request: pytest.FixtureRequest,
    engine_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    base = folder / "base"
    write_tiny(family, base, side=GRID[0], head_size=32)
    values = runs.tiny_recipe(folder, base, folder / "data.parquet")
    values["model"]["adapter"] = family
    values["model"]["image_tokenizer"] = image_tokenizer_of(family, base)
    values["model"]["tokenizer"] = tokenizer_of(family, base)
    side = 32 if family == "emu3" else 64
    values["data"]["image_size"] = [side, side]
    run = runs.write_recipe(folder / "run" / "recipe.yaml", values).parent
    export = export_for_engine(run, folder / "served", source="base")
    with started(engine_python, export) as engine:
        server = EngineServer(engine.url, connections=64)
        yield Served(load_source(*open_run(run), "base"), server)


@pytest.fixture(scope="module")
def greedy(served: Served) -> tuple[np.ndarray, np.ndarray]:
    """[B, N] codes of the engine at temperature 0, and its log-probabilities of them."""
    task = replace(served.task, settings=SamplingSettings(temperature=0.0))
    free = served.task.layout.tokens == FREE
    codes, logps = [], []
    for index, ids in enumerate(served.prompt_ids):
        body = served.server.dialect.body(task, ImageRequest(index, ids, 0))
        answer = served.server.draw(body | {"logprobs": 1, "return_tokens_as_token_ids": True})
        choice = answer["choices"][0]
        codes.append(codes_of(choice["token_ids"], task))
        logps.append(np.array(choice["logprobs"]["token_logprobs"], dtype=float)[free])
    return np.stack(codes), np.stack(logps)


@torch.no_grad()
def test_greedy_codes_are_those_of_our_sampler(
    served: Served, greedy: tuple[np.ndarray, np.ndarray]
):
    uniforms = np.zeros((len(PROMPTS), served.task.layout.num_codes))
    ours, _ = sample_codes(
        served.model,
        PROMPTS,
        GRID,
        uniforms,
        SamplingSettings(),
        pick=lambda logits, _: logits.argmax(-1),
    )
    assert np.array_equal(greedy[0], ours.numpy())
    assert len(np.unique(greedy[0])) > 4, "all the same would show nothing"


@torch.no_grad()
def test_log_probabilities_are_ours(served: Served, greedy: tuple[np.ndarray, np.ndarray]):
    """Under a grammar those of vLLM are over the codes, as ours."""
    policy = CodeLogProbs(served.model, served.task.layout, whole_vocabulary=False).eval()
    prompts = left_pad(served.prompt_ids, served.model.pad_id)
    ours = policy(*prompts, torch.from_numpy(greedy[0])).per_code.numpy()
    difference = np.abs(ours - greedy[1])
    assert difference.max() < 1e-3, f"max {difference.max():.3g}, mean {difference.mean():.3g}"


def test_64_images_obey_the_layout_and_come_back_the_same(served: Served):
    """``draw_codes`` compares every answer with the layout."""
    first = served.draw(64, at_once=64)
    assert first.shape == (64, 16)
    assert len(np.unique(first, axis=0)) > 60, "each image has its own seed"
    assert np.array_equal(served.draw(64, at_once=64), first)
    assert np.array_equal(served.draw(8, at_once=1), first[:8])


def test_chat_requests_get_our_prompt_ids(served: Served):
    for prompt, ids in zip(PROMPTS, served.prompt_ids, strict=True):
        turns = [{"role": "user", "content": prompt}]
        answer = served.post("/tokenize", {"model": served.task.served, "messages": turns})
        assert answer["tokens"] == ids, prompt
    body = {
        "model": served.task.served,
        "messages": [{"role": "user", "content": PROMPTS[0]}],
        "structured_outputs": {"grammar": served.task.grammar},
        "max_tokens": len(served.task.layout.tokens),
        "return_token_ids": True,
    }
    choice = served.post("/v1/chat/completions", body)["choices"][0]
    codes_of(choice["token_ids"], served.task)  # raises if it is no image


def test_a_prompt_of_ten_thousand_tokens_is_refused_by_the_engine(served: Served):
    ids = served.prompt_ids[0]
    request = ImageRequest(0, ids[:1] + ids[1:2] * 10_000 + ids[-1:], 0)
    with pytest.raises(Exception, match="refuses the request: HTTP 400") as caught:
        drawn_codes(served.server, served.task, request)
    assert "token" in str(caught.value)
    assert served.draw(1, at_once=1).shape == (1, 16), "it goes on"
