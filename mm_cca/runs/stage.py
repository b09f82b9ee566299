"""A stage's folder: who may write to it, and what it was made with."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_cca.errors import UserError
from mm_cca.runs.files import write_json


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one process at a time; the lock ends with the process.

    Raises:
        UserError: another process holds it, or the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error}. Choose another folder.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UserError(
                f"{folder} is in use by process {file.read().strip() or '?'}. Wait for it, stop "
                "it, or choose another run.dir."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@dataclass(frozen=True)
class Stage:
    """A folder made by one stage, with the settings it was made with in ``stage.json``."""

    folder: Path
    settings: dict[str, Any]

    @property
    def _file(self) -> Path:
        return self.folder / "stage.json"

    def is_done(self) -> bool:
        """Whether the stage ended with these very settings.

        Raises:
            UserError: the folder was made, wholly or in part, with other settings.
        """
        if not self._file.exists():
            return False
        stored = json.loads(self._file.read_text())
        wanted = json.loads(json.dumps(self.settings))
        changed = [
            f"  - {key}: was {stored['settings'].get(key)!r}, is now {wanted.get(key)!r}"
            for key in sorted(set(stored["settings"]) | set(wanted))
            if stored["settings"].get(key) != wanted.get(key)
        ]
        if changed:
            listed = "\n".join(changed)
            raise UserError(
                f"{self.folder} was made with another recipe:\n{listed}\nNothing was changed. Set "
                f"the recipe back, choose another run.dir, or delete {self.folder} to make it anew."
            )
        return bool(stored["done"])

    @staticmethod
    def ended(folder: Path) -> bool:
        """Whether the stage that made a folder ended, with whatever settings."""
        file = folder / "stage.json"
        return file.exists() and bool(json.loads(file.read_text())["done"])

    def begin(self) -> None:
        """Note the settings before any work."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._file, {"done": False, "settings": self.settings})

    def finish(self) -> None:
        """Note that the work is complete."""
        write_json(self._file, {"done": True, "settings": self.settings})
