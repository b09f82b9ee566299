"""Several captions per image: which one trains it when, and what is a negative for it."""

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from mm_cca.config.mixtures import LossTerms
from mm_cca.data.token_cache import TokenCache, open_cache
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from mm_cca.training.drawn_captions import CaptionDraws, DrawnPlanner, drawn_columns
from mm_cca.training.planned_negatives import negative_settings
from mm_cca.training.schedule import training_schedule
from tests.support import runs
from tests.support.training import assert_same_training

ROWS = 12
SHORT = [runs.CAPTIONS[i].split()[1] for i in range(ROWS)]
SHORT[3] = ""


@pytest.fixture
def path(tmp_path: Path, tiny_folder: Path) -> Path:
    rows = [row | {"short": SHORT[i]} for i, row in enumerate(runs.rows_of(ROWS, split="train"))]
    values = runs.tiny_recipe(
        tmp_path, tiny_folder, runs.write_parquet(tmp_path / "d.parquet", rows)
    )
    values["data"] |= {"caption_column": ["caption", "short"], "caption_weights": [1, 3]}
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


def cache_of(path: Path, *overrides: str) -> TokenCache:
    recipe = runs.do(path, *overrides, stages=["prepare"])
    return open_cache(RunFolder.of(recipe).tokens / "train", 1)


def test_drawn_as_a_naive_reference_does_it():
    has = np.array([[True, True, True], [True, False, True], [False, False, True]] * 400)
    weights = [1.0, 2.0, 5.0]
    uniform = np.random.default_rng([7, 3, 0x6361]).random(len(has))
    expected = []
    for row, u in zip(has.tolist(), uniform, strict=True):
        shares = [w if there else 0.0 for w, there in zip(weights, row, strict=True)]
        target, total, column = u * sum(shares), 0.0, 0
        while (total := total + shares[column]) <= target:
            column += 1
        expected.append(column)
    drawn = drawn_columns(has, weights, 7, 3)
    assert drawn.tolist() == expected
    assert has[np.arange(len(has)), drawn].all(), "a caption that is missing was drawn"
    assert np.bincount(drawn[::3]) / 400 == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.07)
    assert drawn.tolist() != drawn_columns(has, weights, 7, 4).tolist()


def test_the_cache_holds_all_captions(path: Path):
    cache = cache_of(path)
    assert cache.captions == runs.CAPTIONS[:ROWS]
    texts = [list(pair) for pair in zip(runs.CAPTIONS[:ROWS], SHORT, strict=True)]
    assert cache.texts == texts
    columns = np.array([0, 1] * (ROWS // 2))
    assert cache.drawn(columns) == [row[c] for row, c in zip(texts, columns, strict=True)]


def test_a_row_without_any_caption_is_told(path: Path, tmp_path: Path):
    rows = [row | {"short": "x"} for row in runs.rows_of(ROWS, split="train")]
    rows[5] |= {"short": " ", "caption": None}
    runs.write_parquet(tmp_path / "d.parquet", rows)
    with pytest.raises(UserError, match=r"row 5: empty caption \(none in caption, short\)"):
        cache_of(path)
    assert len(cache_of(path, "data.max_bad=1")) == ROWS - 1


def test_a_changed_second_caption_is_another_content(path: Path, tmp_path: Path, capsys):
    cache_of(path)
    content = tmp_path / "run" / "tokens" / "train" / "content.json"
    before = json.loads(content.read_text())["sha256"]
    rows = [row | {"short": SHORT[i]} for i, row in enumerate(runs.rows_of(ROWS, split="train"))]
    rows[2]["short"] = "bird"
    runs.write_parquet(tmp_path / "d.parquet", rows)
    cache = cache_of(path)
    assert cache.texts is not None
    assert cache.texts[2] == [runs.CAPTIONS[2], "bird"]
    assert json.loads(content.read_text())["sha256"] != before
    assert "'blue owl | owl', is now 'blue owl | bird'" in capsys.readouterr().err


def test_every_epoch_trains_its_own_captions(path: Path):
    """Pairs, plan and prompts agree; a step across two epochs has captions of both."""
    cache = cache_of(path)
    recipe = runs.load_recipe(path, "train.batch_size=8")
    schedule = training_schedule(recipe, cache, LossTerms.of(recipe.loss))
    places = [schedule.step(i) for i in range(3)]
    rows = np.concatenate([pairs.rows for pairs in places])
    columns = np.concatenate([pairs.columns for pairs in places])
    for epoch in (0, 1):
        drawn = CaptionDraws(cache, [1, 3], 0).columns(epoch)
        part = slice(epoch * ROWS, (epoch + 1) * ROWS)
        assert columns[part].tolist() == drawn[rows[part]].tolist()
    again = training_schedule(recipe, cache, LossTerms.of(recipe.loss)).step(2)
    assert again.negatives.read().tolist() == places[2].negatives.read().tolist()
    assert again.columns.tolist() == places[2].columns.tolist()


def test_an_image_without_a_negative_in_one_epoch_keeps_its_own(path: Path):
    """``edit`` finds no attribute in the short captions."""
    cache = cache_of(path)
    recipe = runs.load_recipe(path, "loss.negatives=edit")
    draws = CaptionDraws(cache, [1, 3], 0)
    planner = DrawnPlanner(draws, np.arange(ROWS), negative_settings(recipe), 0)
    plan, captions = planner.epoch(1), draws.captions(1)
    short = draws.columns(1) == 1
    assert 0 < short.sum() < ROWS - 1
    for row in range(ROWS):
        assert (plan.negatives()[row, 0] == captions[row]) == short[row]
    assert plan.replaced["impossible"] == short.sum()


def test_resumed_training_is_the_same_bit_for_bit(path: Path, tmp_path: Path):
    keys = ["train.max_steps=6", "train.eval_every=0"]
    runs.do(path, *keys)
    whole, parts = tmp_path / "run", tmp_path / "parts"
    for stop in (2, 6):
        runs.do(path, *keys, f"train.stop_after={stop}", f"run.dir={parts}")
    assert_same_training(whole / "train", parts / "train")
    plan = parquet.read_table(whole / "train" / "negatives" / "epoch-0001.parquet").to_pydict()
    cache = open_cache(whole / "tokens" / "train", 1)
    assert plan["prompt"] == list(CaptionDraws(cache, [1, 3], 0).captions(1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["data.caption_weights=[1]"], "one weight for each of the 2 columns caption, short"),
        (["data.caption_weights=[1,0]"], "above 0"),
        (["data.caption_column=[caption, caption]"], "different columns"),
        (["data.caption_column=caption"], "[] with a single column of captions"),
        (["loss.objective=ddo"], "one column with loss.objective ddo"),
    ],
)
def test_keys_that_do_not_fit(path: Path, keys: list[str], message: str):
    assert message in runs.message_of(path, *keys)


def test_a_column_that_is_not_there_is_named(path: Path):
    with pytest.raises(UserError, match="caption_column is 'long', but"):
        cache_of(path, "data.caption_column=[caption, long]")
