"""The report in a browser: the run folder, served to this machine alone."""

import io
import sys
import webbrowser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from mm_cca.errors import UserError

HOST = "127.0.0.1"
SHOWN = ("report.html", "sweep.html", "samples", "real")
"""What a page asks for; weights and recipes are nobody's business, not even this machine's."""


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """No line for every picture."""

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        inside = Path(self.translate_path(self.path)).relative_to(self.directory)
        if not set(inside.parts[:1]) & set(SHOWN):
            self.send_error(404)
            return None
        return super().send_head()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves before a picture is whole is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve(folder: Path, page: str, port: int = 0, *, open_browser: bool = True) -> None:
    """Serve a page and its pictures until Ctrl-C.

    Args:
        folder: of the run.
        page: file name inside it.
        port: 0 is any free one.
        open_browser: show the page at once.

    Raises:
        UserError: the port is taken or not allowed.
    """
    with _bound(folder, port) as server:
        address = f"http://{HOST}:{server.server_address[1]}/{page}"
        print(f"serving {address} (Ctrl-C ends it)", flush=True)
        if open_browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _bound(folder: Path, port: int) -> _Server:
    handler = partial(_Handler, directory=str(folder.resolve()))
    try:
        return _Server((HOST, port), handler)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--port is {port}, which can't be opened on {HOST}: {error}. Allowed: a free port up "
            "to 65535, or 0 for any; leave --port out."
        ) from error
