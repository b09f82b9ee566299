"""One server of an engine: what it serves, and requests that are repeated while it recovers."""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx

from mm_cca.errors import UserError
from mm_cca.sampling.engine_requests import DIALECTS, Dialect
from mm_cca.sampling.manifest import EngineFacts

PROBE = "A small red owl beside 3 smiling faces, 1*2 (noto style)"
"""A text whose tokens tell tokenizers apart."""
BUSY = (408, 425, 429)
"""Statuses of a request that may be repeated, besides 5xx."""
KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), seconds)
        for name, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 6))
        if name in dir(socket)
    ),
]
"""A machine that is gone without a word is noticed after three minutes, not never."""


class ServerLost(Exception):
    """A server can't be reached, or fails, however often it is asked.

    Attributes:
        is_well: it answered other requests at last, so this one is the reason.
    """

    def __init__(self, problem: str, *, is_well: bool = False) -> None:
        super().__init__(problem)
        self.is_well = is_well


@dataclass(frozen=True)
class Patience:
    """How often a request is repeated, and seconds between: the first, doubled up to the last."""

    attempts: int
    first: float = 1.0
    longest: float = 30.0

    def wait(self, attempt: int) -> float:
        return min(self.first * 2.0**attempt, self.longest)


PATIENCE = Patience(8)
"""About a minute and a half: a server that is started again takes as long."""
AT_FIRST = Patience(3)
"""Before anything is drawn, when a wrong address is the likeliest reason."""


class EngineServer:
    """A server, by its address.

    Attributes:
        url: without a path.
        served: name of every model -> the longest prompt and answer together, or None.
        facts: about the engine.
        answers: how many requests for images it has answered.
        is_lost: whether it was given up.
    """

    def __init__(self, url: str, *, connections: int) -> None:
        """Ask the server what it is.

        Args:
            url: its address, with or without ``/v1``.
            connections: most at a time.

        Raises:
            ServerLost: it can't be reached.
            UserError: it is no engine that is known here.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        self.answers = 0
        self.is_lost = False
        # An engine is in one's own network: proxies of the environment would only be in the way.
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = httpx.Client(
            base_url=self.url,
            transport=httpx.HTTPTransport(limits=limits, socket_options=KEEP_ALIVE),
            # Images wait in the server's own queue, so an answer may take long.
            timeout=httpx.Timeout(3600.0, connect=10.0),
            trust_env=False,
        )
        models = self._ask("GET", "/v1/models", None, AT_FIRST)
        entries = _entries(models)
        owner = str(entries[0].get("owned_by")) if entries else "nobody"
        if owner not in DIALECTS:
            raise UserError(
                f"sample.engine {url}: its /v1/models is owned by {owner!r}; allowed: servers of "
                f"{', '.join(DIALECTS)}."
            )
        self.served = {str(e["id"]): e.get("max_model_len") for e in entries}
        told = self._ask("GET", DIALECTS[owner].version_path, None, AT_FIRST)
        version, dtype = str(told.get("version", "unknown")), told.get("dtype")
        self.facts = EngineFacts(owner, version, None if dtype is None else str(dtype))

    @property
    def dialect(self) -> Dialect:
        return DIALECTS[self.facts.kind]

    def tokens_of(self, served: str, text: str) -> list[int] | None:
        """The served model's token ids of a plain text; None if the server has no such answer."""
        body = {"model": served, "prompt": text, "add_special_tokens": False}
        try:
            return [
                int(token) for token in self._ask("POST", "/tokenize", body, AT_FIRST)["tokens"]
            ]
        except (UserError, KeyError, TypeError, ValueError):
            return None

    def draw(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request for an image.

        Raises:
            ServerLost: the server, not this request, fails again and again.
            UserError: it refuses the request, or fails at this one only.
        """
        try:
            answer = self._ask("POST", self.dialect.path, body, PATIENCE)
        except ServerLost as error:
            if error.is_well and not self.is_lost:
                raise UserError(f"{self.url} fails at this request only: {error}") from error
            raise
        self.answers += 1
        return answer

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, patience: Patience
    ) -> dict[str, Any]:
        problem, answers_before = "", 0
        for attempt in range(patience.attempts):
            try:
                response = self._client.request(method, path, json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == httpx.codes.OK:
                    return self._read(path, response)
                problem = f"HTTP {response.status_code}: {response.text[:500].strip()}"
                if response.status_code not in BUSY and not response.is_server_error:
                    raise UserError(f"{self.url}{path} refuses the request: {problem}")
            if attempt < patience.attempts // 2:  # later ones are not what was on its way
                answers_before = self.answers
            if attempt < patience.attempts - 1:
                time.sleep(patience.wait(attempt))
        raise ServerLost(problem, is_well=self.answers > answers_before)

    def _read(self, path: str, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise UserError(
                f"{self.url}{path} answers {response.text[:100]!r}, which is no JSON object: it is "
                "not the address of an engine."
            )
        return answer


def _entries(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    data = models.get("data")
    entries = data if isinstance(data, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and "id" in entry]
