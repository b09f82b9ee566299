"""Serve the report of a run folder to browsers on this machine."""

import io
import sys
import webbrowser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from mm_cca.errors import UserError

HOST = "127.0.0.1"
SERVED = ("report.html", "sweep.html", "samples", "real")
"""Only the report and its images are served."""


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""

    def send_head(self) -> io.BytesIO | BinaryIO | None:
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
    """Serve a page and its images until Ctrl-C.

    Args:
        folder: of the run.
        page: file name inside it.
        port: 0 for any free port.
        open_browser: open the page in a browser.

    Raises:
        UserError: the port is taken or not allowed.
    """
    with _server(folder, port) as server:
        address = f"http://{HOST}:{server.server_address[1]}/{page}"
        print(f"serving {address} (Ctrl-C ends it)", flush=True)
        if open_browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _server(folder: Path, port: int) -> _Server:
    handler = partial(_Handler, directory=str(folder.resolve()))
    try:
        return _Server((HOST, port), handler)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--port is {port}, which can't be opened on {HOST}: {error}. Allowed: a free port up "
            "to 65535, or 0 for any; leave --port out."
        ) from error
