"""The HTTP side of ``mm-cca serve``: three paths, JSON, errors in OpenAI's shape."""

import base64
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mm_cca.cli.commands.image_requests import ApiError
from mm_cca.cli.commands.image_service import ImageService
from mm_cca.errors import UserError

LONGEST_BODY = 1 << 20
MOST_PASSED_OVER = 64 << 20
PATH = "/v1/images/generations"


class _ImageHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # clients keep their connections
    timeout = 3600  # of a connection that says nothing

    def __init__(self, service: ImageService, *args: Any) -> None:
        self._service = service
        super().__init__(*args)

    def do_GET(self) -> None:
        service = self._service
        if self.path == "/health":
            self._answer(self._health)
        elif self.path == "/v1/models":
            entry = {"id": service.served, "object": "model", "created": 0, "owned_by": "mm-cca"}
            self._answer(lambda: {"object": "list", "data": [entry]})
        else:
            self._answer(self._no_such_path)

    def do_POST(self) -> None:
        self._answer(self._images if self.path == PATH else self._no_such_path)

    def _images(self) -> dict[str, Any]:
        request = self._service.read(self._body())
        images = self._service.draw(request)
        return {
            "created": int(time.time()),
            "data": [{"b64_json": base64.b64encode(image).decode()} for image in images],
            "output_format": "png",
            "size": self._service.size_of(request),
            "seed": request.seed,  # not OpenAI's: to ask for the same images again
        }

    def _health(self) -> dict[str, Any]:
        self._service.refuse_if_dead()
        return {}

    def _no_such_path(self) -> dict[str, Any]:
        raise ApiError(404, f"there is no {self.command} {self.path}; ask for POST {PATH}.")

    def _body(self) -> bytes:
        told = self.headers.get("Content-Length", "")
        if not told.isdigit():
            self.close_connection = True
            raise ApiError(411, "the request has no Content-Length.")
        if int(told) > LONGEST_BODY:
            self.close_connection = True
            self._pass_over(int(told))
            raise ApiError(413, f"the body has {told} bytes; allowed: {LONGEST_BODY}.")
        return self.rfile.read(int(told))

    def _pass_over(self, size: int) -> None:
        """Read a body and forget it: who is still sending it would get no answer, but a reset."""
        while 0 < size <= MOST_PASSED_OVER and (part := self.rfile.read(min(size, LONGEST_BODY))):
            size -= len(part)

    def _answer(self, result: Callable[[], dict[str, Any]]) -> None:
        try:
            status, body = 200, result()
        except ApiError as error:
            status, body = error.status, error.body()
        except Exception as error:  # a mistake of ours must not leave a client waiting
            told = f"{type(error).__name__}: {error}"
            print(f"{self.command} {self.path}: {told}", file=sys.stderr, flush=True)
            status, body = 500, ApiError(500, told).body()
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses by itself, such as an unknown method, in the same shape."""
        self.close_connection = True
        told = message or HTTPStatus(code).phrase

        def refuse() -> dict[str, Any]:
            raise ApiError(code, told)

        self._answer(refuse)

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""


class ImageServer(ThreadingHTTPServer):
    """One thread for each connection."""

    request_queue_size = 1024  # many clients connect at once
    block_on_close = False  # a connection that is kept open must not hold up the end

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that the client closed early."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def open_server(service: ImageService, host: str, port: int) -> ImageServer:
    """A server that listens, but does not answer before ``serve_forever``.

    Raises:
        UserError: the address can't be opened.
    """
    try:
        return ImageServer((host, port), partial(_ImageHandler, service))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {host} --port {port} can't be opened: {error}. Allowed: an address of this "
            "machine and a free port up to 65535, or 0 for any."
        ) from error
