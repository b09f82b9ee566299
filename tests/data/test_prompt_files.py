"""Reading prompts from every kind of file, and from folders."""

import os
from pathlib import Path

import pytest

from mm_cca.data.prompt_files import read_prompts
from mm_cca.errors import UserError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "red owl\n\n  a cat \n"),
        ("p.jsonl", '{"caption": "red owl"}\n{"caption": "a cat"}\n'),
        ("p.csv", 'id,text\n1,red owl\n2,"a cat"\n'),
        ("p.json", '["red owl", "a cat"]'),
    ],
)
def test_kinds_of_prompt_files(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    assert read_prompts(str(tmp_path / name)) == ["red owl", "a cat"]


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl", "p.json"])
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path, name: str):
    content = {
        "p.txt": "red owl\r\na cat\r\n",
        "p.csv": "text,id\r\nred owl,1\r\na cat,2\r\n",
        "p.jsonl": '{"text": "red owl"}\r\n{"text": "a cat"}\r\n',
        "p.json": '["red owl", "a cat"]',
    }
    (tmp_path / name).write_bytes(content[name].encode("utf-8-sig"))
    assert read_prompts(str(tmp_path / name)) == ["red owl", "a cat"]


def test_a_line_ends_at_a_newline_only(tmp_path: Path):
    (tmp_path / "p.txt").write_text("red\u2028owl\x0bx\na cat\n", encoding="utf-8")
    assert read_prompts(str(tmp_path / "p.txt")) == ["red\u2028owl\x0bx", "a cat"]


def test_a_folder_of_prompts(tmp_path: Path):
    """The layouts of DPG-Bench (one file per prompt) and HPSv2 (one list per style)."""
    (tmp_path / "b.txt").write_text("a house\nby a tree\n")
    (tmp_path / "a.json").write_text('["red owl", "a cat"]')
    (tmp_path / "readme.md").write_text("no prompt")
    assert read_prompts(str(tmp_path)) == ["red owl", "a cat", "a house\nby a tree"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.md", "x", "allowed: a file .txt, .jsonl, .csv, .json"),
        ("p.json", "{}", "is not a list"),
        ("p.txt", "\n", "has no prompts"),
        ("p.jsonl", '{"words": "x"}\n', "it needs one of text, caption, prompt"),
        ("p.jsonl", '{"text": ""}\n', "prompt 1 is ''; it must be a non-empty text"),
        ("p.jsonl", "{\n", "can't be read"),
    ],
)
def test_invalid_prompt_files(tmp_path: Path, name: str, content: str, problem: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=problem):
        read_prompts(str(tmp_path / name))
    with pytest.raises(UserError, match="can't be read"):
        read_prompts(str(tmp_path / "nowhere.txt"))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.jsonl", "[1]\n", "in line 1, it is not an object"),
        ("p.jsonl", '{"text": "a"}\n7\n', "in line 2, it is not an object"),
        ("p.jsonl", "null\n", "in line 1, it is not an object"),
        ("p.jsonl", '{"text": 3}\n', "prompt 1 is 3; it must be a non-empty text"),
        ("p.jsonl", '{"text": "a\\ud800"}\n', r"in line 1, it has half a character \('\\ud800'"),
        ("p.jsonl", '{"text": ' * 100_000, "nested too deeply"),
        ("p.json", "[" * 100_000, "nested too deeply"),
        ("p.json", '["a", null]', "prompt 2 is None; it must be a non-empty text"),
        ("p.json", '["a", ["b"]]', r"prompt 2 is \['b'\]; it must be a non-empty text"),
        ("p.json", "7", "is not a list"),
        ("p.txt", "a " * 10_001, r"prompt 1 has 20,002 characters; allowed: up to 20,000"),
        ("p.csv", 'text\n"' + "a" * 2**18 + '"\n', "characters; allowed|field larger than"),
    ],
)
def test_files_of_another_make(tmp_path: Path, name: str, content: str, problem: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=problem):
        read_prompts(str(tmp_path / name))


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.json", "p.csv"])
@pytest.mark.timeout(20)
def test_what_is_no_file_of_prompts(tmp_path: Path, name: str):
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(UserError, match="it has 1,073,741,824 bytes; allowed: up to 67,108,864"):
        read_prompts(str(path))
    path.write_bytes(b'{"text": "Z\xfcrich"}')
    with pytest.raises(UserError, match="it is not UTF-8 text"):
        read_prompts(str(path))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="it is a named pipe"):
        read_prompts(str(path))
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="it is a device"):
        read_prompts(str(path))
