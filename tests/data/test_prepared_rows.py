"""What ``prepare`` leaves out, mirrors, tells and shows; and that processes change nothing."""

import io
import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from mm_cca.adapters.base import UnifiedModel
from mm_cca.cli.commands import prepare as prepare_command
from mm_cca.cli.commands.prepare import IMAGE_TOKENIZER
from mm_cca.config.schema import Recipe
from mm_cca.data import picture_reader
from mm_cca.data.images import decode_image
from mm_cca.data.picture_reader import num_workers_of
from mm_cca.data.token_cache import TokenCache, open_cache
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from tests.support import runs

ROWS = 12


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return runs.rows_of(ROWS, split="train")


def recipe_of(folder: Path, model: Path, rows: list[dict[str, Any]], **data: Any) -> Path:
    values = runs.tiny_recipe(folder, model, runs.write_parquet(folder / "data.parquet", rows))
    values["data"] |= data
    return runs.write_recipe(folder / "recipe.yaml", values)


def prepare(path: Path, *overrides: str) -> tuple[Recipe, TokenCache]:
    recipe = runs.do(path, *overrides, stages=["prepare"])
    return recipe, open_cache(RunFolder.of(recipe).tokens / "train", recipe.data.variants)


def codes_of(cache: TokenCache, variant: int = 0) -> torch.Tensor:
    return cache.codes(torch.arange(len(cache)), torch.full((len(cache),), variant))


def test_processes_change_nothing(tmp_path: Path, tiny_folder: Path, rows):
    """Two splits of a cache with variants, a bad row and batches across shards: the same files."""
    rows[7]["image"] = b"no picture"
    path = recipe_of(tmp_path, tiny_folder, rows, variants=3, max_zoom=1.3, max_bad=1)
    prepare(path, f"run.dir={tmp_path / 'none'}", "data.num_workers=0")
    prepare(path, f"run.dir={tmp_path / 'two'}", "data.num_workers=2")
    one, two = (runs.files_of(tmp_path / name / "tokens" / "train") for name in ("none", "two"))
    same = [name for name in one if name.endswith((".arrow", "contents/000000005.json", "jsonl"))]
    assert len(same) >= 4
    assert {name: one[name] for name in same} == {name: two[name] for name in same}
    told = json.loads((tmp_path / "two/tokens/train/bad_rows.jsonl").read_text())
    assert told["row"] == 7
    assert "not a readable image" in told["problem"]


def test_a_process_that_dies_is_one_sentence(tmp_path: Path, tiny_folder: Path, rows, monkeypatch):
    parent = os.getpid()

    def dies(*_: Any) -> torch.Tensor:
        assert os.getpid() != parent, "decoded in the main process"
        os._exit(1)

    monkeypatch.setattr("mm_cca.data.shard_filler.decode_large", dies)
    path = recipe_of(tmp_path, tiny_folder, rows, num_workers=2)
    with pytest.raises(UserError, match="2 processes that decode pictures died") as caught:
        prepare(path)
    assert "data.num_workers=2, or 0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_processes_are_started_where_there_are_many_pictures(monkeypatch):
    monkeypatch.setattr(picture_reader.os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(picture_reader.sys, "platform", "linux")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [num_workers_of(None, n) for n in (0, 1999, 2000)] == [0, 0, 8]
    assert [num_workers_of(n, 5) for n in (0, 3, 20)] == [0, 3, 5]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert num_workers_of(None, 10**6) == 3


def test_every_second_version_is_mirrored(tmp_path: Path, tiny_folder: Path, tiny_model, rows):
    path = recipe_of(tmp_path, tiny_folder, rows, variants=3, flip=True)
    _, cache = prepare(path)
    cells = [{"bytes": row["image"], "path": None} for row in rows]
    pixels = torch.stack([decode_image(cell, 16, 16) for cell in cells])
    assert not torch.equal(pixels, pixels.flip(-1))
    for variant, images in enumerate((pixels, pixels.flip(-1), pixels)):
        assert torch.equal(codes_of(cache, variant), tiny_model.encode(images)), variant


def test_flips_need_versions(tmp_path: Path, tiny_folder: Path, rows):
    path = recipe_of(tmp_path, tiny_folder, rows, flip=True)
    assert "false with data.variants=1" in runs.message_of(path)


def test_small_pictures_and_captions_of_other_lengths_are_left_out(
    tmp_path: Path, tiny_folder: Path, rows, capsys
):
    """They are no bad rows: data.max_bad is 0."""
    rows[2]["image"] = runs.png(Image.new("RGB", (40, 9)))
    rows[4]["caption"], rows[5]["caption"] = "owl", "x" * 31
    keys = {"min_image_side": 10, "min_caption_chars": 4, "max_caption_chars": 30}
    _, cache = prepare(recipe_of(tmp_path, tiny_folder, rows, **keys))
    assert cache.source_rows == [0, 1, 3, *range(6, ROWS)]
    err = capsys.readouterr().err
    assert "train: 3 of 12 rows are left out (1 by data.min_image_side, 1 by" in err
    lines = (tmp_path / "run/tokens/train/left_out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"row": 4, "problem": "left out: 3 characters, data.min_caption_chars is 4"},
        {"row": 5, "problem": "left out: 31 characters, data.max_caption_chars is 30"},
        {"row": 2, "problem": "left out: 40 x 9 pixels, data.min_image_side is 10"},
    ]


def test_a_long_caption_beside_a_short_one_is_not_drawn(tmp_path: Path, tiny_folder: Path, rows):
    rows = [row | {"long": "x" * (10 + i)} for i, row in enumerate(rows)]
    keys = {"caption_column": ["long", "caption"], "max_caption_chars": 15}
    _, cache = prepare(recipe_of(tmp_path, tiny_folder, rows, **keys))
    assert len(cache) == ROWS
    assert cache.texts is not None
    assert [bool(long) for long, _ in cache.texts] == [i <= 5 for i in range(ROWS)]
    assert cache.captions[6] == runs.CAPTIONS[6]


def test_limits_that_leave_nothing(tmp_path: Path, tiny_folder: Path, rows):
    path = recipe_of(tmp_path, tiny_folder, rows, min_caption_chars=9, max_caption_chars=8)
    assert "at least data.min_caption_chars, 9" in runs.message_of(path)


def test_rows_that_are_there_twice_are_told(tmp_path: Path, tiny_folder: Path, rows, capsys):
    rows[3]["image"] = rows[8]["image"] = rows[1]["image"]
    rows[6]["caption"] = f"  {rows[0]['caption'].upper()} "
    prepare(recipe_of(tmp_path, tiny_folder, rows))
    assert (
        "train: 2 rows have the same picture as an earlier row, 1 row has the same caption as an "
        "earlier row; all are trained on"
    ) in capsys.readouterr().err


def test_the_sheet_shows_what_was_encoded(
    tmp_path: Path, tiny_folder: Path, tiny_model: UnifiedModel, rows
):
    rows[0]["caption"] = "<b>owls</b> & hands"
    path = recipe_of(tmp_path, tiny_folder, rows, variants=2, max_zoom=1.4)
    _, cache = prepare(path)
    with Image.open(tmp_path / "run/data/train.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    # 16 pixels are shown eight times as large, after labels of 228 and below a title of 35.
    step, left, top = 128 + 8, 228, 35
    with Image.open(io.BytesIO(rows[2]["image"])) as own:
        shown = pixels[top + 2 * step :, left:][:128, :128]
        assert np.array_equal(shown[::8, ::8], np.asarray(own.convert("RGB")))
    codes = codes_of(cache, 1)[2:3]
    decoded = tiny_model.decode(codes, (4, 4))[0].permute(1, 2, 0).numpy()
    shown = pixels[top + 2 * step :, left + 2 * step :][:128, :128]
    assert np.array_equal(shown[::8, ::8], decoded)
    page = (tmp_path / "run/data/train.html").read_text()
    assert "&lt;b&gt;owls&lt;/b&gt; &amp; hands" in page
    assert page.count("<tr>") == 1 + ROWS


def test_a_prepare_that_ended_after_the_last_shard_shows_them_all_the_same(
    tmp_path: Path, tiny_folder: Path, rows, monkeypatch: pytest.MonkeyPatch
):
    path = recipe_of(tmp_path, tiny_folder, rows)
    with monkeypatch.context() as patched:
        patched.setattr(prepare_command, "write_data_sheet", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(path)
    stage = tmp_path / "run/tokens/train/stage.json"
    assert not json.loads(stage.read_text())["done"]
    prepare(path)
    again = json.loads(stage.read_text())
    assert again["done"]
    assert len(again[IMAGE_TOKENIZER]) == 64
    assert {file.name for file in (tmp_path / "run/data").iterdir()} == {"train.html", "train.png"}
