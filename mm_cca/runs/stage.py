"""A stage's folder: its lock, and the settings it was made with."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NotRequired

import portalocker
from typing_extensions import TypedDict

from mm_cca.config.read_files import is_there, json_of, refuse_no_file, unreadable
from mm_cca.config.stage_keys import CONTENT, is_default, reason_of
from mm_cca.errors import UserError
from mm_cca.runs.environment import environment
from mm_cca.runs.files import PARTIAL, refuse_file_as_folder, write_json

ABSENT = "not used"
FILE = "stage.json"
OWN = ("done", "settings", "until_done")


class _Record(TypedDict):
    """What ``stage.json`` must hold; ``weights`` and ``files`` are name -> sha256."""

    done: bool
    settings: dict[str, Any]
    until_done: NotRequired[dict[str, Any]]
    environments: NotRequired[list[dict[str, Any]]]
    weights: NotRequired[dict[str, str]]
    files: NotRequired[dict[str, str]]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; the lock ends with the process at the latest.

    Raises:
        UserError: another process has locked it, or the folder can't be written.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            refuse_no_file(path)
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error}. Choose another folder.") from error
    with file:
        try:
            portalocker.lock(
                file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING
            )
        except portalocker.LockException as error:
            raise UserError(
                f"{folder} is in use by process {_written_in(file)}. Wait for it, stop it, or "
                "choose another run.dir."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _written_in(file: IO[str]) -> str:
    try:
        file.seek(0)
        return file.read().strip() or "?"
    except OSError:  # on Windows nobody else may read what is locked
        return "?"


@dataclass(frozen=True)
class Stage:
    """The folder of one stage; ``stage.json`` records the settings it was made with.

    Attributes:
        folder: of the stage.
        settings: what decides its result. A path followed by a setting of the same name and
            ``CONTENT`` is compared by that digest, where both sides have one.
        grows: the setting (a number) that may be raised to extend a finished stage.
        until_done: settings that matter only when an unfinished stage is resumed.
        aside: settings that are recorded but compared elsewhere, by what they stand for.
        results: patterns of what an unfinished stage goes on from; where none matches, the folder
            holds nothing yet and accepts other settings. Empty: it always holds something.
    """

    folder: Path
    settings: dict[str, Any]
    grows: str | None = None
    until_done: dict[str, Any] = field(default_factory=dict)
    aside: tuple[str, ...] = ()
    results: tuple[str, ...] = ()

    @property
    def _file(self) -> Path:
        return self.folder / FILE

    def is_done(self) -> bool:
        """Whether the stage is finished with exactly these settings.

        Raises:
            UserError: the folder was made with other settings, finished or not.
        """
        stored = recorded(self.folder)
        if stored is None or (not stored["done"] and self.holds_nothing()):
            return False
        changed = changes_of(stored["settings"], self.settings)
        before, now = self._growth(stored)
        if now > before or not stored["done"]:
            changed.pop(self.grows or "", None)
        if not stored["done"]:
            changed |= changes_of(stored.get("until_done", {}), self.until_done)
        for name in self.aside:
            changed.pop(name, None)
        if changed:
            listed = "\n".join(f"  - {key}: {change}" for key, change in sorted(changed.items()))
            raise UserError(
                f"{self.folder} was made with another recipe:\n{listed}\nIt was left as it is. "
                f"Restore the old values, choose another run.dir, or delete {self.folder} to start "
                "over."
            )
        return bool(stored["done"]) and now <= before

    def holds_nothing(self) -> bool:
        """Whether the folder has none of the ``results``, if these are known."""
        if not self.results:
            return False
        found = (path for pattern in self.results for path in self.folder.glob(pattern))
        return all(path.suffix == PARTIAL for path in found)

    def is_extended(self) -> bool:
        """Whether the stage is finished and ``grows`` has been raised since."""
        stored = recorded(self.folder)
        if stored is None or not stored["done"]:
            return False
        before, now = self._growth(stored)
        return now > before

    def _growth(self, stored: dict[str, Any]) -> tuple[float, float]:
        if self.grows is None:
            return 0, 0
        now: float = self.settings[self.grows]
        before = stored["settings"].get(self.grows, now)
        if not isinstance(before, int | float):
            problem = f"{self.grows!r} is {before!r}, not a number"
            raise unreadable(self._file, problem, advice_for(self.folder))
        return before, now

    @staticmethod
    def ended(folder: Path) -> bool:
        """Whether the stage of a folder is finished, with any settings."""
        stored = recorded(folder)
        return stored is not None and bool(stored["done"])

    def begin(self, **more: Any) -> None:
        """Record the settings and this environment, once all checks have passed.

        ``more`` is recorded too, and kept to the end.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        earlier = [] if self.holds_nothing() else environments_of(self.folder)
        here = environment()
        environments = earlier if here in earlier else [*earlier, here]
        self._write(done=False, environments=environments, **more)

    def finish(self, **more: Any) -> None:
        """Record that the stage is finished, and with ``more`` what is known only now."""
        known = {k: v for k, v in (recorded(self.folder) or {}).items() if k not in OWN}
        self._write(done=True, **known | more)

    def _write(self, *, done: bool, **more: Any) -> None:
        entries: dict[str, Any] = {"done": done, "settings": self.settings}
        if self.until_done:
            entries["until_done"] = self.until_done
        write_json(self._file, entries | {name: value for name, value in more.items() if value})


def advice_for(folder: Path) -> str:
    """What to do where the record of a stage is damaged."""
    return (
        f"It holds the settings of this stage. Restore it, or delete {folder} to make the stage "
        "anew."
    )


def recorded(folder: Path) -> dict[str, Any] | None:
    """What the ``stage.json`` of a folder holds; None if there is none.

    Raises:
        UserError: it is damaged, or the folder is a file.
    """
    refuse_file_as_folder(folder)
    path = folder / FILE
    if not is_there(path):
        return None
    stored: dict[str, Any] = {**json_of(path, _Record, advice_for(folder))}
    return stored


def environments_of(folder: Path) -> list[dict[str, Any]]:
    """Versions and devices of the processes that made a stage, oldest first; perhaps empty."""
    stored = recorded(folder) or {}
    return list(stored.get("environments", []))


def changes_of(stored: dict[str, Any], current: dict[str, Any]) -> dict[str, str]:
    """Setting -> "was A, is now B" where the values differ; nested settings one by one."""
    before, now = _flat(stored), _flat(json.loads(json.dumps(current)))
    changes = {}
    for key in before.keys() | now.keys():
        if key.endswith(CONTENT):
            if key in before and key in now and before[key] != now[key]:
                changes[key.removesuffix(CONTENT)] = _other_content(before[key], now[key])
            continue
        if key + CONTENT in before and key + CONTENT in now:
            continue  # wherever it lies
        was, is_now = before.get(key, ABSENT), now.get(key, ABSENT)
        if was is ABSENT and is_default(key, is_now):
            continue  # a folder of an mm_cca that had no such key
        if was != is_now:
            shown = [value if value is ABSENT else repr(value) for value in (was, is_now)]
            reason = reason_of(key)
            changes[key] = f"was {shown[0]}, is now {shown[1]}" + (f" ({reason})" if reason else "")
    return changes


def _other_content(was: object, is_now: object) -> str:
    shown = [str(digest)[:12] for digest in (was, is_now)]
    return f"its content is another (sha256 was {shown[0]}..., is now {shown[1]}...)"


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}: ")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
