"""Every part of a finished run, damaged: each command that reads it tells so, or does without it.

A sample of all cases runs by default; ``MM_CCA_ALL_FAULTS=1`` runs all.
"""

import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import pytest

from mm_cca.cli.main import main
from tests.support.damages import damages_of

ALL = bool(os.environ.get("MM_CCA_ALL_FAULTS"))
SAMPLED = 25
LONGEST = 600
"""Seconds of one command, which takes one or two on an idle machine; a pipe without a writer would
take for ever."""
TOLD, DONE = 2, 0


def _recipe(folder: Path) -> list[str]:
    return [str(folder / "run" / "recipe.yaml"), f"run.tokens_dir={folder / 'tokens'}"]


VERBS: dict[str, Callable[[Path], list[str]]] = {
    "report": lambda folder: ["report", *_recipe(folder)],
    "prepare": lambda folder: ["prepare", *_recipe(folder)],
    "train": lambda folder: ["train", *_recipe(folder)],
    "sample": lambda folder: ["sample", *_recipe(folder)],
    "eval": lambda folder: ["eval", *_recipe(folder)],
    "export": lambda folder: ["export", str(folder / "run"), str(folder / "exported")],
    "export-samples": lambda folder: [
        *("export-samples", str(folder / "run"), "cca", str(folder / "images")),
        *("--format", "adm-npz"),
    ],
    "average": lambda folder: [
        *("average", str(folder / "run"), str(folder / "other"), "--into", str(folder / "mean"))
    ],
    "compare": lambda folder: [
        *("eval", "--compare"),
        *(str(folder / name / "report.json") for name in ("run", "other")),
    ],
}
READ_BY = {
    "run/recipe.yaml": ["report", "export"],
    "run/report.json": ["report", "export", "compare"],
    "run/report.html": ["report"],
    "run/contents.json": ["sample", "report"],
    "run/environment.json": ["report", "sample"],
    "run/train/metrics.jsonl": ["report", "train"],
    "run/train/stage.json": ["report", "train", "sample", "export", "average"],
    "run/train/base.json": ["train", "average"],
    "run/train/model/*": ["export", "sample", "average"],
    "run/train/checkpoints/*": ["train"],
    "run/train/negatives/*": ["train", "report"],
    "run/eval/stage.json": ["eval", "report"],
    "run/eval/*": ["report", "eval"],
    "run/samples/cca/stage.json": ["sample", "eval", "export-samples", "report"],
    "run/samples/cca/*": ["sample", "eval", "export-samples", "report"],
    "run/samples/base/*": ["sample"],
    "run": ["report", "export"],
    "run/train": ["train", "sample", "report", "export", "average"],
    "run/train/model": ["export", "sample"],
    "run/train/checkpoints": ["train"],
    "run/samples": ["sample", "eval", "report", "export-samples"],
    "run/samples/cca": ["sample", "eval", "report", "export-samples"],
    "run/eval": ["eval", "report"],
    "tokens": ["prepare", "train", "sample"],
    "tokens/*": ["prepare", "train", "sample"],
    "tokens/*/features/*": ["eval"],
}
"""Pattern of a file -> the commands that read it; the last pattern that fits counts."""
UNFINISHED = {
    "train": "train/stage.json",
    "sample": "samples/*/stage.json",
    "eval": "eval/stage.json",
}
"""A command that has nothing to do reads nothing: these stages are taken for unfinished."""


ALIKE = (
    "run/samples/*/00000[02-9].png",
    "run/samples/*/00001?.png",
    "run/samples/base?cfg*",
    "run/train/checkpoints/*2/*",
    "run/eval/base?cfg*",
    "tokens/heldout/*s/*",
    "tokens/train/contents/*0.json",
    "tokens/train/shards/*[0]/*",
    "tokens/train/shards/*15/*",
    "tokens/train/contents/*15.json",
)
"""Files of which there are others of the same kind."""


@pytest.fixture(scope="session")
def finished(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run``, ``tokens`` and a second run, ``other``, to copy."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("run", "tokens"):
        shutil.copytree(reported.parent / name, folder / name)
    shutil.copytree(folder / "run", folder / "other")
    return folder


def _names(folder: Path) -> Iterator[str]:
    """Files and folders."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == ".lock" or name.startswith("other/"):
            continue
        if any(fnmatch(name, pattern) for pattern in ALIKE):
            continue
        yield name


def _verbs_of(name: str) -> list[str]:
    fitting = [verbs for pattern, verbs in READ_BY.items() if fnmatch(name, pattern)]
    return fitting[-1] if fitting else []


def cases(folder: Path) -> list[tuple[str, str, str]]:
    """File, damage and command of every case."""
    return [
        (name, damage, verb)
        for name in _names(folder)
        for damage in damages_of(folder / name)
        for verb in _verbs_of(name)
    ]


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """End what waits for ever."""

    def stop(_signal: int, _frame: object) -> None:
        pytest.fail(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def status_of(finished: Path, name: str, damage: str, verb: str, folder: Path) -> int:
    """The exit status of a command on a damaged copy in ``folder``."""
    shutil.copytree(finished, folder)
    for stage in folder.glob(f"run/{UNFINISHED.get(verb, '-')}"):
        stored = json.loads(stage.read_text())
        stage.write_text(json.dumps(stored | {"done": False}))
    path = folder / name
    damages_of(path)[damage](path)
    with within(LONGEST):
        return main(VERBS[verb](folder))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without plots, which take seconds and read nothing."""
    for name in ("cost_plot", "trade_plot"):
        monkeypatch.setattr(f"mm_cca.eval.report.run_report.{name}", lambda *given: "")
    monkeypatch.setattr("mm_cca.eval.report.run_report.panels", lambda signals: {})


@pytest.mark.timeout(0)
@pytest.mark.usefixtures("quick")
def test_damaged_files_are_told(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chosen = cases(finished)
    if not ALL:
        chosen = random.Random(16).sample(chosen, SAMPLED)
    counts: Counter[int] = Counter()
    wrong = []
    for number, (name, damage, verb) in enumerate(chosen):
        status = status_of(finished, name, damage, verb, tmp_path / str(number))
        said = capsys.readouterr().err
        counts[status] += 1
        if status not in (TOLD, DONE):
            wrong.append(f"{verb} with {name}, {damage}: {said}")
        shutil.rmtree(tmp_path / str(number))
        if ALL and number % 100 == 99:
            with capsys.disabled():
                print(f"{number + 1} of {len(chosen)}, by exit status: {dict(counts)}", flush=True)
    assert not wrong, "\n".join(wrong)
