"""Captioned images: every source, its columns and splits, and rows that can't be used."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mm_cca.config.load import load_config
from mm_cca.config.schema import DataConfig
from mm_cca.data.images import decode_image, images_of, load_split
from mm_cca.data.token_cache import open_cache
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from tests.support import runs


def config(path: Path | str, **changes: Any) -> DataConfig:
    return DataConfig(**({"path": str(path), "image_size": [16, 16]} | changes))


def pixels_of(image: Image.Image) -> torch.Tensor:
    return decode_image({"bytes": runs.png(image), "path": None}, 16, 16)


def test_parquet(tmp_path: Path):
    data = config(runs.write_parquet(tmp_path / "data.parquet", runs.rows_of(5)))
    split = load_split(data, "train")
    assert split.captions == runs.CAPTIONS[:5]
    assert split.rows == [0, 1, 2, 3, 4]
    assert split.bad == []
    pixels, captions = images_of(split, data)
    assert captions == runs.CAPTIONS[:5]
    assert torch.equal(pixels, torch.stack([pixels_of(runs.picture(i)) for i in range(5)]))


def test_imagefolder_with_metadata(tmp_path: Path):
    data = config(runs.write_imagefolder(tmp_path / "images", 4), caption_column="text")
    split = load_split(data, "train")
    assert split.captions == runs.CAPTIONS[:4]
    pixels, _ = images_of(split, data)
    assert torch.equal(pixels, torch.stack([pixels_of(runs.picture(i)) for i in range(4)]))


def test_imagefolder_with_a_folder_for_each_split(tmp_path: Path):
    runs.write_imagefolder(tmp_path / "images" / "train", 4)
    runs.write_imagefolder(tmp_path / "images" / "test", 2)
    data = config(tmp_path / "images", caption_column="text")
    assert len(load_split(data, "train").captions) == 4
    assert len(load_split(data, "test").captions) == 2


def test_named_columns(tmp_path: Path):
    rows = [{"drawing": row["image"], "title": row["caption"]} for row in runs.rows_of(3)]
    path = runs.write_parquet(tmp_path / "data.parquet", rows, image_column="drawing")
    data = config(path, image_column="drawing", caption_column="title")
    split = load_split(data, "train")
    assert split.captions == runs.CAPTIONS[:3]
    assert len(images_of(split, data)[0]) == 3


def test_split_column(tmp_path: Path):
    data = config(runs.two_splits(tmp_path / "data.parquet", 5, 3), split_column="split")
    assert load_split(data, "train").captions == runs.CAPTIONS[:5]
    heldout = load_split(data, "heldout")
    assert heldout.captions == runs.CAPTIONS[5:8]
    assert torch.equal(images_of(heldout, data)[0][0], pixels_of(runs.picture(5)))


def test_the_built_in_data_set_by_name():
    data = load_config("emoji").data
    assert data.path == "emoji"
    split = load_split(data, "heldout")
    assert len(split.captions) > 100
    cell = split.table[0][data.image_column]
    assert decode_image(cell, *data.image_size).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption_column": "title"}, "data.caption_column is 'title'"),
        ({"image_column": "picture"}, "data.image_column is 'picture'"),
        ({"split_column": "part"}, "data.split_column is 'part'"),
    ],
)
def test_a_missing_column_lists_the_columns(tmp_path: Path, changes: dict[str, str], message: str):
    data = config(runs.two_splits(tmp_path / "data.parquet", 3, 2), **changes)
    with pytest.raises(UserError) as caught:
        load_split(data, "train")
    assert message in str(caught.value)
    assert "image, caption, split" in str(caught.value)


def test_an_unknown_split_lists_the_splits(tmp_path: Path):
    path = runs.two_splits(tmp_path / "data.parquet", 3, 2)
    with pytest.raises(UserError, match="has no split 'test'; it has train"):
        load_split(config(path), "test")
    with pytest.raises(UserError, match="split = 'test'; it holds heldout, train"):
        load_split(config(path, split_column="split"), "test")


def test_missing_path(tmp_path: Path):
    with pytest.raises(UserError, match=r"can't be read(.|\n)*metadata\.jsonl"):
        load_split(config(tmp_path / "nothing" / "here"), "train")


@pytest.mark.parametrize("content", [b"", b"not parquet at all"])
def test_a_file_that_is_not_parquet(tmp_path: Path, content: bytes):
    path = tmp_path / "data.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError, match="can't be read"):
        load_split(config(path), "train")


def test_empty_folder(tmp_path: Path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="can't be read"):
        load_split(config(tmp_path / "images"), "train")


def test_image_column_that_holds_no_images(tmp_path: Path):
    path = runs.write_parquet(tmp_path / "data.parquet", runs.rows_of(3))
    with pytest.raises(UserError, match="image_column"):
        load_split(config(path, image_column="number"), "train")


def test_empty_captions_are_bad_rows(tmp_path: Path):
    rows = runs.rows_of(5)
    rows[1]["caption"], rows[2]["caption"], rows[4]["caption"] = "", "  \n", None
    data = config(runs.write_parquet(tmp_path / "data.parquet", rows))
    split = load_split(data, "train")
    assert split.rows == [0, 3]
    assert [(bad.row, bad.problem) for bad in split.bad] == [
        (1, "empty caption ('')"),
        (2, "empty caption ('  \\n')"),
        (4, "empty caption (None)"),
    ]
    with pytest.raises(UserError, match=r"3 row\(s\) can't be used, and data.max_bad is 0"):
        images_of(split, data)


def test_no_caption_at_all(tmp_path: Path):
    rows = [row | {"caption": ""} for row in runs.rows_of(3)]
    data = config(runs.write_parquet(tmp_path / "data.parquet", rows), max_bad=3)
    with pytest.raises(UserError, match="no row with a caption"):
        load_split(data, "train")


@pytest.fixture
def damaged(tiny_folder: Path, tmp_path: Path) -> Path:
    """A recipe on 10 rows: 2 without a caption, 2 without an image and 1 with a truncated PNG."""
    rows = runs.rows_of(10, split="train")
    rows[1]["caption"] = ""
    rows[6]["caption"] = None
    rows[3]["image"] = b"no image"
    rows[7]["image"] = b""
    rows[8]["image"] = runs.png(runs.picture(8))[:60]
    values = runs.tiny_recipe(
        tmp_path, tiny_folder, runs.write_parquet(tmp_path / "data.parquet", rows)
    )
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


def bad_rows(path: Path) -> list[int]:
    text = (path.parent / "run" / "tokens" / "train" / "bad_rows.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(line["problem"] for line in lines)
    return sorted(line["row"] for line in lines)


@pytest.mark.parametrize("allowed", [0, 4])
def test_too_many_bad_rows_are_refused_and_listed(damaged: Path, allowed: int):
    with pytest.raises(UserError) as caught:
        runs.do(damaged, f"data.max_bad={allowed}", stages=["prepare"])
    message = str(caught.value)
    # Captions are checked before any image is read.
    expected = [1, 6] if allowed == 0 else [1, 3, 6, 7, 8]
    assert f"{len(expected)} row(s) can't be used, and data.max_bad is {allowed}" in message
    assert "bad_rows.jsonl" in message
    assert f"data.max_bad={len(expected)}" in message
    assert bad_rows(damaged) == expected


def test_bad_rows_within_the_limit_are_skipped(damaged: Path):
    with pytest.raises(UserError):
        runs.do(damaged, stages=["prepare"])
    recipe = runs.do(damaged, "data.max_bad=5", "train.max_steps=2")
    assert bad_rows(damaged) == [1, 3, 6, 7, 8]
    cache = open_cache(RunFolder.of(recipe).tokens / "train", 1)
    assert cache.source_rows == [0, 2, 4, 5, 9]
    assert cache.captions == [runs.CAPTIONS[i] for i in (0, 2, 4, 5, 9)]
    assert len(runs.metrics(damaged.parent / "run" / "train")) == 2


def test_transparency_becomes_white():
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert bool((pixels_of(clear) == 255).all())
    half = Image.new("RGBA", (16, 16), (0, 0, 0, 128))
    assert pixels_of(half).unique().tolist() == [127]


def test_palette_with_a_transparent_colour():
    image = Image.new("P", (16, 16), 0)
    image.putpalette([10, 20, 30, 0, 0, 0])
    image.info["transparency"] = 0
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    decoded = decode_image({"bytes": buffer.getvalue(), "path": None}, 16, 16)
    assert bool((decoded == 255).all())


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "I;16"])
def test_other_modes_become_rgb(mode: str):
    image = Image.new("L", (16, 16), 255).convert(mode) if mode != "I;16" else None
    image = image or Image.new("I;16", (16, 16), 65535)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    decoded = decode_image({"bytes": buffer.getvalue(), "path": None}, 16, 16)
    assert decoded.shape == (3, 16, 16)
    assert decoded.unique().tolist() == [255]


def test_wide_image_is_cropped_in_the_middle():
    image = Image.new("RGB", (64, 16), "black")
    image.paste("red", (24, 0, 40, 16))
    cropped = pixels_of(image)
    assert cropped[0].unique().tolist() == [255]
    assert cropped[1:].unique().tolist() == [0]


def test_an_image_of_the_right_size_is_unchanged():
    image = runs.picture(3)
    expected = torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(16, 16, 3)
    assert torch.equal(pixels_of(image), expected.permute(2, 0, 1))


def test_height_comes_before_width():
    cell = {"bytes": runs.png(runs.picture(0, 32)), "path": None}
    assert decode_image(cell, 8, 24).shape == (3, 8, 24)


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (16, 16), "white")
    image.paste("black", (0, 0, 16, 8))  # the upper half
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    upright = decode_image({"bytes": buffer.getvalue(), "path": None}, 16, 16)
    assert upright[:, :8].unique().tolist() == [255]
    assert upright[:, 8:].unique().tolist() == [0]
