"""Prompts to PNGs: prompt ids and pixels are made here, codes in the engine.

Requests come in threads of their own. The text tokenizer and the image tokenizer are used by one
thread at a time; the engine by as many as it takes.
"""

import io
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

import numpy as np
import torch
from PIL import Image

from mm_cca.adapters.base import Grid, UnifiedModel, grid_of
from mm_cca.cli.commands.image_requests import ApiError, ImagesRequest, read_request
from mm_cca.config.prompt_templates import filled
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.modeling.sampler import SamplingSettings
from mm_cca.sampling.engine_pool import drawn_codes
from mm_cca.sampling.engine_requests import ImageRequest, ImageTask, seed_of
from mm_cca.sampling.engine_server import EngineServer, ServerLost

IN_FLIGHT = 128
"""Images that the engine is asked for at once; others wait here."""
LOOK_EVERY = 0.5
"""Seconds between looks at whether the engine is still there."""


class ImageService:
    """Answers requests for images of one model with one engine.

    Args:
        model: prompts, layouts and ``decode``; its language model is not used.
        recipe: the size of images and the template of prompts.
        settings: temperature and truncation.
        served: the name of the model.
        server: the engine.
        why_dead: says why the engine has ended, or None while it runs.
    """

    def __init__(
        self,
        model: UnifiedModel,
        recipe: Recipe,
        settings: SamplingSettings,
        served: str,
        server: EngineServer,
        why_dead: Callable[[], str | None],
    ) -> None:
        self.served = served
        self._model, self._settings, self._server = model, settings, server
        self._grid = grid_of(model, recipe.data.image_size)
        self._template = recipe.sample.prompt_template
        self._why_dead = why_dead
        self._tasks: dict[Grid, ImageTask] = {}
        self._tokenizing, self._decoding = threading.Lock(), threading.Lock()
        self._room = threading.BoundedSemaphore(IN_FLIGHT)

    def read(self, body: bytes) -> ImagesRequest:
        """The request of a body. Raises ApiError."""
        return read_request(body, self._model, self.served, self._grid)

    def size_of(self, request: ImagesRequest) -> str:
        """In OpenAI's form, width x height."""
        return "x".join(str(n * self._model.pixels_per_code) for n in reversed(request.grid))

    def draw(self, request: ImagesRequest) -> list[bytes]:
        """The PNGs of a request.

        Raises:
            ApiError: 400 for a prompt that is too long, 503 if the engine has ended, 502 if it
                answers something else than an image.
        """
        with self._tokenizing:
            text = filled(self._template, [request.prompt])
            ids = self._model.prompt_ids(text, request.grid)[0]
            task = self._task(request.grid)
        self._refuse_long(len(ids), task)
        asked = [
            self._ask(task, ImageRequest(k, ids, seed_of(request.seed, k)))
            for k in range(request.count)
        ]
        codes = self._results(asked)
        with self._decoding, torch.no_grad():
            device = next(iter(self._model.frozen()[0].parameters())).device
            # One by one, or the last bits of an image would depend on how many were asked for.
            rows = torch.from_numpy(codes).to(device).split(1)
            pixels = [self._model.decode(row, request.grid)[0].cpu() for row in rows]
        return [_png(image) for image in pixels]

    def _ask(self, task: ImageTask, request: ImageRequest) -> "Future[np.ndarray]":
        """[N] codes, later."""
        future: Future[np.ndarray] = Future()

        def work() -> None:
            with self._room:
                try:
                    future.set_result(drawn_codes(self._server, task, request))
                except BaseException as error:  # whoever waits must hear of it
                    future.set_exception(error)

        # A daemon: one that still waits for an engine that has ended must not hold up our own end.
        threading.Thread(target=work, daemon=True).start()
        return future

    def _task(self, grid: Grid) -> ImageTask:
        if grid not in self._tasks:
            layout, ids = self._model.layout(grid), self._model.engine_codes()
            self._tasks[grid] = ImageTask(self.served, layout, ids, self._settings)
        return self._tasks[grid]

    def _refuse_long(self, length: int, task: ImageTask) -> None:
        slots, limit = len(task.layout.tokens), self._server.served.get(self.served)
        room = min(self._model.max_tokens, self._model.max_tokens if limit is None else limit)
        if length + slots > room:
            raise ApiError(
                400,
                f"the prompt has {length} tokens; allowed: {max(room - slots, 0)} beside the "
                f"{slots} of the image ({room} together).",
                param="prompt",
                code="context_length_exceeded",
            )

    def _results(self, asked: Sequence["Future[np.ndarray]"]) -> np.ndarray:
        """[n, N] codes, as soon as all are there or the engine is known to have ended."""
        pending: set[Future[np.ndarray]] = set(asked)
        while pending:
            self.refuse_if_dead()
            _, pending = wait(pending, timeout=LOOK_EVERY)
        try:
            return np.stack([future.result() for future in asked])
        except ServerLost as error:
            self.refuse_if_dead()
            raise ApiError(503, f"the engine does not answer: {error}") from error
        except UserError as error:
            raise ApiError(502, str(error)) from error

    def refuse_if_dead(self) -> None:
        """Raises ApiError if the engine has ended."""
        reason = self._why_dead()
        if reason is not None:
            raise ApiError(503, reason, code="engine_ended")


def _png(image: torch.Tensor) -> bytes:
    """A [3, H, W] uint8 image as a file."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()
