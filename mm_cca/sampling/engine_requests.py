"""What an engine is asked for an image, and what its answer must be: one dialect per engine.

Every value that decides what is drawn is sent, because a server fills in the rest from the folder's
generation config. Every answer is compared with the layout, because a server that does not know a
field ignores it and answers with text.

Shapes: S slots of the image span, N free codes, K image codes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mm_cca.adapters.base import FREE, ImageLayout
from mm_cca.errors import UserError
from mm_cca.modeling.sampler import SamplingSettings
from mm_cca.sampling.engine_grammar import grammar_of


@dataclass(frozen=True)
class ImageRequest:
    """One image to draw: its number, its prompt's token ids and its seed."""

    index: int
    prompt_ids: list[int]
    seed: int


@dataclass(frozen=True)
class ImageTask:
    """What all images of an arm have in common.

    Attributes:
        served: the name of the model.
        layout: of every image, [S] slots.
        code_ids: [K] int64, the engine's vocabulary id of every image code.
        settings: temperature and truncation; without guidance.
    """

    served: str
    layout: ImageLayout
    code_ids: np.ndarray
    settings: SamplingSettings

    @cached_property
    def grammar(self) -> str:
        return grammar_of(self.layout, self.code_ids)

    @cached_property
    def order(self) -> np.ndarray:
        """[K] the codes in the order of their ids."""
        return np.argsort(self.code_ids)


@dataclass(frozen=True)
class Dialect:
    """How one kind of engine is asked.

    Attributes:
        path: of the requests.
        version_path: what tells the engine's version, and perhaps its dtype.
        body: of a request.
        tokens: the drawn token ids in an answer; KeyError or alike where there are none.
    """

    path: str
    version_path: str
    body: Callable[[ImageTask, ImageRequest], dict[str, Any]]
    tokens: Callable[[dict[str, Any]], list[int]]


def seed_of(seed: int, index: int) -> int:
    """The seed of an image's request: 63 bits of sha256 of ``SEED/INDEX``.

    It depends on ``sample.seed`` and the number of the image only, not on server or batch. Engines
    draw other random numbers from it than our own sampler from its streams.
    """
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def codes_of(tokens: list[int], task: ImageTask) -> np.ndarray:
    """[S] drawn token ids -> [N] int64 image codes.

    Raises:
        UserError: they are not an image of the layout; names the first slot that is wrong.
    """
    slots = task.layout.tokens
    drawn = np.asarray(tokens[: len(slots)], dtype=np.int64)
    places = np.searchsorted(task.code_ids, drawn, sorter=task.order)
    codes = task.order[places.clip(max=len(task.order) - 1)]
    expected = slots[: len(drawn)]
    is_right = np.where(expected == FREE, task.code_ids[codes] == drawn, expected == drawn)
    wrong = np.flatnonzero(~is_right)
    if len(wrong):
        slot = int(wrong[0])
        wanted = int(slots[slot])
        allowed = f"one of the {len(task.code_ids)} image codes" if wanted == FREE else f"{wanted}"
        raise UserError(
            f"slot {slot} of {len(slots)} holds the token {drawn[slot]}, but must hold {allowed}"
        )
    if len(drawn) < len(slots):
        raise UserError(f"it ends at slot {len(drawn)} of {len(slots)}")
    return codes[slots == FREE]


def _vllm_body(task: ImageTask, request: ImageRequest) -> dict[str, Any]:
    return {
        "model": task.served,
        "prompt": request.prompt_ids,
        "seed": request.seed,
        "max_tokens": len(task.layout.tokens),
        "structured_outputs": {"grammar": task.grammar},
        "return_token_ids": True,
        "n": 1,
        "stream": False,
        "presence_penalty": 0.0,
        **_sampling(task.settings),
    }


def _sglang_body(task: ImageTask, request: ImageRequest) -> dict[str, Any]:
    # Its backend llguidance reads Lark in this field; xgrammar's own EBNF has no ranges of ids.
    return {
        "input_ids": request.prompt_ids,
        "sampling_params": {
            "sampling_seed": request.seed,
            "max_new_tokens": len(task.layout.tokens),
            "ebnf": task.grammar,
            "n": 1,
            "presence_penalty": 0.0,
            **_sampling(task.settings),
        },
        "stream": False,
    }


def _sampling(settings: SamplingSettings) -> dict[str, Any]:
    return {
        "temperature": settings.temperature,
        "top_k": -1 if settings.top_k is None else settings.top_k,
        "top_p": 1.0 if settings.top_p is None else settings.top_p,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
    }


DIALECTS = {
    "vllm": Dialect(
        "/v1/completions",
        "/version",
        _vllm_body,
        lambda answer: [int(token) for token in answer["choices"][0]["token_ids"]],
    ),
    "sglang": Dialect(
        "/generate",
        "/get_server_info",
        _sglang_body,
        lambda answer: [int(token) for token in answer["output_ids"]],
    ),
}
"""By what ``/v1/models`` says in ``owned_by``. SGLang's is from its documentation, not tried."""
