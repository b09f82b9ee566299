"""SIGKILL at random moments: the same command resumes and ends with the same files.

A run is killed three times by default; ``MM_CCA_ALL_FAULTS=1 pytest -s tests/runs/test_kills.py``
kills each command ten times, and prints how many kills met it at work.
"""

import os
import shutil
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.kills import Killing, finish

ALL = bool(os.environ.get("MM_CCA_ALL_FAULTS"))
ROUNDS = 10

JOBS: dict[str, tuple[str, list[str]]] = {
    "prepare": ("empty", ["prepare", "RECIPE"]),
    "reference": ("prepare", ["prepare", "RECIPE", "train.reference=cached"]),
    "train": ("prepare", ["train", "RECIPE"]),
    "lora": ("prepare", ["train", "RECIPE", "train.tuning=lora"]),
    "best": ("prepare", ["train", "RECIPE", "train.keep=best", "train.eval_every=2"]),
    "sample": ("train", ["sample", "RECIPE"]),
    "eval": ("sample", ["eval", "RECIPE"]),
    "report": ("eval", ["report", "RECIPE"]),
    "sweep": ("prepare", ["sweep", "RECIPE", "loss.beta=[0.02,0.05]"]),
    "export": ("train", ["export", "RUN", "RUN/../out"]),
    "export-samples": (
        "sample",
        ["export-samples", "RUN", "cca", "RUN/../out", "--format=adm-npz"],
    ),
    "run": ("empty", ["run", "RECIPE"]),
}
"""Name -> after which command it starts, and its words."""


class Bench:
    """A recipe, and its run folder after each command, which is made once and copied."""

    def __init__(self, root: Path, model: Path) -> None:
        self._root, self.folder = root, root / "work"
        data = runs.two_splits(root / "data.parquet", 20, 16)
        values = runs.tiny_recipe(self.folder, model, data)
        values["data"]["heldout_split"] = "heldout"
        values["train"].update(max_steps=6)
        values["sample"]["num_images"] = 8
        self._recipe = runs.write_recipe(root / "recipe.yaml", values)
        self._made = {"empty": root / "after-empty"}
        self._made["empty"].mkdir()
        finish(["ls"], root / "log.txt")  # starts the server, whose imports take a while

    def words(self, name: str) -> list[str]:
        places = {"RECIPE": str(self._recipe), "RUN": str(self.folder / "run")}
        return [
            str(self.folder / word.removeprefix("RUN/../"))
            if word.startswith("RUN/")
            else places.get(word, word)
            for word in JOBS[name][1]
        ]

    def killing(self, name: str) -> Killing:
        """The command, in a folder as it is before it."""
        self._restore(self._after(JOBS[name][0]))
        words = self.words(name)
        target = next((Path(word) for word in words if word.startswith(f"{self.folder}/out")), None)
        return Killing(words, self.folder, target)

    def _restore(self, made: Path) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(made, self.folder)

    def _after(self, name: str) -> Path:
        if name not in self._made:
            self._restore(self._after(JOBS[name][0]))
            finish(self.words(name), self._root / "log.txt")
            self._made[name] = Path(shutil.copytree(self.folder, self._root / f"after-{name}"))
        return self._made[name]


@pytest.fixture(scope="module")
def bench(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("kills"), tiny_folder)


@pytest.mark.parametrize("name", JOBS if ALL else ["run"])
def test_a_command_killed_at_any_moment_ends_the_same(bench: Bench, name: str):
    killing = bench.killing(name)
    number = 1 if ALL else 3
    met = [killing.killed(number, seed) for seed in range(ROUNDS if ALL else 1)]
    print(f"{name}: {sum(met)} of {number * len(met)} kills met it at work")
    assert sum(met)
