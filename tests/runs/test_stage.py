"""What a stage records, what it compares, and when it accepts other settings."""

import json
import os
from pathlib import Path

import pytest

from mm_cca.errors import UserError
from mm_cca.runs.places import content_of, remember
from mm_cca.runs.stage import Stage, environments_of

SETTINGS = {"train.seed": 0, "model.path": "here", "model.path (content)": "aaaa"}


def finished(folder: Path, **changes: object) -> Stage:
    stage = Stage(folder, SETTINGS | changes)
    stage.begin()
    stage.finish()
    return stage


def test_a_path_may_change_if_its_content_does_not(tmp_path: Path):
    finished(tmp_path)
    assert Stage(tmp_path, SETTINGS | {"model.path": "there"}).is_done()
    with pytest.raises(UserError, match=r"model\.path: its content is another .*aaaa.*bbbb"):
        Stage(tmp_path, SETTINGS | {"model.path (content)": "bbbb"}).is_done()


@pytest.mark.parametrize("has_none", ["before", "now"])
def test_without_digests_the_path_is_compared(tmp_path: Path, has_none: str):
    """In stages of earlier versions, and for names on the hub."""
    without = {"train.seed": 0, "model.path": "here"}
    before, now = (without, SETTINGS) if has_none == "before" else (SETTINGS, without)
    stage = Stage(tmp_path, before)
    stage.begin()
    stage.finish()
    assert Stage(tmp_path, now).is_done()
    with pytest.raises(UserError, match=r"model\.path: was 'here', is now 'there'"):
        Stage(tmp_path, now | {"model.path": "there"}).is_done()


def test_contents_of_nested_settings_count_too(tmp_path: Path):
    stage = Stage(tmp_path, {"train": SETTINGS})
    stage.begin()
    stage.finish()
    assert Stage(tmp_path, {"train": SETTINGS | {"model.path": "there"}}).is_done()


def test_an_unfinished_stage_without_results_accepts_other_settings(tmp_path: Path):
    stage = Stage(tmp_path, SETTINGS, results=("*.png",))
    stage.begin()
    (tmp_path / "half.png.partial").touch()
    other = Stage(tmp_path, SETTINGS | {"train.seed": 1}, results=("*.png",))
    assert not other.is_done()
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"train\.seed: was 0, is now 1"):
        other.is_done()
    (tmp_path / "a.png").unlink()
    stage.finish()
    with pytest.raises(UserError, match=r"train\.seed"):
        other.is_done()


def test_environments_are_those_that_worked_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stage = Stage(tmp_path, SETTINGS, results=("*.png",))
    for version in ("1", "1", "2"):
        monkeypatch.setattr("mm_cca.runs.stage.environment", lambda v=version: {"torch": v})
        stage.begin(note="kept")
        (tmp_path / "a.png").touch()
    stage.finish(more=3)
    assert environments_of(tmp_path) == [{"torch": "1"}, {"torch": "2"}]
    stored = json.loads((tmp_path / "stage.json").read_text())
    assert (stored["note"], stored["more"]) == ("kept", 3)
    (tmp_path / "a.png").unlink()
    stage.begin()  # anew
    assert environments_of(tmp_path) == [{"torch": "2"}]


DAMAGED = ['{"done": tr', "", "[]", "3", '{"done": true}', '{"settings": {}}', "\xff", "null"]


@pytest.mark.parametrize("text", [*DAMAGED, '{"done": "yes", "settings": {}}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str):
    (tmp_path / "stage.json").write_text(text, encoding="latin-1")
    for look in (Stage(tmp_path, {}).is_done, lambda: Stage.ended(tmp_path)):
        with pytest.raises(UserError, match=r"stage\.json can't be read.*delete"):
            look()


def test_a_checkpoint_is_known_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def folder(name: str, weights: bytes, time: int) -> str:
        path = tmp_path / name
        (path / "sub").mkdir(parents=True)
        (path / "sub" / "model.bin").write_bytes(weights)
        (path / "README.md").write_text(name)
        os.utime(path / "sub" / "model.bin", (time, time))
        return str(path)

    run = tmp_path / "run"
    run.mkdir()
    one, same, other = folder("a", b"12", 1), folder("b", b"12", 2), folder("c", b"21", 3)
    digests = [content_of(path, run, tell=False) for path in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert content_of("org/name-on-the-hub", run, tell=False) is None
    remember(run)
    monkeypatch.setattr("mm_cca.runs.places._seen", {})
    monkeypatch.setattr("mm_cca.runs.places.digests_of", lambda _: pytest.fail("read again"))
    assert content_of(one, run, tell=False) == digests[0]


def test_a_key_that_an_older_version_lacked_is_at_its_default(tmp_path: Path):
    """A run made before a key existed goes on; another value is another recipe."""
    Stage(tmp_path, {"train.lr": 1e-4}).finish()
    assert Stage(tmp_path, {"train.lr": 1e-4, "model.tokenizer": None}).is_done()
    changed = {"train.lr": 1e-4, "model.tokenizer": "/models/other"}
    with pytest.raises(UserError, match=r"model\.tokenizer: was not used, is now '/models/other'"):
        Stage(tmp_path, changed).is_done()
