"""A model hub on this machine: the requests that huggingface_hub makes, answered from a folder."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import constants, hf_api
from transformers.utils import hub as transformers_hub

from tests.support.fake_uploads import Uploads

COMMIT = "0" * 39 + "1"


@dataclass
class FakeHub:
    """Serves ``root/OWNER/NAME`` as the repository OWNER/NAME.

    Attributes:
        url: the hub's address, for ``HF_ENDPOINT``.
        served: file name -> bytes sent of it.
        uploads: what was uploaded.
    """

    root: Path
    url: str = ""
    served: dict[str, int] = field(default_factory=dict)
    uploads: Uploads = field(init=False)

    def __post_init__(self) -> None:
        self.uploads = Uploads(self.root)


@contextmanager
def fake_hub(root: Path) -> Iterator[FakeHub]:
    hub = FakeHub(root)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(send=True)

        def do_HEAD(self) -> None:
            self._answer(send=False)

        def do_POST(self) -> None:
            self._upload()

        def do_PUT(self) -> None:
            self._upload()

        def _upload(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = unquote(urlparse(self.path).path).strip("/").split("/")
            bearer = self.headers.get("Authorization", "")
            status, told = hub.uploads.answer(self.command, parts, body, bearer, hub.url)
            self._reply(status, json.dumps(told).encode(), {"Content-Type": "application/json"})

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, *, send: bool) -> None:
            parts = unquote(urlparse(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._api(parts[2:])
            else:
                self._file(root / parts[0] / parts[1], "/".join(parts[4:]), send)

        def _api(self, parts: list[str]) -> None:
            repository = root / parts[0] / parts[1]
            if not repository.is_dir():
                self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            files = sorted(p for p in repository.rglob("*") if p.is_file())
            names = [str(p.relative_to(repository)) for p in files]
            if "tree" in parts:
                listing = [
                    {"type": "file", "path": n, "size": p.stat().st_size, "oid": "0" * 40}
                    for n, p in zip(names, files, strict=True)
                ]
                self._reply(200, json.dumps(listing).encode(), {})
                return
            siblings = [{"rfilename": name} for name in names]
            name = "/".join(parts[:2])
            private = hub.uploads.private.get(name, False)
            info = {"id": name, "sha": COMMIT, "siblings": siblings, "private": private}
            self._reply(200, json.dumps(info).encode(), {})

        def _file(self, repository: Path, name: str, send: bool) -> None:
            file = repository / name
            if not file.is_file():
                self._reply(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            content, status, headers = file.read_bytes(), 200, {}
            asked = self.headers.get("Range")
            if asked is not None:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                end = min(int(last) if last else len(content) - 1, len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
                content, status = content[int(first) : end + 1], 206
            if send:
                hub.served[name] = hub.served.get(name, 0) + len(content)
            headers |= {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
            self._reply(status, content, headers, send)

        def _reply(
            self, status: int, content: bytes, headers: dict[str, str], send: bool = True
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if send:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use_hub(url: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Make huggingface_hub of this process ask that address, with a cache of its own."""
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(hf_api.api, "endpoint", url)  # of the functions that peft calls
    # transformers keeps one of its own (from 5.20 on), with the address of when it was first asked.
    patch.setattr(transformers_hub, "_hf_api", None, raising=False)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own
