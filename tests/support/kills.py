"""Commands in child processes that are killed at a random moment, resumed and compared.

Children are forked by a server that has everything imported, so that a kill meets the work and not
the start of Python.
"""

import json
import multiprocessing
import random
import shutil
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mm_cca.cli.main import main
from mm_cca.runs.files import PARTIAL

TIMINGS = {
    "seconds",
    "seconds_per_image",
    "images_per_second",
    "tokens_per_second",
    "started",
    "finished",
    "time",
    "date",
}
"""Keys of JSON files that two runs of the same commands do not share."""
ASIDE = ("environment.json", ".lock")
"""Files that say when and where, not what."""
PATIENCE = 300


def context() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(
        [
            "mm_cca.cli.commands.run",
            "mm_cca.cli.commands.stages",
            "mm_cca.cli.commands.sweep",
            "mm_cca.cli.commands.export",
            "mm_cca.cli.commands.report",
            "mm_cca.adapters.emu3",
            "mm_cca.eval.evaluate",
            "open_clip",
        ]
    )
    return found


def _child(words: list[str], log: Path) -> None:
    with log.open("a") as file:
        sys.stdout = sys.stderr = file
        sys.exit(main(words))


def start(words: list[str], log: Path) -> BaseProcess:
    process = context().Process(target=_child, args=(words, log), daemon=True)
    process.start()
    return process


def finish(words: list[str], log: Path) -> float:
    """Run a command to its end; the seconds that it took."""
    began = time.monotonic()
    process = start(words, log)
    process.join(PATIENCE)
    assert process.exitcode == 0, log.read_text()[-3000:]
    return time.monotonic() - began


def kill(words: list[str], log: Path, seconds: float) -> bool:
    """Start a command and kill it; whether it was still at work."""
    process = start(words, log)
    process.join(seconds)
    process.kill()
    process.join(PATIENCE)
    assert process.exitcode in (0, -9), log.read_text()[-3000:]
    return process.exitcode == -9


@dataclass
class Killing:
    """A command, the folder that it works in, and what it makes there undisturbed.

    Attributes:
        words: of the command line; the command writes below ``folder`` only.
        folder: as it is before the command.
        target: a folder or file that the command makes once and for all, and then refuses to.
        seconds: that the undisturbed command took.
    """

    words: list[str]
    folder: Path
    target: Path | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._before, self._expected, self._log = (
            self.folder.parent / name for name in ("before", "expected", "log.txt")
        )
        for path in (self._before, self._expected):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.folder, self._before)
        self.seconds = finish(self.words, self._log)
        self.folder.rename(self._expected)

    def killed(self, number: int, seed: int) -> int:
        """Kill it at random moments, resume it each time, let it end, and compare.

        Args:
            number: of kills in a row.
            seed: of the moments.

        Returns:
            how many kills met the command at work.
        """
        moments, longest, met = random.Random(seed), self.seconds, 0
        while not met and longest > self.seconds / 100:
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.copytree(self._before, self.folder)
            met = sum(
                kill(self.words, self._log, moments.uniform(0, longest)) for _ in range(number)
            )
            longest /= 2  # the machine has become faster: it ended before it was killed
        if self.target is None or not self.target.exists():
            finish(self.words, self._log)
        differences = compare(self.folder, self._expected)
        assert differences == [], (self.words, seed, differences[:10])
        return met


def compare(folder: Path, expected: Path) -> list[str]:
    """What differs: partial files, files that only one has, other content."""
    ours, theirs = contents(folder), contents(expected)
    partial = [f"{name} is left" for name in ours if PARTIAL in name]
    sets = [f"{name} is in one of them only" for name in sorted(ours.keys() ^ theirs.keys())]
    both = sorted(ours.keys() & theirs.keys())
    return [*partial, *sets, *(f"{n} differs" for n in both if ours[n] != theirs[n])]


def contents(folder: Path) -> dict[str, Any]:
    """Relative name -> content of every file; of JSON without timings."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name in ASIDE:
            continue
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text()))
            if name.endswith("eval/stage.json"):
                del found[name]["files"]  # digests of files with timings, compared here without
        elif path.suffix == ".jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".safetensors":
            found[name] = _tensors(path)
        else:
            found[name] = path.read_bytes()
    return found


def _tensors(path: Path) -> tuple[dict[str, str], dict[str, tuple[Any, ...]]]:
    """Notes and the bytes of every tensor: the library writes notes in an order of chance."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata() or {}, {
            name: (
                x.dtype,
                tuple(x.shape),
                x.contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
            )
            for name, x in tensors.items()
        }


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in TIMINGS}
    return [_timeless(v) for v in value] if isinstance(value, list) else value
