"""Two results side by side: what may differ, what may not, and what is said."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mm_cca import cli
from mm_cca.eval.compare import differences

PROTOCOL = {
    "scorer": "local-dir:/here",
    "scorer_sha256": "aa",
    "inception_sha256": None,
    "metrics": {"alignment": "mean of 100 cos"},
    "num_prompts": {"train": 8},
    "reference": {"train": {"images": "/here", "sha256": "cc"}},
    "resize": {"images": "bicubic", "inception": None},
    "sampling": {"seed": 0, "top_k": 5, "guidance_scales": [2.0], "num_images": 8},
    "device": "cpu",
    "versions": {"torch": "2", "mm-cca": "1"},
}


def result(**scores: float) -> dict[str, Any]:
    values = {name: {"value": value} for name, value in scores.items()}
    values["alignment"] |= {"low": 1.0, "high": 3.0}
    arms = [{"name": name, "scores": {"train": values}} for name in ("base", "cca")]
    return {"arms": arms, "protocol": copy.deepcopy(PROTOCOL)}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [tmp_path / "a.json", tmp_path / "b.json"]


def compared(files: list[Path], results: list[dict[str, Any]], *more: str) -> int:
    for file, content in zip(files, results, strict=True):
        file.write_text(json.dumps(content))
    return cli.main(["eval", "--compare", *map(str, files), *more])


def test_a_table_of_the_scores_that_both_have(
    files: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    ours, theirs = result(alignment=2.0, recall=0.5), result(alignment=2.5, fid=3.0)
    theirs["protocol"] |= {"scorer": "local-dir:/there", "inception_sha256": "ff"}
    theirs["protocol"]["metrics"]["fid"] = "Frechet"
    theirs["protocol"]["sampling"]["guidance_scales"] = [3.0]
    theirs["protocol"]["reference"]["train"]["images"] = "/there"
    assert compared(files, [ours, theirs]) == 0
    out = capsys.readouterr().out
    for part in ("A: base", "A: cca", "B: base", "B: cca", "2 [1, 3]", "2.5 [1, 3]"):
        assert part in out
    assert "recall" not in out
    assert "fid" not in out


def test_every_differing_field_is_named(files: list[Path], capsys: pytest.CaptureFixture[str]):
    ours, theirs = result(alignment=2.0), result(alignment=2.5)
    theirs["protocol"]["scorer_sha256"] = "bb"
    theirs["protocol"]["sampling"]["top_k"] = None
    theirs["protocol"]["reference"]["train"]["sha256"] = "dd"
    theirs["protocol"]["versions"]["torch"] = "3"
    del theirs["protocol"]["device"]
    assert compared(files, [ours, theirs]) == 2
    error = capsys.readouterr().err
    for part in (
        "scorer_sha256: 'aa' against 'bb'",
        "sampling.top_k: 5 against None",
        "reference.train.sha256: 'cc' against 'dd'",
        "versions.torch: '2' against '3'",
        "device: 'cpu' against 'not recorded'",
        "--allow scorer_sha256",
    ):
        assert part in error
    assert error.count("  - ") == 5


def test_a_difference_may_be_allowed(files: list[Path], capsys: pytest.CaptureFixture[str]):
    ours, theirs = result(alignment=2.0), result(alignment=2.5)
    theirs["protocol"]["device"] = "H100"
    theirs["protocol"]["versions"]["torch"] = "3"
    assert compared(files, [ours, theirs], "--allow", "device") == 2
    assert "device: " not in capsys.readouterr().err
    assert compared(files, [ours, theirs], "--allow", "device", "--allow", "versions") == 0
    assert "allowed: device is 'cpu' in A and 'H100' in B" in capsys.readouterr().out
    assert compared(files, [ours, theirs], "--allow", "devise") == 2
    assert "--allow devise: no such field" in capsys.readouterr().err


def test_what_is_no_result(files: list[Path], capsys: pytest.CaptureFixture[str]):
    assert compared(files, [result(alignment=2.0), {"x": 1}]) == 2
    assert "has no scores" in capsys.readouterr().err
    files[0].write_text("{")
    assert cli.main(["eval", "--compare", *map(str, files)]) == 2
    assert "can't be read" in capsys.readouterr().err
    assert cli.main(["eval"]) == 2
    assert "needs a recipe, or --compare" in capsys.readouterr().err
    assert cli.main(["eval", "emoji", "--compare", *map(str, files)]) == 2
    assert "no recipe" in capsys.readouterr().err


def test_differences_of_nothing():
    assert differences(PROTOCOL, copy.deepcopy(PROTOCOL)) == {}


def test_a_split_that_only_one_has_is_left_out(
    files: list[Path], capsys: pytest.CaptureFixture[str]
):
    ours, theirs = result(alignment=2.0), result(alignment=2.5)
    ours["protocol"]["num_prompts"]["heldout"] = 4
    for arm in ours["arms"]:
        arm["scores"]["heldout"] = arm["scores"]["train"]
    assert compared(files, [ours, theirs], "--allow", "num_prompts") == 0
    told = capsys.readouterr().out
    assert "train: A is" in told
    assert "heldout: A is" not in told
