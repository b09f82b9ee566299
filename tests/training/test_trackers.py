"""What trackers are told: configuration, names, pictures."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mm_cca.cli.commands import tracked_scores
from mm_cca.cli.commands.run import run_stages
from mm_cca.cli.commands.tracked_scores import scalars_of, sheet_of_arms
from mm_cca.eval import evaluate
from mm_cca.runs.folder import RunFolder, open_run
from mm_cca.training.trackers import PROJECT, flat, log_picture, name_of_run, start_trackers
from tests.support import runs
from tests.support.scored_runs import scored_folder, scored_run


def test_the_recipe_is_the_configuration_and_the_folder_the_name(tmp_path: Path):
    recipe = runs.load_recipe(runs.unread_recipe(tmp_path))
    run = RunFolder.of(recipe)
    told: dict[str, Any] = {}
    accelerator = SimpleNamespace(
        init_trackers=lambda project, **more: told.update(more, project=project)
    )
    start_trackers(accelerator, recipe, name_of_run(run, run.train))  # type: ignore[arg-type]
    assert told["project"] == PROJECT
    assert told["init_kwargs"] == {"wandb": {"name": "run"}, "trackio": {"name": "run"}}
    assert told["config"]["loss.beta"] == 0.02
    assert told["config"]["data.image_size"] == "[16, 16]"
    assert told["config"]["job"] == "finetune"
    assert name_of_run(run, run.control) == "run control"


def test_only_numbers_and_texts_are_configuration(tmp_path: Path):
    values = flat(runs.load_recipe(runs.unread_recipe(tmp_path)))
    assert {type(value) for value in values.values()} <= {int, float, str, bool}
    assert values["sample.top_p"] == "None"


def test_each_tracker_has_its_way_of_logging_a_picture():
    logged: list[Any] = []
    picture = Image.new("RGB", (3, 2))
    for name in ("tensorboard", "wandb"):
        tracker = SimpleNamespace(
            name=name, log_images=lambda values, step, **more: logged.append((values, step, more))
        )
        log_picture(tracker, "arms", picture, 7)  # type: ignore[arg-type]
    board, wandb = logged
    assert board[0]["arms"].shape == (1, 2, 3, 3)
    assert board[2] == {"dataformats": "NHWC"}
    assert wandb == ({"arms": [picture]}, 7, {})


def test_scores_and_a_sheet_of_a_scored_run(tmp_path: Path):
    scored = scored_run("run", ["a", "b"], [1.0, 3.0], arms=("base", "base+cfg2", "cca"))
    values = scalars_of(scored.summary)
    assert values["train/judge/cca/alignment"] == 2.0
    assert len(values) == 9
    _, run = open_run(scored_folder(tmp_path / "run", scored))
    sheet = sheet_of_arms(run, scored.summary)
    assert sheet is not None
    assert sheet.width > sheet.height
    (run.samples / "cca" / "000001.png").unlink()
    assert sheet_of_arms(run, scored.summary) is None


def test_a_tracker_that_fails_does_not_end_a_scored_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    def fails(*_: object) -> None:
        raise ConnectionError("no route\nto the host")

    recipe = runs.load_recipe(runs.unread_recipe(tmp_path), "train.trackers=[tensorboard]")
    monkeypatch.setattr(evaluate, "evaluate_arms", lambda recipe, run: True)
    monkeypatch.setattr(tracked_scores, "track_scores", fails)
    run_stages(recipe, RunFolder.of(recipe), ["eval"])
    assert capsys.readouterr().err == "the scores did not reach train.trackers: no route\n"


def test_scores_reach_tensorboard(tmp_path: Path):
    scored = scored_run("run", ["a", "b"], [1.0, 3.0], arms=("base", "base+cfg2", "cca"))
    recipe, run = open_run(scored_folder(tmp_path / "run", scored))
    recipe = replace(recipe, train=replace(recipe.train, trackers=["tensorboard"]))
    tracked_scores.track_scores(recipe, run)
    # The configuration has a folder of its own below.
    folders = [file.parent for file in run.eval.rglob("events.out.tfevents*")]
    events = min(folders, key=lambda path: len(path.parts))
    board = EventAccumulator(str(events))
    board.Reload()
    assert board.Scalars("train/judge/cca/alignment")[0].value == 2.0
    assert board.Tags()["images"] == ["arms"]
