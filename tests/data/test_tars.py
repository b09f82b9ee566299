"""WebDataset tars are read where they lie: their index, and pictures by their place."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pytest

from mm_cca.data.images import image_bytes, load_split
from mm_cca.data.tar_index import tar_table
from mm_cca.data.tar_members import TarMember, file_name, member_of
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from tests.support import runs
from tests.support.data_sources import CAPTIONS, check, config, picture, write_tar

COLUMNS = {"image_column": "png", "caption_column": "txt"}
Members = Sequence[tuple[str, bytes]]


def pack(file: Path, members: Members) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file


def test_columns_are_texts_numbers_json_and_undecoded_pictures(tmp_path: Path):
    first = pack(
        tmp_path / "0.tar",
        [
            ("a/1.png", picture(1)),
            ("a/1.txt", "ein Esel, grün".encode()),
            ("a/1.json", b'{"width": 16, "nested": {"x": 1}}'),
            ("a/1.npy", b"\x93NUMPY"),
            ("a/._1.png", b"resources"),
            ("b/1.txt", b"no picture"),
            ("b/1.json", b'{"height": 2.5, "nested": {"y": "z"}}'),
        ],
    )
    second = pack(
        tmp_path / "1.tar", [("c.seg.png", picture(2)), ("c.cls", b" 7\n"), ("c.json", b'{"a":1}')]
    )
    table = tar_table([str(first), str(second)])
    assert table.column_names == ["png", "txt", "json", "seg.png", "cls", "__key__", "__url__"]
    assert table["txt"][:] == ["ein Esel, grün", "no picture", None]
    assert table["cls"][:] == [None, None, 7]
    assert table["__key__"][:] == ["a/1", "b/1", "c"]
    assert table["__url__"][:] == [str(first), str(first), str(second)]
    assert [cell and cell["bytes"] for cell in table["png"]] == [None, None, None]
    assert table["png"][1:] == [None, None]
    assert image_bytes(table["png"][0]) == picture(1)
    assert image_bytes(table["seg.png"][2]) == picture(2)
    assert table["json"][0]["width"] == 16
    assert table["json"][0]["nested"] == {"x": 1, "y": None}
    assert (table["json"][1]["height"], table["json"][2]["a"]) == (2.5, 1)


@pytest.mark.parametrize("apart", [False, True], ids=["one tar", "two"])
def test_json_whose_types_differ_becomes_text_where_they_do(tmp_path: Path, apart: bool):
    members = [("1.json", b'{"id": 1, "tag": "x"}'), ("2.json", b'{"id": "two", "tag": "y"}')]
    files = [members[:1], members[1:]] if apart else [members]
    tars = [str(pack(tmp_path / f"{i}.tar", part)) for i, part in enumerate(files)]
    found = tar_table(tars)["json"][:]
    assert found == [{"id": "1", "tag": "x"}, {"id": '"two"', "tag": "y"}]


def test_a_sample_of_an_empty_json_has_no_caption(tmp_path: Path):
    members = [("1.json", b'{"text": "a", "x": 1}'), ("2.json", b'{"text": "b", "x": "s"}')]
    tar = pack(tmp_path / "0.tar", [*members, ("3.json", b"{}")])
    assert [row["text"] for row in tar_table([str(tar)])["json"][:]] == ["a", "b", None]


def test_nothing_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "cache")
    write_tar(tmp_path / "data" / "00000.tar", range(6))
    check(load_split(config(tmp_path / "data", **COLUMNS), "train"), column="png")
    assert not (tmp_path / "cache").exists()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["00000.tar"]


@pytest.mark.parametrize("name", ["1.png", "a.tar/b.png", "x?at=1&size=2&head=00000000.png", "ü\n"])
@pytest.mark.parametrize("tar", ["/d/0.tar", "/d/x.tar/0.TAR", "https://h/0.tar?sig=a%2Fb"])
def test_a_member_is_known_by_its_path(tar: str, name: str):
    member = TarMember(tar, name, 512, 30, 0xAB)
    found = member_of(member.path)
    assert found is not None
    assert (found.tar, found[2:]) == (tar, member[2:])
    assert found.name == name.replace(".tar/", ".tar:")
    assert member_of(f"{tar}/{name}") is None


def test_names_are_shown_without_their_place():
    member = TarMember("/d/0.tar", "a/1.png", 512, 30, 0xAB)
    assert member.path == "/d/0.tar/a/1.png?at=512&size=30&head=000000ab"
    assert file_name(member.path) == "1.png"
    assert file_name("/d/e?at=1.png") == "e?at=1.png"


def test_long_names_and_directories(tmp_path: Path):
    name = "/".join(["a long folder name"] * 12)
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "0.tar", "w", format=kind) as archive:
            folder = tarfile.TarInfo("a.png")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for ending, data in (("png", picture(3)), ("txt", b"three")):
                entry = tarfile.TarInfo(f"{name}/ü.{ending}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        table = tar_table([str(tmp_path / "0.tar")])
        assert table["__key__"][:] == [f"{name}/ü"]
        assert image_bytes(table["png"][0]) == picture(3)


def cut(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at]


WHOLE = [("1.png", picture(1)), ("1.txt", b"one"), ("2.png", picture(2)), ("2.txt", b"two")]
START_OF_2 = 512 + 512 * -(-len(picture(1)) // 512) + 1024
DAMAGES: dict[str, tuple[Members, Callable[[bytes], bytes], str]] = {
    "a picture cut short": (WHOLE, cut(START_OF_2 + 600), "unexpected end of data"),
    "a header cut short": (WHOLE, cut(START_OF_2 + 100), "damaged at byte"),
    "a header": (
        WHOLE,
        lambda d: d[: START_OF_2 + 5] + b"x" * 20 + d[START_OF_2 + 25 :],
        f"damaged at byte {START_OF_2:,}",
    ),
    "twice": ([*WHOLE[:2], WHOLE[1]], bytes, "sample '1' has two members 'txt'"),
    "json": ([("1.json", b"{")], bytes, "1.json: Expecting"),
    "latin 1": ([("1.txt", b"caf\xe9")], bytes, "1.txt: 'utf-8' codec"),
    "number": ([("1.cls", b"seven")], bytes, "1.cls: invalid literal"),
    "large": ([("1.cls", b"9" * 30)], bytes, "1.cls: a number of more than 64 bits"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told_by_the_name_of_the_tar(tmp_path: Path, name: str):
    members, damage, message = DAMAGES[name]
    pack(tmp_path / "0.tar", WHOLE)
    torn = pack(tmp_path / "1.tar", members)
    torn.write_bytes(damage(torn.read_bytes()))
    with pytest.raises(UserError, match="can't be read") as caught:
        load_split(config(tmp_path, **COLUMNS), "train")
    assert f"{torn}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("change", ["other order", "shorter", "gone"])
def test_a_tar_that_is_exchanged_never_gives_another_picture(tmp_path: Path, change: str):
    tar = pack(tmp_path / "0.tar", WHOLE)
    cell = tar_table([str(tar)])["png"][1]
    assert image_bytes(cell) == picture(2)
    if change == "other order":
        pack(tar, [("3.png", picture(1)), ("3.txt", b"one"), ("4.png", picture(2))])
    elif change == "shorter":
        tar.write_bytes(tar.read_bytes()[: START_OF_2 + 600])
    else:
        tar.unlink()
    with pytest.raises(ValueError, match="No such file" if change == "gone" else "was changed"):
        image_bytes(cell)


@pytest.fixture
def path(tiny_folder: Path, tmp_path: Path) -> Path:
    """Two tars of three samples each, in shards of 2."""
    write_tar(tmp_path / "data" / "00000.tar", range(3))
    write_tar(tmp_path / "data" / "00001.tar", range(3, 6))
    return recipe_of(tmp_path, tiny_folder, tmp_path / "data")


def recipe_of(folder: Path, model: Path, data: Path | str) -> Path:
    values = runs.tiny_recipe(folder, model, Path())
    values["data"] |= {**COLUMNS, "path": str(data), "split_column": None, "rows_per_shard": 2}
    return runs.write_recipe(folder / "recipe.yaml", values)


def add(tar: Path, number: int, *, first: bool) -> None:
    with tarfile.open(tar) as archive:
        members = [(m.name, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]
    new = [("new.png", picture(number)), ("new.txt", b"a new thing")]
    pack(tar, [*new, *members] if first else [*members, *new])


@pytest.mark.parametrize("first", [False, True])
def test_a_sample_more_encodes_one_picture(path: Path, encoded: list[int], first: bool):
    runs.do(path, stages=["prepare"])
    assert sum(encoded) == 6
    encoded.clear()
    runs.do(path, stages=["prepare"])
    assert encoded == []
    add(path.parent / "data" / "00000.tar", 77, first=first)
    runs.do(path, stages=["prepare"])
    assert sum(encoded) == 1


def test_moved_tars_are_the_same(path: Path, encoded: list[int]):
    """Names are relative to the data, so that nothing is read again."""
    runs.do(path, stages=["prepare"])
    encoded.clear()
    (path.parent / "data").rename(path.parent / "moved")
    recipe = runs.do(path, f"data.path={path.parent / 'moved'}", stages=["prepare"])
    assert encoded == []
    record = RunFolder.of(recipe).tokens / "train" / "contents" / "000000000.json"
    names = [entry[0] for entry in json.loads(record.read_text())["pictures"]]
    assert [name.partition("?")[0] for name in names] == [
        "00000.tar/000000.png",
        "00000.tar/000001.png",
    ]


def test_a_broken_picture_is_told_by_tar_and_member(path: Path):
    tar = path.parent / "data" / "00001.tar"
    pack(tar, [("3.png", b"no picture"), ("3.txt", CAPTIONS[3].encode())])
    with pytest.raises(UserError, match=r"row 3: .*00001\.tar/3\.png\?at=512&size=10&head="):
        runs.do(path, stages=["prepare"])


def test_the_table_of_captions_names_members(path: Path):
    runs.do(path, stages=["prepare"])
    page = (path.parent / "run" / "data" / "train.html").read_text()
    assert "<td>000004.png</td>" in page
