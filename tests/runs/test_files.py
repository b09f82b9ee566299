"""Atomic writes: files and folders are complete or absent."""

from pathlib import Path

import pytest

from mm_cca.errors import UserError
from mm_cca.runs.files import atomic_path, replace_folder, write_json, write_text


def test_a_file_appears_when_the_block_ends(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_old_file_stays(tmp_path: Path, stop: type[BaseException]):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise stop

    with pytest.raises(stop):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_an_old_one_and_what_a_killed_process_left(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "half").touch()
    replace_folder(folder, lambda place: (place / "new").touch())
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()

    def write(place: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        replace_folder(folder, write)
    assert list(tmp_path.iterdir()) == [folder]


def test_text_is_utf_8_and_json_ends_a_line(tmp_path: Path):
    write_text(tmp_path / "a", "ä\n")
    write_json(tmp_path / "b", {"a": [1]})
    assert (tmp_path / "a").read_bytes() == "ä\n".encode()
    assert (tmp_path / "b").read_text().endswith("}\n")
