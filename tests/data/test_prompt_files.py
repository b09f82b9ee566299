"""Reading prompts from every kind of file, and from folders."""

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
