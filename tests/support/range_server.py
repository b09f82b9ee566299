"""A host on this machine that gives parts of files, or won't, or breaks down."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal


@dataclass
class RangeServer:
    """What it serves and how; may be changed while it runs.

    Attributes:
        folder: whose files it gives.
        ranges: whether it gives parts; ``refused``: no, and says so; ``ignored``: it gives all.
        left: after so many parts it breaks every connection off; None: never.
        parts: path and bytes of the parts it gave.
    """

    folder: Path
    address: str = ""
    ranges: Literal["given", "ignored", "refused"] = "given"
    left: int | None = None
    parts: list[tuple[str, int, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def breaks(self) -> bool:
        with self.lock:
            if self.left is None:
                return False
            self.left -= 1
            return self.left < 0


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[RangeServer]:
    server = RangeServer(folder, **settings)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = server.folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            wanted = self.headers.get("Range") if server.ranges == "given" else None
            if wanted and server.breaks():
                self.connection.close()
                return
            data, status, more = path.read_bytes(), 200, {}
            if wanted:
                start, end = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
                server.parts.append((path.name, start, end))
                total = len(data)
                data, status = data[start : end + 1], 206
                more["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{total}"
            self.send_response(status)
            if server.ranges == "refused":
                more["Accept-Ranges"] = "none"
            changed = formatdate(path.stat().st_mtime, usegmt=True)
            more |= {"Content-Length": str(len(data)), "Last-Modified": changed}
            for name, value in more.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None:
            """Connections that it broke off itself."""

    with Quiet(("127.0.0.1", 0), Handler) as host:
        server.address = f"http://127.0.0.1:{host.server_port}"
        thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            host.shutdown()
            thread.join()
