"""Every kind of data set that people have: read whole, or told in one sentence."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, Image

from mm_cca.data.images import decode_image, load_split
from mm_cca.errors import UserError
from tests.support.data_sources import (
    CAPTIONS,
    COUNT,
    NAMES,
    check,
    config,
    metadata,
    picture,
    write_folder,
    write_pictures,
    write_shard,
    write_tar,
)


@pytest.mark.parametrize(
    "names",
    [
        ["steam train 1.png", "a_train_station.png", "eye-test-chart.png", *NAMES[3:]],
        ["cars/0.png", "cars/1.png", "train/0.png", "train/1.png", "planes/0.png", "test/0.png"],
        ["deep/er/0.png", "[v1]/1.png", "set #1/2.png", "a*b?/3.png", "Test.PNG", "0.JPEG"],
    ],
    ids=["files", "folders", "signs"],
)
def test_names_are_only_names(tmp_path: Path, names: list[str]):
    check(load_split(config(write_folder(tmp_path / "data", names)), "train"))


@pytest.mark.parametrize("name", ["set [v1]", "set #1", "train", "my test", "a*b", "emoji", "ü 猫"])
@pytest.mark.parametrize("write", [write_folder, lambda f: write_shard(f / "x.parquet", range(6))])
def test_the_folder_may_have_any_name(tmp_path: Path, name: str, write: Callable[[Path], Any]):
    write(tmp_path / name)
    check(load_split(config(tmp_path / name), "train"))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("named", [False, True], ids=["folder", "file"])
def test_metadata_in_any_form(tmp_path: Path, ending: str, named: bool):
    file = write_pictures(tmp_path) / f"metadata.{ending}"
    table = Dataset.from_dict({"file_name": NAMES, "text": CAPTIONS})
    if ending == "csv":
        table.to_csv(str(file), index=False)
    elif ending == "parquet":
        table.to_parquet(str(file))
    else:
        file.write_text(metadata() if ending == "jsonl" else json.dumps(table.to_list()))
    check(load_split(config(file if named else tmp_path), "train"))


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, ending: str):
    write_pictures(tmp_path)
    lines = [f'{n},"{c}"' for n, c in zip(NAMES, CAPTIONS, strict=True)]
    text = metadata() if ending == "jsonl" else "\r\n".join(["file_name,text", *lines])
    (tmp_path / f"metadata.{ending}").write_text(text, encoding="utf-8-sig")
    check(load_split(config(tmp_path), "train"))


def test_metadata_in_every_folder(tmp_path: Path):
    for start, part in ((0, "b"), (3, "a")):
        names = NAMES[start : start + 3]
        for i, name in enumerate(names, start):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / name).write_bytes(picture(i))
        text = metadata(names, CAPTIONS[start : start + 3])
        (tmp_path / part / "metadata.jsonl").write_text(text)
    check(load_split(config(tmp_path), "train"), [3, 4, 5, 0, 1, 2])


def test_a_folder_for_each_split_by_any_of_its_names(tmp_path: Path):
    write_folder(tmp_path / "Training")
    write_folder(tmp_path / "val", NAMES[:2], captions=CAPTIONS[:2])
    check(load_split(config(tmp_path), "train"))
    check(load_split(config(tmp_path), "validation"), [0, 1])
    with pytest.raises(UserError, match="it has train, validation"):
        load_split(config(tmp_path), "test")


@pytest.mark.parametrize("ending", [".txt", ".caption"])
def test_a_text_beside_every_picture(tmp_path: Path, ending: str):
    for name, caption in zip(NAMES, CAPTIONS, strict=True):
        (write_pictures(tmp_path) / name).with_suffix(ending).write_text(f"{caption}\n")
    check(load_split(config(tmp_path), "train"))
    (tmp_path / f"0003{ending}").unlink()
    split = load_split(config(tmp_path), "train")
    assert split.rows == [0, 1, 2, 4, 5]
    assert [(b.row, b.problem.endswith("0003.png: empty caption (None)")) for b in split.bad] == [
        (3, True)
    ]


def test_folders_of_classes_are_captions_by_name(tmp_path: Path):
    write_pictures(tmp_path, ["cars/0.png", "cars/1.png", "test/0.png"])
    split = load_split(config(tmp_path, caption_column="label"), "train")
    assert split.captions == ["cars", "cars", "test"]


def test_pictures_alone_are_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"6 pictures but no captions\. Put a metadata\.jsonl"):
        load_split(config(write_pictures(tmp_path)), "train")


def test_a_run_inside_the_data_is_not_data(tmp_path: Path):
    for name, caption in zip(NAMES, CAPTIONS, strict=True):
        (write_pictures(tmp_path) / name).with_suffix(".txt").write_text(caption)
    run = write_pictures(tmp_path / "runs" / "x" / "samples").parent
    (run / "tokens" / "train").mkdir(parents=True)
    for file in ("recipe.yaml", "environment.json"):
        (run / file).touch()
    check(load_split(config(tmp_path), "train"))


def test_links_are_followed_and_circles_end(tmp_path: Path):
    write_folder(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    check(load_split(config(tmp_path / "data"), "train"))


@pytest.mark.parametrize("shape", ["file", "folder", "two"])
def test_zips(tmp_path: Path, shape: str):
    parts = [range(6)] if shape != "two" else [range(3), range(3, 6)]
    for number, part in enumerate(parts):
        with zipfile.ZipFile(tmp_path / f"images{number}.zip", "w") as archive:
            for i in part:
                archive.writestr(f"x/{NAMES[i]}", picture(i))
                archive.writestr(f"__MACOSX/x/._{NAMES[i]}", b"resources")
            text = metadata([NAMES[i] for i in part], [CAPTIONS[i] for i in part])
            archive.writestr("x/metadata.jsonl", text)
    path = tmp_path / "images0.zip" if shape == "file" else tmp_path
    check(load_split(config(path), "train"))


def test_a_zip_that_changed_is_read_again(tmp_path: Path):
    for captions in (CAPTIONS, CAPTIONS[::-1]):
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for i, name in enumerate(NAMES):
                archive.writestr(name, picture(i))
            archive.writestr("metadata.jsonl", metadata(captions=captions))
        split = load_split(config(tmp_path / "images.zip"), "train")
        assert split.captions == captions


@pytest.mark.parametrize("shape", ["file", "folder", "glob"])
def test_webdataset(tmp_path: Path, shape: str):
    write_tar(tmp_path / "00000.tar", range(4))
    write_tar(tmp_path / "00001.tar", range(4, 6))
    path = {"file": tmp_path / "00000.tar", "folder": tmp_path, "glob": tmp_path / "*.tar"}[shape]
    columns = {"image_column": "png", "caption_column": "txt"}
    rows = range(4) if shape == "file" else range(6)
    check(load_split(config(path, **columns), "train"), rows, "png")


@pytest.mark.parametrize("missing", [0, 2, 5])
@pytest.mark.parametrize("ending", ["txt", "png"])
def test_a_sample_of_a_tar_without_caption_or_picture_is_a_bad_row(
    tmp_path: Path, missing: int, ending: str
):
    """Among the first samples, which tell the columns, and later."""
    write_tar(tmp_path / "00000.tar", range(6), without=(f"{missing:06d}.{ending}",))
    columns = {"image_column": "png", "caption_column": "txt"}
    split = load_split(config(tmp_path, **columns), "train")
    kept = [i for i in range(6) if i != missing]
    if ending == "png":
        assert split.captions == CAPTIONS[:6]
        cell = split.table[missing]["png"]
        with pytest.raises(ValueError, match="no image"):
            decode_image(cell, 16, 16)
    else:
        assert split.rows == kept
        (bad,) = split.bad
        assert (bad.row, "empty caption (None)" in bad.problem) == (missing, True)
        assert f"{missing:06d}.png" in bad.problem


@pytest.mark.parametrize("path", ["", "data", "data/*.parquet", "**/*-of-*.parquet"])
def test_shards_with_their_split_in_the_name(tmp_path: Path, path: str):
    for number, rows in enumerate(([0, 1, 2], [3])):
        write_shard(tmp_path / "data" / f"train-{number:05d}-of-00002.parquet", rows)
    write_shard(tmp_path / "data" / "test-00000-of-00001.parquet", [4, 5])
    data = config(tmp_path / path)
    check(load_split(data, "train"), range(4))
    check(load_split(data, "test"), [4, 5])


def test_shards_of_other_names_are_one_split(tmp_path: Path):
    write_shard(tmp_path / "my train set.parquet", [0, 1, 2])
    write_shard(tmp_path / "part" / "test.parquet", [3, 4, 5])
    check(load_split(config(tmp_path), "train"))


def test_an_empty_shard_among_others_adds_nothing(tmp_path: Path):
    write_shard(tmp_path / "0.parquet", range(4))
    write_shard(tmp_path / "1.parquet", [])
    write_shard(tmp_path / "2.parquet", [4, 5])
    check(load_split(config(tmp_path), "train"))


def test_folders_of_shards(tmp_path: Path):
    write_shard(tmp_path / "default" / "train" / "0000.parquet", range(4))
    write_shard(tmp_path / "default" / "test" / "0000.parquet", [4, 5])
    check(load_split(config(tmp_path), "train"), range(4))


def write_readme(folder: Path, configs: str) -> None:
    (folder / "README.md").write_text(f"---\nlicense: mit\n{configs}---\n# A data set\n")


def test_a_downloaded_hub_data_set(tmp_path: Path):
    write_shard(tmp_path / "odd" / "names.parquet", range(4))
    write_shard(tmp_path / "odd" / "others.parquet", [4, 5])
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    write_readme(
        tmp_path,
        "configs:\n- config_name: default\n  data_files:\n"
        "  - split: train\n    path: odd/n*\n  - split: dev\n    path: [odd/others.parquet]\n",
    )
    check(load_split(config(tmp_path), "train"), range(4))
    check(load_split(config(tmp_path), "dev"), [4, 5])


def test_subsets_of_a_downloaded_data_set(tmp_path: Path):
    write_shard(tmp_path / "a.parquet", [0, 1])
    write_shard(tmp_path / "b.parquet", [2, 3])
    entries = "".join(f"- config_name: {n}\n  data_files: {n}.parquet\n" for n in "ab")
    write_readme(tmp_path, f"configs:\n{entries}")
    check(load_split(config(tmp_path, subset="b"), "train"), [2, 3])
    for subset in (None, "c"):
        with pytest.raises(UserError, match=rf"data.subset is {subset!r}; allowed .*: a, b "):
            load_split(config(tmp_path, subset=subset), "train")
    (tmp_path / "README.md").unlink()
    with pytest.raises(UserError, match=r"no README\.md that lists"):
        load_split(config(tmp_path, subset="b"), "train")


def test_files_that_were_not_downloaded_are_told(tmp_path: Path):
    write_readme(tmp_path, "configs:\n- config_name: default\n  data_files: data/train-*\n")
    with pytest.raises(UserError, match=r"data/train-\*, are not there. Download all"):
        load_split(config(tmp_path), "train")


@pytest.mark.parametrize("text", ["", "no yaml", "---\n[broken\n---\n", "---\nconfigs: 3\n---\n"])
def test_some_other_readme_says_nothing(tmp_path: Path, text: str):
    (write_folder(tmp_path) / "README.md").write_text(text)
    check(load_split(config(tmp_path), "train"))


@pytest.mark.parametrize("splits", [False, True])
def test_save_to_disk(tmp_path: Path, splits: bool):
    cells = [{"bytes": picture(i), "path": None} for i in range(COUNT)]
    table = Dataset.from_dict({"image": cells, "text": CAPTIONS}).cast_column("image", Image())
    (DatasetDict(train=table) if splits else table).save_to_disk(str(tmp_path / "data"))
    check(load_split(config(tmp_path / "data"), "train"))


def test_names_and_revisions_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load(*args: Any, **named: Any) -> DatasetDict:
        asked.append((args, named))
        cells = [{"bytes": picture(i), "path": None} for i in range(COUNT)]
        table = Dataset.from_dict({"image": cells, "text": CAPTIONS}).cast_column("image", Image())
        return DatasetDict(train=table)

    monkeypatch.setattr("mm_cca.data.read_source.load_dataset", load)
    check(load_split(config("some/data.set", subset="s", revision="v1"), "train"))
    assert asked == [(("some/data.set", "s"), {"revision": "v1"})]


METADATA = {
    "absolute": (
        '{"file_name": "/etc/hosts", "text": "x"}',
        "'/etc/hosts'; allowed: .* no absolute",
    ),
    "above": ('{"file_name": "a/../../x.png", "text": "x"}', "inside its folder"),
    "backslashes": (r'{"file_name": "..\\x.png", "text": "x"}', "inside its folder"),
    "url": ('{"file_name": "file:///x.png", "text": "x"}', "no URL"),
    "number": ('{"file_name": 3, "text": "x"}', "file_name is '3'"),
    "nameless": ('{"image": "0.png", "text": "x"}', "the columns image, text, but no file_name"),
    "damaged": (
        '{"file_name": "0000.png", "text": "x"}\n{"file_name',
        r"jsonl, line 2, is not JSON",
    ),
    "empty": ("", r"metadata\.jsonl has no rows"),
    "list": ("[1]", r"metadata\.jsonl, row 1, is not a mapping"),
}


@pytest.mark.parametrize("name", METADATA)
def test_wrong_metadata_is_told(tmp_path: Path, name: str):
    text, message = METADATA[name]
    (write_pictures(tmp_path) / "metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        load_split(config(tmp_path), "train")


@pytest.mark.parametrize("file", ["metadata.jsonl", "metadata.csv", "0000.txt"])
def test_latin_1_is_told_by_file_and_encoding(tmp_path: Path, file: str):
    (write_pictures(tmp_path) / file).write_bytes(b"file_name,text\n0000.png,caf\xe9\n")
    with pytest.raises(UserError) as caught:
        load_split(config(tmp_path), "train")
    assert f"{file} is not UTF-8 (byte 0xe9 in line 2), perhaps Latin-1" in str(caught.value)


def test_columns_of_mixed_types_do_not_matter(tmp_path: Path):
    lines = [
        {"file_name": n, "text": c, "x": i if i % 2 else [i]}
        for i, (n, c) in enumerate(zip(NAMES, CAPTIONS, strict=True))
    ]
    text = "\n".join(map(json.dumps, lines))
    (write_pictures(tmp_path) / "metadata.jsonl").write_text(text)
    check(load_split(config(tmp_path), "train"))


def test_rows_without_a_file_are_bad_rows(tmp_path: Path):
    write_folder(tmp_path, NAMES)
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": null, "text": "x"}\n{"file_name": "gone.png", "text": "y"}\n')
    table = load_split(config(tmp_path), "train").table
    with pytest.raises(ValueError, match="neither bytes nor a path"):
        decode_image(table[6]["image"], 16, 16)
    with pytest.raises(ValueError, match=r"gone\.png: not a readable image: No such file"):
        decode_image(table[7]["image"], 16, 16)


FILES = {
    "x.parquet": b"PAR1 but no more",
    "x.tar": b"no tar",
    "x.zip": b"no zip",
    "x.arrow": b"",
    "x.tar.gz": b"\x1f\x8b",
    "x.xlsx": b"PK",
    "annotations.json": b"{}",
}


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_told(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(FILES[name])
    with pytest.raises(UserError, match="can't be read") as caught:
        load_split(config(tmp_path / name), "train")
    assert len(str(caught.value)) < 1200


def test_what_is_no_file_is_told(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="FIFO or device"):
            load_split(config(path), "train")
    for path in ("x" * 5000, "a\0b", "no/such/folder/here", str(tmp_path / "no*.tar")):
        with pytest.raises(UserError, match="can't be read"):
            load_split(config(path), "train")


def test_a_folder_of_the_name_of_built_in_data_is_ambiguous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_folder(tmp_path / "emoji")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"both the built-in .* Write \./emoji"):
        load_split(config("emoji"), "train")
    check(load_split(config("./emoji"), "train"))
