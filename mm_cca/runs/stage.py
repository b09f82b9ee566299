"""A stage's folder: its lock, and the settings it was made with."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm_cca.config.stage_keys import reason_of
from mm_cca.errors import UserError
from mm_cca.runs.files import write_json

ABSENT = "not used"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; the lock ends with the process at the latest.

    Raises:
        UserError: another process has locked it, or the folder can't be written.
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
    """The folder of one stage; ``stage.json`` records the settings it was made with.

    Attributes:
        folder: of the stage.
        settings: what decides its result.
        grows: the setting (a number) that may be raised to extend a finished stage.
        until_done: settings that matter only when an unfinished stage is resumed.
    """

    folder: Path
    settings: dict[str, Any]
    grows: str | None = None
    until_done: dict[str, Any] = field(default_factory=dict)

    @property
    def _file(self) -> Path:
        return self.folder / "stage.json"

    def is_done(self) -> bool:
        """Whether the stage is finished with exactly these settings.

        Raises:
            UserError: the folder was made with other settings, finished or not.
        """
        if not self._file.exists():
            return False
        stored = json.loads(self._file.read_text())
        changed = _changes(stored["settings"], self.settings)
        before, now = self._growth(stored)
        if now > before or not stored["done"]:
            changed.pop(self.grows or "", None)
        if not stored["done"]:
            changed |= _changes(stored.get("until_done", {}), self.until_done)
        if changed:
            listed = "\n".join(f"  - {key}: {change}" for key, change in sorted(changed.items()))
            raise UserError(
                f"{self.folder} was made with another recipe:\n{listed}\nNo files were changed. "
                f"Restore the old values, choose another run.dir, or delete {self.folder} to start "
                "over."
            )
        return bool(stored["done"]) and now <= before

    def is_extended(self) -> bool:
        """Whether the stage is finished and ``grows`` has been raised since."""
        if not Stage.ended(self.folder):
            return False
        before, now = self._growth(json.loads(self._file.read_text()))
        return now > before

    def _growth(self, stored: dict[str, Any]) -> tuple[float, float]:
        if self.grows is None:
            return 0, 0
        now: float = self.settings[self.grows]
        return stored["settings"].get(self.grows, now), now

    @staticmethod
    def ended(folder: Path) -> bool:
        """Whether the stage of a folder is finished, with any settings."""
        file = folder / "stage.json"
        return file.exists() and bool(json.loads(file.read_text())["done"])

    def begin(self) -> None:
        """Record the settings, before any work."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(done=False)

    def finish(self) -> None:
        """Record that the stage is finished."""
        self._write(done=True)

    def _write(self, *, done: bool) -> None:
        entries = {"done": done, "settings": self.settings}
        if self.until_done:
            entries["until_done"] = self.until_done
        write_json(self._file, entries)


def _changes(stored: dict[str, Any], current: dict[str, Any]) -> dict[str, str]:
    """Setting -> "was A, is now B" where the values differ; nested settings one by one."""
    before, now = _flat(stored), _flat(json.loads(json.dumps(current)))
    changes = {}
    for key in before.keys() | now.keys():
        was, is_now = before.get(key, ABSENT), now.get(key, ABSENT)
        if was != is_now:
            shown = [value if value is ABSENT else repr(value) for value in (was, is_now)]
            reason = reason_of(key)
            changes[key] = f"was {shown[0]}, is now {shown[1]}" + (f" ({reason})" if reason else "")
    return changes


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}: ")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
