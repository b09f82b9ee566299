"""The run folder: where everything lies, who may write, and which stages are done."""

import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from mm_cca.config import dump
from mm_cca.errors import UserError
from mm_cca.schema import AnyRecipe

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "open-clip-torch",
    "peft",
    "torchmetrics",
)


@dataclass(frozen=True)
class RunFolder:
    """Paths inside ``run.dir``, and what several runs may share.

    Attributes:
        root: ``run.dir``.
        tokens: the token cache.
        reference: the cache of ``train.reference=cached``.
        trained: the run whose models are drawn: this one, or ``run.trained``. It has the token
            cache too, if ``run.tokens_dir`` names no other.
    """

    root: Path
    tokens: Path
    reference: Path
    trained: Path

    @property
    def train(self) -> Path:
        return self.trained / "train"

    @property
    def control(self) -> Path:
        return self.trained / "control"

    def trained_model(self, source: str) -> Path:
        """The folder that the training of ``cca`` or ``control`` wrote.

        Raises:
            UserError: it was not trained to the end.
        """
        folder = {"cca": self.train, "control": self.control}[source]
        if not (folder / "model").is_dir():
            where = "" if self.trained == self.root else f" in {self.trained} (run.trained)"
            raise UserError(
                f"{folder / 'model'} does not exist: train the {source} model to the end{where} "
                "first: `mm-cca train RECIPE`."
            )
        return folder / "model"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def eval(self) -> Path:
        return self.root / "eval"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @classmethod
    def of(cls, recipe: AnyRecipe) -> "RunFolder":
        """The folder that a recipe names."""
        root, run = Path(recipe.run.dir), recipe.run
        trained = root if run.trained is None else Path(run.trained)
        return cls(
            root,
            trained / "tokens" if run.tokens_dir is None else Path(run.tokens_dir),
            root / "reference" if run.reference_dir is None else Path(run.reference_dir),
            trained,
        )

    def describe(self, recipe: AnyRecipe) -> None:
        """Write ``recipe.yaml`` and ``environment.json``."""
        if recipe.run.trained is not None:  # found again from any working directory
            trained = str(Path(recipe.run.trained).resolve())
            recipe = replace(recipe, run=replace(recipe.run, trained=trained))
        write_text(self.root / "recipe.yaml", dump(recipe))
        write_json(self.root / "environment.json", environment())


def environment() -> dict[str, Any]:
    """Versions, device and git commit of this process."""
    import torch

    versions = {name: metadata.version(name) for name in PACKAGES}
    cuda = torch.cuda.is_available()
    return {
        "mm_cca": metadata.version("mm-cca"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **versions,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "num_devices": torch.cuda.device_count() if cuda else 0,
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


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


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_json(path: Path, value: Any) -> None:
    """``write_text`` of indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")
