"""A false vLLM or SGLang: HTTP requests answered with random codes, or with a failure."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

Answer = tuple[int, dict[str, Any] | bytes | None]
"""HTTP status, and the body; None drops the connection."""
Fault = Callable[[int, dict[str, Any], list[int]], Answer | None]
"""Number of the request from 0, its body, right tokens -> another answer; None: the right one."""


@dataclass
class FakeEngine:
    """What it serves, how it fails, and what it was asked.

    Attributes:
        served: names of models.
        tokenize: the model's tokens of a text; None: no such route.
        max_model_len: of every model.
        fault: see ``Fault``.
        requests: bodies of the requests for images, in order of arrival.
        most_at_once: requests that were in flight together.
    """

    served: list[str]
    tokenize: Callable[[str], list[int]] | None = None
    max_model_len: int = 4096
    kind: str = "vllm"
    version: str = "0.32.0"
    dtype: str | None = None
    fault: Fault | None = None
    port: int = 0
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    stop: Callable[[], None] = lambda: None

    def get(self, path: str) -> Answer:
        if path == "/health":
            return 200, {}
        if path == "/v1/models":
            entry = {"object": "model", "owned_by": self.kind, "max_model_len": self.max_model_len}
            return 200, {"object": "list", "data": [{"id": name, **entry} for name in self.served]}
        if path == "/version" and self.kind == "vllm":
            return 200, {"version": self.version}
        if path == "/get_server_info" and self.kind == "sglang":
            return 200, {"version": self.version, "dtype": self.dtype}
        return 404, {"detail": "Not Found"}

    def post(self, path: str, body: dict[str, Any], number: int) -> Answer:
        if path == "/tokenize" and self.tokenize is not None:
            assert body["model"] in self.served
            return 200, {"tokens": self.tokenize(body["prompt"])}
        if path == "/v1/completions" and self.kind == "vllm":
            tokens = draw(body["structured_outputs"]["grammar"], body["seed"], body["prompt"])
            found = self.fault(number, body, tokens) if self.fault else None
            return found or (200, completion(tokens))
        if path == "/generate" and self.kind == "sglang":
            sampling = body["sampling_params"]
            tokens = draw(sampling["ebnf"], sampling["sampling_seed"], body["input_ids"])
            found = self.fault(number, body, tokens) if self.fault else None
            return found or (200, {"text": "", "output_ids": tokens, "meta_info": {}})
        return 404, {"detail": "Not Found"}


def completion(tokens: list[int], **more: Any) -> dict[str, Any]:
    """vLLM's answer."""
    choice = {"index": 0, "text": "", "token_ids": tokens, "finish_reason": "length", **more}
    return {"object": "text_completion", "choices": [choice]}


def draw(grammar: str, seed: int, prompt_ids: list[int]) -> list[int]:
    """Tokens of a grammar of ``grammar_of``, at random by seed and prompt only."""
    start, code = re.fullmatch(r"start: (.+)\ncode: <\[(.+)\]>\n", grammar).groups()
    ranges = [[int(n) for n in part.split("-")] for part in code.split(",")]
    ids = np.concatenate([np.arange(r[0], r[-1] + 1) for r in ranges])
    slots = _expanded(start)
    stream = np.random.default_rng([seed, *prompt_ids])
    return [int(stream.choice(ids)) if slot == "code" else int(slot[2:-2]) for slot in slots]


def _expanded(text: str) -> list[str]:
    """``(code{2} <[8]>){3} code{2}`` as a list of items."""
    parts: list[str] = []
    for group, item, count in re.findall(r"(?:\(([^)]*)\)|(code|<\[\d+\]>))(?:\{(\d+)\})?", text):
        parts += (_expanded(group) if group else [item]) * int(count or 1)
    return parts


@contextmanager
def fake_engine(**of_engine: Any) -> Iterator[FakeEngine]:
    engine = FakeEngine(**of_engine)
    lock, at_once = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open, as those of an engine do

        def do_GET(self) -> None:
            self._reply(engine.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            number = -1
            if self.path != "/tokenize":
                with lock:
                    number = len(engine.requests)
                    engine.requests.append(body)
                    at_once[0] += 1
                    engine.most_at_once = max(engine.most_at_once, at_once[0])
            try:
                self._reply(engine.post(self.path, body, number))
            finally:
                if number >= 0:
                    with lock:
                        at_once[0] -= 1

        def _reply(self, answer: Answer) -> None:
            status, content = answer
            if content is None:
                self.close_connection = True
                self.connection.close()
                return
            sent = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, request: Any, address: Any) -> None:
            pass  # dropped connections are meant

    server = Server(("127.0.0.1", engine.port), Handler)
    engine.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    engine.stop = stop
    try:
        yield engine
    finally:
        stop()
