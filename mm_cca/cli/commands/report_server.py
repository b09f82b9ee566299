"""Serve the report of a run folder, or other pages, to browsers on this machine."""

import io
import sys
import webbrowser
from collections.abc import Callable
from errno import EADDRINUSE
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from mm_cca.errors import UserError

HOST = "127.0.0.1"
SERVED = ("report.html", "sweep.html", "samples", "real")
"""Only the report and its images are served."""


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, page: str, folder: str, request: Any, address: Any, server: Any) -> None:
        self._page = page
        super().__init__(request, address, server, directory=folder)

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        if urlsplit(self.path).path == "/":
            self.path = f"/{self._page}"
        requested = Path(self.translate_path(self.path)).relative_to(self.directory)
        if not set(requested.parts[:1]) & set(SERVED):
            self.send_error(404)
            return None
        return super().send_head()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that the browser closed early."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve(folder: Path, page: str, port: int = 0, *, open_browser: bool = True) -> None:
    """Serve a page, also as ``/``, and its images until Ctrl-C.

    Args:
        folder: of the run.
        page: file name inside it.
        port: 0 for any free port.
        open_browser: open the page in a browser.

    Raises:
        UserError: the port is taken or not allowed.
    """
    serve_pages(partial(_Handler, page, str(folder.resolve())), page, port, open_browser)


def serve_pages(
    handler: Callable[..., BaseHTTPRequestHandler],
    page: str,
    port: int = 0,
    open_browser: bool = True,
) -> None:
    """Answer requests from this machine until Ctrl-C.

    Args:
        handler: of a request.
        page: the path to open, after the first slash.
        port: 0 for any free port.
        open_browser: open the page in a browser.

    Raises:
        UserError: the port is taken or not allowed.
    """
    with _server(handler, port) as server:
        address = f"http://{HOST}:{server.server_address[1]}/{page}"
        print(f"serving {address} (Ctrl-C ends it)", flush=True)
        if open_browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _server(handler: Callable[..., BaseHTTPRequestHandler], port: int) -> _Server:
    try:
        return _Server((HOST, port), handler)
    except OSError as error:
        if error.errno == EADDRINUSE:
            raise UserError(
                f"--port is {port}, which another program uses; stop that one, choose another "
                "port, or leave --port out for any free one."
            ) from error
        raise _not_opened(port, error) from error
    except OverflowError as error:
        raise _not_opened(port, error) from error


def _not_opened(port: int, error: Exception) -> UserError:
    return UserError(
        f"--port is {port}, which can't be opened on {HOST}: {error}. Allowed: a free port up to "
        "65535, or 0 for any; leave --port out."
    )
