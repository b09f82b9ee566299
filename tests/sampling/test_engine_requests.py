"""Requests, and answers compared with the layout slot by slot."""

import numpy as np
import pytest

from mm_cca.adapters.base import FREE, rows_with_ends
from mm_cca.errors import UserError
from mm_cca.modeling.sampler import SamplingSettings
from mm_cca.sampling.engine_requests import (
    DIALECTS,
    ImageRequest,
    ImageTask,
    codes_of,
    seed_of,
)

IDS = np.array([2003, 2001, 2000, 2002, 700])  # code 0 is the token 2003
LAYOUT = rows_with_ends((2, 3), 8)
TASK = ImageTask("run/cca", LAYOUT, IDS, SamplingSettings(temperature=0.9, top_k=40, top_p=0.95))
RIGHT = [2003, 2001, 2000, 8, 2002, 700, 2003]


def test_the_codes_of_an_answer():
    assert codes_of(RIGHT, TASK).tolist() == [0, 1, 2, 3, 4, 0]
    assert codes_of([*RIGHT, 3], TASK).tolist() == [0, 1, 2, 3, 4, 0]  # an end of text after it


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({0: 8}, "slot 0 of 7 holds the token 8, but must hold one of the 5 image codes"),
        ({2: 1999}, "slot 2 of 7 holds the token 1999"),  # below the ids, between them, above them
        ({2: 1000}, "slot 2 of 7 holds the token 1000"),
        ({6: 2004}, "slot 6 of 7 holds the token 2004"),
        ({3: 2003}, "slot 3 of 7 holds the token 2003, but must hold 8"),
        ({3: 9, 5: 9}, "slot 3 of 7 holds the token 9"),  # the first of two
        ({2: 8, 3: 2003}, "slot 2 of 7 holds the token 8"),  # the row end one too early
    ],
)
def test_a_wrong_slot_is_named(change: dict[int, int], told: str):
    tokens = [change.get(slot, token) for slot, token in enumerate(RIGHT)]
    with pytest.raises(UserError, match=told):
        codes_of(tokens, TASK)


@pytest.mark.parametrize("length", range(len(RIGHT)))
def test_a_short_answer(length: int):
    with pytest.raises(UserError, match=f"it ends at slot {length} of 7"):
        codes_of(RIGHT[:length], TASK)


def test_any_answer_is_refused_or_an_image_of_the_layout():
    """Against a slow reference, on random answers with few or many mistakes."""
    rng, refused = np.random.default_rng(0), 0
    for _ in range(500):
        tokens = [
            int(rng.choice([*IDS, 8, 9]))
            if rng.random() < 0.1
            else (int(rng.choice(IDS)) if slot == FREE else slot)
            for slot in LAYOUT.tokens.tolist()
        ]
        right = all(
            token in IDS if slot == FREE else token == slot
            for token, slot in zip(tokens, LAYOUT.tokens.tolist(), strict=True)
        )
        if right:
            expected = [IDS.tolist().index(token) for token in tokens if token != 8]
            assert codes_of(tokens, TASK).tolist() == expected
        else:
            refused += 1
            with pytest.raises(UserError):
                codes_of(tokens, TASK)
    assert 100 < refused < 400


def test_every_sampling_value_is_sent():
    """A value that is left out would come from the served folder's generation config."""
    request = ImageRequest(5, [1, 2, 3], 77)
    body = DIALECTS["vllm"].body(TASK, request)
    grammar = "start: code{3} <[8]> code{3}\ncode: <[700,2000-2003]>\n"
    assert body == {
        "model": "run/cca",
        "prompt": [1, 2, 3],
        "seed": 77,
        "max_tokens": 7,
        "structured_outputs": {"grammar": grammar},
        "return_token_ids": True,
        "n": 1,
        "stream": False,
        "temperature": 0.9,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    everything = ImageTask("run/cca", LAYOUT, IDS, SamplingSettings())
    body = DIALECTS["vllm"].body(everything, request)
    assert (body["temperature"], body["top_k"], body["top_p"]) == (1.0, -1, 1.0)


def test_sglang_has_other_names():
    body = DIALECTS["sglang"].body(TASK, ImageRequest(5, [1, 2, 3], 77))
    assert body["input_ids"] == [1, 2, 3]
    sampling = body["sampling_params"]
    assert sampling["ebnf"] == TASK.grammar
    assert (sampling["sampling_seed"], sampling["max_new_tokens"], sampling["top_k"]) == (77, 7, 40)


def test_seeds():
    """Documented, so they must not change: 63 bits of sha256 of SEED/INDEX."""
    assert (seed_of(0, 0), seed_of(7, 12)) == (3065247057545751466, 1622933212310118192)
    seeds = {seed_of(seed, index) for seed in range(3) for index in range(3000)}
    assert len(seeds) == 9000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 23) != seed_of(12, 3)
