"""What ``mm-cca serve`` answers: every picture is the one asked for, and mistakes are OpenAI's."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm_cca.adapters.base import UnifiedModel
from tests.support import runs
from tests.support.image_serving import SERVED, ask, expected, pictures, serving


def test_a_hundred_requests_at_once_without_one_wrong_picture(run: Path, model: UnifiedModel):
    all_here = threading.Event()

    def slow(number: int, body: dict[str, Any], tokens: list[int]) -> None:
        if number == 99:
            all_here.set()
        assert all_here.wait(120)
        time.sleep((number * 7919 % 10) / 100)  # answers come back in another order

    asked = [(f"a {c} owl", 7 * i, 1 + i % 3) for i, c in enumerate(runs.COLOURS * 17)][:100]
    with serving(run, model, fault=slow) as (url, engine), ThreadPoolExecutor(100) as pool:
        answers = list(
            pool.map(lambda a: ask(url, {"prompt": a[0], "seed": a[1], "n": a[2]}), asked)
        )
        assert engine.most_at_once >= 100
    assert [status for status, _ in answers] == [200] * 100
    for (prompt, seed, count), (_, answer) in zip(asked, answers, strict=True):
        found = pictures(answer)
        assert len(found) == count
        for number, picture in enumerate(found):
            assert np.array_equal(picture, expected(model, prompt, seed, number)), (prompt, number)


def test_what_the_engine_is_asked(run: Path, model: UnifiedModel):
    with serving(run, model) as (url, engine):
        body = {"model": SERVED, "prompt": "a red owl", "n": 2, "size": "8x16", "seed": 5}
        more = {"response_format": "b64_json", "quality": "auto", "user": "me"}
        status, answer = ask(url, body | more)
        assert status == 200
        assert (answer["size"], answer["seed"]) == ("8x16", 5)
        found = pictures(answer)
        assert [picture.shape for picture in found] == [(16, 8, 3)] * 2  # width first
        for number, picture in enumerate(found):
            assert np.array_equal(picture, expected(model, "a red owl", 5, number, (4, 2)))
        sent = engine.requests[0]
    assert sent["prompt"] == model.prompt_ids(["a red owl"], (4, 2))[0]
    assert (sent["temperature"], sent["top_k"], sent["top_p"]) == (0.9, 16, 1.0)
    assert sent["structured_outputs"]["grammar"].startswith("start: (code{2} <[")


def test_seeds(run: Path, model: UnifiedModel):
    with serving(run, model) as (url, _):
        _, first = ask(url, {"prompt": "a red owl", "n": 3})
        _, other = ask(url, {"prompt": "a red owl", "n": 3})
        assert first["seed"] != other["seed"]
        _, again = ask(url, {"prompt": "a red owl", "seed": first["seed"], "size": "auto"})
    three = pictures(first)
    assert len({picture.tobytes() for picture in three}) == 3
    assert np.array_equal(pictures(again)[0], three[0])


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({}, 400, "prompt", "prompt is missing; allowed: a text"),
        ({"prompt": "  "}, 400, "prompt", "allowed: a text that is not empty"),
        ({"prompt": 3}, 400, "prompt", "prompt is 3"),
        ({"prompt": "owl", "n": 0}, 400, "n", "n is 0; allowed: a whole number from 1 to 10"),
        ({"prompt": "owl", "n": 11}, 400, "n", "n is 11"),
        ({"prompt": "owl", "n": True}, 400, "n", "n is true"),
        ({"prompt": "owl", "n": 1.5}, 400, "n", "n is 1.5"),
        ({"prompt": "owl", "seed": -1}, 400, "seed", "seed is -1; allowed: a whole number from 0"),
        ({"prompt": "owl", "seed": 2**64}, 400, "seed", "to 9223372036854775807"),
        ({"prompt": "owl", "size": "17x16"}, 400, "size", "multiples of 4 pixels, such as 16x16"),
        ({"prompt": "owl", "size": "0x16"}, 400, "size", "multiples of 4 pixels"),
        ({"prompt": "owl", "size": "large"}, 400, "size", "width and height in pixels"),
        ({"prompt": "owl", "size": [16, 16]}, 400, "size", "width and height in pixels"),
        ({"prompt": "owl", "size": "4000000x4000000"}, 400, "size", "at most 512 tokens"),
        ({"prompt": "owl", "size": "64x96"}, 400, "prompt", "beside the 407 of the image"),
        ({"prompt": "owl", "response_format": "url"}, 400, "response_format", '"b64_json"'),
        ({"prompt": "owl", "output_format": "webp"}, 400, "output_format", '"png"'),
        ({"prompt": "owl", "stream": True}, 400, "stream", "stream is true; allowed: false"),
        ({"prompt": "owl", "model": "dall-e-2"}, 404, "model", "served: run/cca"),
        (["owl"], 400, None, "must be a JSON object"),
        (b'{"prompt": "owl"', 400, None, "the body is no JSON"),
        (b"\xff\xfe", 400, None, "the body is no JSON"),
    ],
)
def test_mistakes_in_openais_shape(
    run: Path, model: UnifiedModel, body: Any, status: int, param: str | None, message: str
):
    with serving(run, model, max_model_len=411) as (url, engine):
        found, answer = ask(url, body)
        assert found == status
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["param"] == param
        assert message in answer["error"]["message"]
        assert engine.requests == []


def test_a_prompt_of_ten_thousand_tokens(run: Path, model: UnifiedModel):
    prompt = " ".join(f"w{number}" for number in range(6000))
    length = len(model.prompt_ids([prompt], (4, 4))[0])
    assert length > 10_000
    with serving(run, model) as (url, engine):
        status, answer = ask(url, {"prompt": prompt})
        assert status == 400
        assert answer["error"]["code"] == "context_length_exceeded"
        assert (
            f"the prompt has {length} tokens; allowed: 493 beside the 19"
            in (answer["error"]["message"])
        )
        assert engine.requests == []
        assert ask(url, {"prompt": "owl"})[0] == 200, "the next request is answered"


def test_other_paths_and_sizes_of_bodies(run: Path, model: UnifiedModel):
    with serving(run, model) as (url, _):
        assert ask(url, None, "/health") == (200, {})
        status, models = ask(url, None, "/v1/models")
        assert (status, models["data"][0]["id"]) == (200, SERVED)
        for path, method in (("/v1/chat/completions", "POST"), ("/", "GET")):
            status, answer = ask(url, b"{}" if method == "POST" else None, path)
            assert status == 404
            assert f"there is no {method} {path}" in answer["error"]["message"]
        status, answer = ask(url, b"{}", method="DELETE")
        assert status == 501
        assert "Unsupported method" in answer["error"]["message"]
        status, answer = ask(url, b'{"prompt": "' + b"x" * (1 << 20) + b'"}')
        assert status == 413
        assert "allowed: 1048576" in answer["error"]["message"]


def test_an_engine_that_answers_with_text(run: Path, model: UnifiedModel):
    def text(number: int, body: dict[str, Any], tokens: list[int]) -> tuple[int, dict[str, Any]]:
        return 200, {"choices": [{"text": "an owl", "token_ids": [9, *tokens[1:]]}]}

    with serving(run, model, fault=text) as (url, _):
        status, answer = ask(url, {"prompt": "owl"})
    assert status == 502
    assert answer["error"]["type"] == "server_error"
    assert "slot 0 of 19 holds the token 9" in answer["error"]["message"]


def test_an_engine_that_ends_while_it_draws(run: Path, model: UnifiedModel):
    dead: list[str] = []
    release = threading.Event()

    def hang(number: int, body: dict[str, Any], tokens: list[int]) -> None:
        dead.append("the engine has ended (signal 9).")
        release.wait(60)

    with serving(run, model, dead, fault=hang) as (url, _):
        status, answer = ask(url, {"prompt": "owl", "n": 2})
        assert (status, answer["error"]["code"]) == (503, "engine_ended")
        assert "signal 9" in answer["error"]["message"]
        assert ask(url, None, "/health")[0] == 503
        release.set()
