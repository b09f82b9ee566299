"""Reading functions: whatever is wrong with a file, one sentence names it and what to do."""

import os
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import pytest
from typing_extensions import TypedDict

from mm_cca.config.read_files import is_there, json_lines_of, json_of, reading, text_of
from mm_cca.errors import UserError

ADVICE = "Delete it."


class Shape(TypedDict):
    step: int
    value: float | None
    parts: NotRequired[dict[str, list[str]]]


def written(folder: Path, content: bytes) -> Path:
    (folder / "file").write_bytes(content)
    return folder / "file"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"it is not JSON, or was cut short \(Expecting value"),
        (b'{"step": 1, "va', "it is not JSON, or was cut short"),
        (b'{"step": 1\xff}', r"it is not UTF-8 text \(byte 10\)"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b"[]", "it is not an object"),
        (b"null", "it is not an object"),
        (b'{"step": 1}', "'value' is missing"),
        (b'{"step": "1", "value": 1}', "'step' is not a whole number"),
        (b'{"step": true, "value": 1}', "'step' is not a whole number"),
        (b'{"step": 1, "value": "x"}', "'value' is not a number"),
        (b'{"step": 1, "value": 1, "parts": {"a": "b"}}', "'parts.a' is not a list"),
        (b'{"step": 1, "value": 1, "parts": {"a": [1]}}', "'parts.a.0' is not a text"),
        (b'{"step": 1, "value": 1, "text": "\\ud800"}', r"it has half a character \('\\ud800'"),
    ],
)
def test_json_of_the_wrong_kind(tmp_path: Path, content: bytes, problem: str):
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=rf"file can't be read: {problem}.*\. Delete it\.$"):
        json_of(path, Shape, ADVICE)


def test_json_keeps_what_the_shape_does_not_name(tmp_path: Path):
    path = written(tmp_path, b'\xef\xbb\xbf{"step": 1, "value": 2, "more": {"x": null}}')
    assert json_of(path, Shape, ADVICE) == {"step": 1, "value": 2, "more": {"x": None}}


def test_lines_are_told_by_number(tmp_path: Path):
    path = written(tmp_path, b'{"step": 1, "value": null}\n\n{"step": 2}\n')
    with pytest.raises(UserError, match="in line 3, 'value' is missing"):
        json_lines_of(path, Shape, ADVICE)
    path = written(tmp_path, '{"step": 1, "value": 2, "text": "a\u2028b"}\n{"step'.encode())
    with pytest.raises(UserError, match="in line 2, it is not JSON"):
        json_lines_of(path, Shape, ADVICE)
    (line,) = json_lines_of(path, dict[str, Any], ADVICE, torn=True)
    assert line["text"] == "a\u2028b"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (os.mkfifo, "it is a named pipe, not a file"),
        (os.mkdir, "it is a folder, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: None, "No such file or directory"),
    ],
)
def test_what_is_no_file(tmp_path: Path, make: Any, problem: str):
    path = tmp_path / "file"
    make(path)
    with pytest.raises(UserError, match=rf"file can't be read: {problem}. Delete it.$"):
        text_of(path, ADVICE)
    with (
        pytest.raises(UserError, match=problem),
        reading(path, ADVICE),
    ):
        raise AssertionError("the block must not run")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_has(tmp_path: Path, name: str):
    assert is_there(tmp_path / name)  # reading it tells why not
    with pytest.raises(UserError, match=r"File name too long|null byte"):
        text_of(tmp_path / name, ADVICE)
    assert not is_there(tmp_path / "nothing")
    assert not is_there(written(tmp_path, b"") / "below a file")


def test_a_file_without_an_end_is_not_read(tmp_path: Path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(UserError, match=r"it has 1,099,511,627,776 bytes; allowed: up to 1,073,7"):
        text_of(path, ADVICE)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_numpy_files(tmp_path: Path, content: bytes):
    path = written(tmp_path, content)
    with pytest.raises(UserError, match="can't be read"), reading(path, ADVICE):
        np.load(path)
