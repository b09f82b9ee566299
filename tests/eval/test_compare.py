"""Two results side by side: what may differ, what may not, and what is said."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mm_cca import cli
from mm_cca.eval.compare import differences

PROTOCOL = {
    "judges": {"aa": {"name": "local-dir:/here", "resize": "bicubic"}},
    "inception_sha256": None,
    "metrics": {"alignment": "mean of 100 cos"},
    "num_prompts": {"train": 8},
    "reference": {"train": {"images": "/here", "sha256": "cc"}},
    "reconstruction": {"train": None},
    "resize": {"images": "bicubic", "inception": None},
    "sampling": {"seed": 0, "top_k": 5, "guidance_scales": [2.0], "num_images": 8},
    "device": "cpu",
    "versions": {"torch": "2", "mm-cca": "1"},
}


def result(**scores: float) -> dict[str, Any]:
    values = {name: {"value": value} for name, value in scores.items()}
    values["alignment"] |= {"low": 1.0, "high": 3.0}
    scores = {"local-dir:/here": {"train": values}}
    arms = [{"name": name, "scores": scores} for name in ("base", "cca")]
    return {"arms": arms, "protocol": copy.deepcopy(PROTOCOL)}


def renamed(content: dict[str, Any], sha256: str, name: str) -> None:
    """The same result by a judge of this name and these weights."""
    (judge,) = content["protocol"]["judges"].values()
    content["protocol"]["judges"] = {sha256: judge | {"name": name}}
    for arm in content["arms"]:
        (scores,) = arm["scores"].values()
        arm["scores"] = {name: scores}


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
    renamed(theirs, "aa", "local-dir:/there")
    theirs["protocol"] |= {"inception_sha256": "ff"}
    theirs["protocol"]["reconstruction"]["train"] = {"images": "x", "sha256": "y"}
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
    renamed(theirs, "bb", "local-dir:/here")
    theirs["protocol"]["sampling"]["top_k"] = None
    theirs["protocol"]["reference"]["train"]["sha256"] = "dd"
    theirs["protocol"]["versions"]["torch"] = "3"
    del theirs["protocol"]["device"]
    assert compared(files, [ours, theirs]) == 2
    error = capsys.readouterr().err
    for part in (
        "judges: 'local-dir:/here (sha256 aa)' against 'local-dir:/here (sha256 bb)'",
        "sampling.top_k: 5 against None",
        "reference.train.sha256: 'cc' against 'dd'",
        "versions.torch: '2' against '3'",
        "device: 'cpu' against 'not recorded'",
        "--allow judges",
    ):
        assert part in error
    assert error.count("  - ") == 5


@pytest.mark.parametrize(("template", "code"), [(None, 0), ("a {prompt}", 2)])
def test_a_key_that_the_older_result_did_not_have(
    files: list[Path], template: str | None, code: int, capsys: pytest.CaptureFixture[str]
):
    ours, theirs = result(alignment=2.0), result(alignment=2.5)
    theirs["protocol"]["sampling"]["prompt_template"] = template
    assert compared(files, [ours, theirs]) == code
    told = f"sampling.prompt_template: 'not recorded' against {template!r}"
    assert (told in capsys.readouterr().err) == (code == 2)


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


def test_judges_that_both_have_are_compared(
    files: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """By their weights; a judge that only one has is left out, an allowed pair is shown."""
    monkeypatch.setenv("COLUMNS", "200")
    ours, theirs = result(alignment=2.0), result(alignment=2.5)
    theirs["protocol"]["judges"]["bb"] = {"name": "another", "resize": "none"}
    for arm in theirs["arms"]:
        arm["scores"]["another"] = {"train": {"alignment": {"value": 77.0}}}
    assert compared(files, [ours, theirs]) == 0
    told = capsys.readouterr().out
    assert "scored by local-dir:/here" in told
    assert "77" not in told
    theirs["protocol"]["judges"]["aa"]["resize"] = "bilinear"
    assert compared(files, [ours, theirs]) == 2
    assert "judges.aa.resize: 'bicubic' against 'bilinear'" in capsys.readouterr().err
    theirs = result(alignment=2.5)
    renamed(theirs, "bb", "another")
    assert compared(files, [ours, theirs], "--allow", "judges") == 0
    assert "scored by local-dir:/here and another" in capsys.readouterr().out


def test_scores_of_an_older_version(files: list[Path], capsys: pytest.CaptureFixture[str]):
    ours = result(alignment=2.0)
    del ours["protocol"]["judges"]
    assert compared(files, [ours, result(alignment=2.0)]) == 2
    assert "was scored by an older mm_cca" in capsys.readouterr().err


def test_differences_of_nothing():
    assert differences(PROTOCOL, copy.deepcopy(PROTOCOL)) == {}


def test_a_split_that_only_one_has_is_left_out(
    files: list[Path], capsys: pytest.CaptureFixture[str]
):
    ours, theirs = result(alignment=2.0), result(alignment=2.5)
    ours["protocol"]["num_prompts"]["heldout"] = 4
    for arm in ours["arms"]:
        (scores,) = arm["scores"].values()
        scores["heldout"] = scores["train"]
    assert compared(files, [ours, theirs], "--allow", "num_prompts") == 0
    told = capsys.readouterr().out
    assert "train, scored by local-dir:/here: A is" in told
    assert "heldout: A is" not in told


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ((), [], "it is not an object"),
        (("arms",), "cca", "'arms' is not a list"),
        (("arms",), ["cca"], "'arms.0' is not an object"),
        (("arms",), [], "it has no arms"),
        (("arms", 0, "name"), 3, "'arms.0.name' is not a text"),
        (("arms", 1, "scores"), {}, "arm cca lacks scores by local-dir:/here on train"),
        (("arms", 0, "scores", "local-dir:/here", "train", "alignment"), 3, "is not an object"),
        (("arms", 0, "scores", "local-dir:/here", "train", "alignment", "value"), "3", "a number"),
        (("protocol",), "x", "'protocol' is not an object"),
        (("protocol",), [], "'protocol' is not an object"),
        (("protocol", "judges"), {}, "it has no judges"),
        (("protocol", "judges", "aa"), "x", "'protocol.judges.aa' is not an object"),
        (("protocol", "num_prompts"), {"other": 8}, "lacks scores by local-dir:/here on other"),
        (("protocol", "num_prompts"), None, "'protocol.num_prompts' is not an object"),
    ],
)
def test_files_of_another_make(
    files: list[Path],
    place: tuple[Any, ...],
    value: Any,
    problem: str,
    capsys: pytest.CaptureFixture[str],
):
    ours, theirs = result(alignment=2.0), result(alignment=2.5)
    if place:
        inner: Any = theirs
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
    assert compared(files, [ours, theirs if place else value], "--allow", "device") == 2
    said = capsys.readouterr().err
    assert "b.json can't be read: " in said
    assert problem in said
    assert "use a run's report.json" in said.lower()
