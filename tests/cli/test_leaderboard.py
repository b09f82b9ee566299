"""``runs``: a leaderboard of run folders."""

from pathlib import Path

import pytest

from mm_cca import cli
from tests.support.scored_runs import scored_folder, scored_run

CAPTIONS = ["a", "b", "c", "d"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "120")
    for name, alignment in (("low", 1.0), ("high", 30.0), ("sweep/points/beta[old]", 7.0)):
        run = scored_run(name, CAPTIONS, [alignment] * 4, arms=("base", "base+cfg2", "cca"))
        scored_folder(tmp_path / "runs" / name, run)
    return tmp_path / "runs"


def test_the_best_comes_first(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["runs", str(folder)]) == 0
    told = capsys.readouterr().out
    places = [told.index(name) for name in ("high", "sweep/points/beta[old]", "low")]
    assert places == sorted(places)
    assert "4 train prompts, scored by judge" in told
    assert "30.0" in told


def test_runs_without_scores_and_of_other_prompts_stand_apart(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    other = scored_run("other", CAPTIONS, [99.0] * 4)
    other.summary["protocol"]["prompts_sha256"] = {"train": "x"}
    scored_folder(folder / "other", other)
    for name in ("summary.json", "stage.json"):
        (folder / "low" / "eval" / name).unlink()
    assert cli.main(["runs", str(folder)]) == 0
    told = capsys.readouterr().out
    assert told.count("scored by judge") == 2
    assert "Scores of different tables can't be compared." in told
    assert "not scored: low: " in told
    assert "run `mm-cca eval RECIPE` first" in told


def test_a_run_that_was_scored_otherwise_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    other = scored_run("other", CAPTIONS, [2.0] * 4)
    other.summary["protocol"]["device"] = "cuda"
    scored_folder(folder / "other", other)
    assert cli.main(["runs", str(folder)]) == 0
    assert "other was not scored just as high: another device." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "problem"),
    [(False, "is not a folder; give the one"), (True, "has no run folders: no recipe.yaml")],
)
def test_no_runs(tmp_path: Path, make: bool, problem: str, capsys: pytest.CaptureFixture[str]):
    empty = tmp_path / "empty"
    if make:
        empty.mkdir()
    assert cli.main(["runs", str(empty)]) == 2
    assert problem in capsys.readouterr().err
