"""The learning rate, and what is refused before the first step."""

import math
from pathlib import Path

import pytest

import mm_cca.training.train as training
from mm_cca.config.schema import TrainConfig
from mm_cca.errors import UserError
from tests.support import runs


def test_full_tuning_in_half_precision_is_refused(tiny_folder: Path, tmp_path: Path):
    data = runs.two_splits(tmp_path / "data.parquet")
    values = runs.tiny_recipe(tmp_path, tiny_folder, data)
    values["model"]["dtype"] = "bfloat16"
    path = runs.write_recipe(tmp_path / "recipe.yaml", values)
    with pytest.raises(UserError, match=r"round most updates away.*model\.dtype=float32"):
        runs.do(path)
    runs.do(path, "train.tuning=lora", "train.reference=lora", f"run.dir={tmp_path / 'lora'}")


def test_batch_larger_than_the_data(recipe: Path):
    with pytest.raises(UserError, match=r"batch_size is 20, but there are only 16 usable images"):
        runs.do(recipe, "train.batch_size=20")


def test_one_caption_is_not_enough_for_cca(tiny_folder: Path, tmp_path: Path):
    rows = [row | {"caption": "same", "split": "train"} for row in runs.rows_of(6)]
    data = runs.write_parquet(tmp_path / "data.parquet", rows)
    path = runs.write_recipe(
        tmp_path / "recipe.yaml", runs.tiny_recipe(tmp_path, tiny_folder, data)
    )
    with pytest.raises(UserError, match="at least two distinct captions"):
        runs.do(path)
    runs.do(path, "loss.objective=nll", "run.dir=" + str(tmp_path / "nll"), "train.max_steps=1")


def config(**changes: object) -> TrainConfig:
    values = {"max_steps": 10, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 2.0}
    return TrainConfig(**(values | changes))


def test_cosine_schedule_by_hand():
    rates = [training.learning_rate(step, config(warmup_steps=2)) for step in range(10)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(1.0)  # half of the 8 steps after the warm-up
    assert rates[4] == pytest.approx(1 + math.sqrt(0.5))
    assert rates[9] == pytest.approx(1 + math.cos(7 / 8 * math.pi))
    assert training.learning_rate(10, config(warmup_steps=2)) == pytest.approx(0.0, abs=1e-12)


def test_constant_schedule_by_hand():
    rates = [
        training.learning_rate(s, config(schedule="constant", warmup_steps=4)) for s in range(10)
    ]
    assert rates == [0.5, 1.0, 1.5] + [2.0] * 7


def test_warmup_as_long_as_the_run():
    rates = [training.learning_rate(step, config(warmup_steps=10)) for step in range(10)]
    assert rates == pytest.approx([0.2 * (i + 1) for i in range(10)])


def test_train_before_prepare(recipe: Path, tmp_path: Path):
    with pytest.raises(UserError, match="mm-cca prepare"):
        runs.do(recipe, f"run.tokens_dir={tmp_path / 'none'}", stages=["train"])
