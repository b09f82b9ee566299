"""Files and folders of prompts, as each is read."""

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


def test_a_folder_of_prompts(tmp_path: Path):
    """As DPG-Bench (a file for each) and HPSv2 (a list for each style) keep theirs."""
    (tmp_path / "b.txt").write_text("a house\nby a tree\n")
    (tmp_path / "a.json").write_text('["red owl", "a cat"]')
    (tmp_path / "readme.md").write_text("no prompt")
    assert read_prompts(str(tmp_path)) == ["red owl", "a cat", "a house\nby a tree"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.md", "x", "allowed: a file .txt, .jsonl, .csv, .json"),
        ("p.json", "{}", "holds no list"),
        ("p.txt", "\n", "holds no prompt"),
        ("p.jsonl", '{"words": "x"}\n', "one of text, caption, prompt must be there"),
        ("p.jsonl", '{"text": ""}\n', "prompt 1 is ''; it must be a text"),
        ("p.jsonl", "{\n", "can't be read"),
    ],
)
def test_files_that_hold_no_prompts(tmp_path: Path, name: str, content: str, problem: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=problem):
        read_prompts(str(tmp_path / name))
    with pytest.raises(UserError, match="can't be read"):
        read_prompts(str(tmp_path / "nowhere.txt"))
