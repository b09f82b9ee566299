"""The part of a model hub that takes uploads: repositories, large files by digest, commits."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Answer = tuple[int, dict[str, Any]]
LARGE = (".safetensors", ".png")


@dataclass
class Uploads:
    """Writes commits to ``root/OWNER/NAME``.

    Attributes:
        token: the one that is known.
        writable: owners that it may write to.
        private: repository -> whether it is private.
        sent: digest -> bytes of large files that were received.
        messages: of all commits.
        breaks_after: large files until the connection of each further one is refused; None: never.
    """

    root: Path
    token: str = "hf_known"
    writable: tuple[str, ...] = ("org",)
    private: dict[str, bool] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    breaks_after: int | None = None

    def answer(self, method: str, parts: list[str], body: bytes, bearer: str, url: str) -> Answer:
        """Status and JSON of a request that changes something."""
        if parts[:1] == ["large"]:  # addresses given below need no token
            return self._receive(parts[1], body)
        if parts == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        if bearer != f"Bearer {self.token}":
            return 401, {"error": "Invalid username or password."}
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(body), url)
        owner, name = (parts[0], parts[1]) if parts[0] != "api" else (parts[2], parts[3])
        if owner not in self.writable:
            return 403, {"error": "You don't have the rights to write here."}
        repository = f"{owner}/{name.removesuffix('.git')}"
        if method == "PUT":
            self.private[repository] = json.loads(body)["visibility"] == "private"
            return 200, {}
        match parts[2:] if parts[0] != "api" else parts[4:]:
            case ["info", "lfs", "objects", "batch"]:
                return 200, {"objects": [self._place(o, url) for o in json.loads(body)["objects"]]}
            case ["preupload", _]:
                return 200, {"files": [_mode(file) for file in json.loads(body)["files"]]}
            case ["commit", _]:
                return self._commit(repository, body, url)
        return 404, {"error": f"no {method} of {parts}"}

    def _create(self, asked: dict[str, Any], url: str) -> Answer:
        repository = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in self.writable:
            return 403, {"error": "You don't have the rights to create a model there."}
        folder = self.root / repository
        if folder.is_dir():
            return 409, {"error": "You already created this model repo", "url": repository}
        folder.mkdir(parents=True)
        self.private[repository] = asked.get("visibility") == "private"
        return 200, {"url": f"{url}/{repository}", "id": repository}

    def _place(self, asked: dict[str, Any], url: str) -> dict[str, Any]:
        found = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] in self.sent:
            return found
        return found | {"actions": {"upload": {"href": f"{url}/large/{asked['oid']}"}}}

    def _receive(self, digest: str, body: bytes) -> Answer:
        if self.breaks_after is not None and len(self.sent) >= self.breaks_after:
            return 400, {"error": "the storage is full"}
        assert hashlib.sha256(body).hexdigest() == digest
        self.sent[digest] = body
        return 200, {}

    def _commit(self, repository: str, body: bytes, url: str) -> Answer:
        folder = self.root / repository
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.messages.append(value["summary"])
            elif entry["key"] == "deletedFile":
                (folder / value["path"]).unlink()
            else:
                large = entry["key"] == "lfsFile"
                content = self.sent[value["oid"]] if large else base64.b64decode(value["content"])
                (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                (folder / value["path"]).write_bytes(content)
        commit = "1" * 40
        place = f"{url}/{repository}/commit/{commit}"
        return 200, {"success": True, "commitUrl": place, "commitOid": commit}


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    large = file["path"].endswith(LARGE)
    return {
        "path": file["path"],
        "uploadMode": "lfs" if large else "regular",
        "shouldIgnore": False,
    }
