"""Rows whose caption can't be used: told before any image is encoded, left out within max_bad."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.data.long_captions import long_captions
from mm_cca.data.token_cache import open_cache
from mm_cca.errors import UserError
from mm_cca.negatives import NegativeSettings
from mm_cca.runs.folder import RunFolder
from mm_cca.training.planned_negatives import plan_negatives
from tests.support import runs
from tests.support.training import schedule_of

LONG = " ".join(["a red owl"] * 300)


def recipe_with(folder: Path, model: Path, captions: list[str | None], **data: Any) -> Path:
    rows = runs.rows_of(len(captions), split="train")
    for row, caption in zip(rows, captions, strict=True):
        row["caption"] = caption
    values = runs.tiny_recipe(folder, model, runs.write_parquet(folder / "data.parquet", rows))
    values["data"] |= data
    return runs.write_recipe(folder / "recipe.yaml", values)


@pytest.mark.parametrize(
    ("caption", "told"),
    [(None, r"empty caption \(None\)"), (LONG, r"caption too long: \d+ tokens")],
)
def test_a_caption_is_told_before_any_image_is_encoded(
    tiny_folder: Path, tmp_path: Path, caption: str | None, told: str, monkeypatch: Any
):
    path = recipe_with(tmp_path, tiny_folder, [caption, *runs.CAPTIONS[1:8]])
    monkeypatch.setattr(
        "mm_cca.adapters.emu3.Emu3.encode", lambda *_: pytest.fail("an image was encoded")
    )
    with pytest.raises(UserError, match=rf"The first is row 0: {told}.*data\.max_bad=1"):
        runs.do(path, stages=["prepare"])
    (line,) = runs.json_lines(tmp_path / "run" / "tokens" / "train" / "bad_rows.jsonl")
    assert line["row"] == 0


def test_one_long_caption_is_left_out_and_listed(tiny_folder: Path, tmp_path: Path):
    captions = runs.CAPTIONS[:8]
    path = recipe_with(tmp_path, tiny_folder, [*captions[:5], LONG, *captions[6:]], max_bad=1)
    recipe = runs.do(path, "train.max_steps=1")
    cache = open_cache(RunFolder.of(recipe).tokens / "train", 1)
    assert cache.source_rows == [0, 1, 2, 3, 4, 6, 7]
    (line,) = runs.json_lines(tmp_path / "run" / "tokens" / "train" / "bad_rows.jsonl")
    assert line["row"] == 5
    assert line["problem"].startswith("caption too long: ")


def test_the_longest_caption_that_fits_is_kept(tiny_model: UnifiedModel, tiny_folder: Path):
    recipe = runs.load_recipe(
        runs.unread_recipe(tiny_folder.parent), f"model.path={tiny_folder}", "data.max_bad=0"
    )
    grid = grid_of(tiny_model, recipe.data.image_size)
    room = tiny_model.max_tokens - len(tiny_model.layout(grid).tokens)
    empty = len(tiny_model.prompt_ids([""], grid)[0])
    fits = "!" * (room - empty)
    assert len(tiny_model.prompt_ids([fits], grid)[0]) == room
    long = long_captions(tiny_model, [fits, fits + "!"], [3, 9], recipe.data)
    assert list(long) == [9]
    assert f"{room + 1} tokens, but an image of [16, 16] leaves {room}" in long[9]


CONTAINED = ["owl", "a red owl", "a green owl", "an owl in a tree", "two owl friends", "owl art"]


def test_a_caption_inside_all_others_is_left_out_of_training(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = recipe_with(tmp_path, tiny_folder, list(CONTAINED))
    with pytest.raises(UserError, match=r"for 1 of 6 captions .*data\.max_bad=1 \(now 0\)"):
        runs.do(path, stages=["prepare"])
    runs.do(path, "data.max_bad=1", "train.max_steps=3")
    assert "1 of 6 rows are not trained on" in capsys.readouterr().err
    folder = tmp_path / "run" / "train" / "negatives"
    (line,) = runs.json_lines(folder / "left_out.jsonl")
    assert (line["row"], line["caption"]) == (0, "owl")
    table = pq.read_table(folder / "epoch-0000.parquet").to_pydict()
    assert table["image"] == [1, 2, 3, 4, 5]
    assert table["prompt"] == CONTAINED[1:]
    assert "owl" not in table["negative"]
    schedule = schedule_of(path, "data.max_bad=1")
    seen = np.concatenate([schedule.step(step).rows for step in range(5)])
    assert sorted(set(seen.tolist())) == [1, 2, 3, 4, 5]


def test_rows_left_out_keep_rows_negatives_and_captions_together():
    captions = ["x", "a x", "b x", "c x", "d x"]
    settings = NegativeSettings(mixture={"shuffle": 1.0})
    planner, left_out = plan_negatives(captions, settings, seed=0, may_leave_out=1)
    assert left_out.rows == [0]
    assert left_out.kept.tolist() == [1, 2, 3, 4]
    negatives = planner.epoch(0).negatives()[:, 0].tolist()
    assert sorted(negatives) == captions[1:]
    assert all(n != captions[row] for n, row in zip(negatives, left_out.kept, strict=True))


def test_captions_that_all_contain_each_other_are_refused_whatever_max_bad_is():
    captions = ["owl", "owl owl", "owl owl owl"]
    with pytest.raises(UserError, match="for 3 of 3 captions") as caught:
        plan_negatives(
            captions, NegativeSettings(mixture={"shuffle": 1.0}), seed=0, may_leave_out=9
        )
    assert "max_bad" not in json.dumps(str(caught.value))
