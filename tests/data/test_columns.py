"""What columns of images, captions and splits may hold."""

import base64
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from mm_cca.data.images import load_split
from mm_cca.errors import UserError
from tests.support.data_sources import (
    CAPTIONS,
    COUNT,
    check,
    config,
    picture,
    write_table,
)


@pytest.mark.parametrize("form", ["plain", "uri", "urlsafe", "unpadded"])
def test_images_as_base64(tmp_path: Path, form: str):
    texts = [base64.b64encode(picture(i)).decode() for i in range(COUNT)]
    if form == "uri":
        texts = [f"data:image/png;base64,{text}" for text in texts]
    elif form == "urlsafe":
        texts = [text.replace("+", "-").replace("/", "_") for text in texts]
    elif form == "unpadded":
        texts = [text.rstrip("=") for text in texts]
    path = write_table(tmp_path / "x.parquet", image=texts, text=CAPTIONS)
    check(load_split(config(path), "train"))


TOLD: dict[str, tuple[dict[str, list[Any]], str]] = {
    "urls": ({"image": ["https://a.b/0.png"] * 2}, r"holds URLs, such as 'https://a\.b/0\.png'"),
    "lists of images": ({"image": [[picture(0), picture(1)]] * 2}, "holds lists; allowed: images"),
    "numbers for images": ({"image": [1, 2]}, "holds values of the type int64"),
    "numbers": ({"text": [1, 2]}, "holds values of the type int64, such as 1; allowed: texts"),
    "mappings": ({"text": [{"en": "owl", "de": "Eule"}] * 2}, "mappings with the keys en, de"),
    "lists of mappings": ({"text": [[{"raw": "owl"}]] * 2}, "lists of other things than texts"),
    "no captions": ({"text": [None, ""]}, "has no row with a caption"),
    "no rows": ({"image": [], "text": []}, "it has no rows"),
}


@pytest.mark.parametrize("name", TOLD)
def test_columns_of_something_else_are_told(tmp_path: Path, name: str):
    changed, message = TOLD[name]
    columns = {"image": [picture(0), picture(1)], "text": ["owl", "hand"]} | changed
    path = write_table(tmp_path / "x.parquet", **columns)
    with pytest.raises(UserError, match=message) as caught:
        load_split(config(path), "train")
    assert len(str(caught.value)) < 700


def test_a_long_value_is_not_printed_whole(tmp_path: Path):
    path = write_table(tmp_path / "x.parquet", image=[picture(0)], text=[{"en": "owl " * 9999}])
    with pytest.raises(UserError) as caught:
        load_split(config(path), "train")
    assert len(str(caught.value)) < 700


def test_lists_of_captions_give_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    captions = [["a", "b"], ["", "c"], [], None, [None, "d"]]
    images = [picture(i) for i in range(5)]
    path = write_table(tmp_path / "x.parquet", image=images, text=captions)
    split = load_split(config(path), "train")
    assert split.captions == ["a", "c", "d"]
    assert [bad.row for bad in split.bad] == [2, 3]
    assert "holds lists of captions: the first" in caplog.text


def test_class_labels_are_captions_by_name(tmp_path: Path):
    features = Features({"image": Value("binary"), "text": ClassLabel(names=["owl", "hand"])})
    columns = {"image": [picture(0), picture(1), picture(2)], "text": [1, 0, None]}
    Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "x.parquet"))
    split = load_split(config(tmp_path / "x.parquet"), "train")
    assert split.captions == ["hand", "owl"]
    assert [bad.row for bad in split.bad] == [2]


@pytest.mark.parametrize("values", [[0, 0, 1], ["0", "0", None], [0.0, 0.0, None], [True] * 3])
def test_split_columns_of_any_type(tmp_path: Path, values: list[Any]):
    images = [picture(i) for i in range(3)]
    path = write_table(tmp_path / "x.parquet", image=images, text=CAPTIONS[:3], fold=values)
    wanted = str(values[0])
    split = load_split(config(path, split_column="fold"), wanted)
    assert len(split.rows) == sum(value == values[0] for value in values)
    with pytest.raises(UserError, match=rf"fold = '7'; it holds .*{wanted}"):
        load_split(config(path, split_column="fold"), "7")
