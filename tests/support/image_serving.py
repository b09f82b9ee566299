"""A server of images in this process over a false engine, its client, and what it should draw."""

import base64
import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mm_cca.adapters.base import FREE, UnifiedModel
from mm_cca.cli.commands.image_server import open_server
from mm_cca.cli.commands.image_service import ImageService
from mm_cca.modeling.sampler import SamplingSettings
from mm_cca.runs.folder import open_run
from mm_cca.sampling.engine_grammar import grammar_of
from mm_cca.sampling.engine_requests import seed_of
from mm_cca.sampling.engine_server import EngineServer
from tests.support.fake_engine import FakeEngine, draw, fake_engine

SERVED = "run/cca"
PATH = "/v1/images/generations"
SETTINGS = SamplingSettings(temperature=0.9, top_k=16)


@contextmanager
def serving(
    run: Path, model: UnifiedModel, dead: list[str] | None = None, **of_engine: Any
) -> Iterator[tuple[str, FakeEngine]]:
    """The address of a server in this process, and its false engine."""
    recipe = open_run(run)[0]
    with fake_engine(served=[SERVED], **of_engine) as engine:
        client = EngineServer(engine.url, connections=128)
        service = ImageService(
            model, recipe, SETTINGS, SERVED, client, lambda: dead[0] if dead else None
        )
        with open_server(service, "127.0.0.1", 0) as server:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}", engine
            finally:
                server.shutdown()


def ask(
    url: str, body: Any, path: str = PATH, method: str | None = None
) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, content, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def pictures(answer: dict[str, Any]) -> list[np.ndarray]:
    """[H, W, 3] each."""
    files = [base64.b64decode(entry["b64_json"]) for entry in answer["data"]]
    assert all(file.startswith(b"\x89PNG") for file in files)
    return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


@torch.no_grad()
def expected(
    model: UnifiedModel, prompt: str, seed: int, number: int, grid: tuple[int, int] = (4, 4)
) -> np.ndarray:
    """What the false engine draws, one image at a time."""
    layout, ids = model.layout(grid), model.engine_codes()
    prompt_ids = model.prompt_ids([prompt], grid)[0]
    tokens = np.array(draw(grammar_of(layout, ids), seed_of(seed, number), prompt_ids))
    codes = [ids.tolist().index(token) for token in tokens[layout.tokens == FREE]]
    return model.decode(torch.tensor([codes]), grid)[0].permute(1, 2, 0).numpy()
