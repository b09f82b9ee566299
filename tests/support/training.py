"""Training runs on the tiny checkpoint, and comparisons of them."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mm_cca.training.train as training
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import TrainConfig
from mm_cca.data.token_cache import open_cache
from mm_cca.runs.folder import RunFolder
from mm_cca.training import checkpoint
from mm_cca.training.schedule import Schedule, training_schedule
from tests.support import runs

LONG = 120


def at(prepared: Path, folder: Path) -> Path:
    """A copy of a recipe in ``folder`` whose run is in ``folder`` too."""
    text = prepared.read_text()
    assert f"dir: {prepared.parent / 'run'}\n" in text
    path = folder / "recipe.yaml"
    path.write_text(text.replace(f"dir: {prepared.parent / 'run'}\n", f"dir: {folder / 'run'}\n"))
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def head_of(names: Iterable[str]) -> str:
    """The name of the output head's weight, with any prefix that it has on disk."""
    (name,) = [name for name in names if name.endswith("lm_head.weight")]
    return name


def assert_same_training(one: Path, other: Path) -> None:
    """Final weights and every metric are equal bit for bit."""
    assert runs.metrics(one) == runs.metrics(other)
    ours, theirs = weights(one / "model"), weights(other / "model")
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []


def newest(folder: Path) -> Path:
    return checkpoint.checkpoints(folder / "checkpoints")[-1]


def schedule_of(path: Path, *overrides: str) -> Schedule:
    recipe = runs.load_recipe(path, *overrides)
    cache = open_cache(RunFolder.of(recipe).tokens / "train", 1)
    return training_schedule(recipe, cache, LossTerms.of(recipe.loss))


def interrupted(recipe: Path, monkeypatch: pytest.MonkeyPatch, *keys: str) -> None:
    """Run a recipe until an error, as if it were killed, before its third step."""
    real = training.learning_rate

    def fails_at_two(step: int, config: TrainConfig) -> float:
        if step == 2:
            raise RuntimeError("killed")
        return real(step, config)

    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", fails_at_two)
        with pytest.raises(RuntimeError, match="killed"):
            runs.do(recipe, *keys)
