"""A run is given as its folder, or as a recipe that was run."""

import argparse
from pathlib import Path

import pytest

from mm_cca import cli
from mm_cca.config.shipped import find_recipe
from mm_cca.errors import UserError
from mm_cca.runs.folder import open_run, run_folder_of
from tests.support import runs


def recipe_of(tmp_path: Path, folder: Path) -> Path:
    values = runs.tiny_recipe(tmp_path, tmp_path / "model", tmp_path / "data.parquet")
    values["run"]["dir"] = str(folder)
    return runs.write_recipe(tmp_path / "mine.yaml", values)


def test_a_recipe_stands_for_its_run(tmp_path: Path):
    folder = tmp_path / "run"
    recipe = recipe_of(tmp_path, folder)
    with pytest.raises(UserError, match=r"mine\.yaml was not run: its run\.dir .* has no recipe"):
        run_folder_of(recipe)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe.read_text())
    assert run_folder_of(recipe) == run_folder_of(folder) == folder
    assert open_run(recipe)[1].root == open_run(folder)[1].root == folder


def test_the_recipe_in_a_moved_run_folder_stands_for_that_folder(tmp_path: Path):
    moved = tmp_path / "moved"
    (moved / "train").mkdir(parents=True)
    (moved / "train" / "stage.json").write_text("{}")
    (moved / "recipe.yaml").write_text(recipe_of(tmp_path, tmp_path / "gone").read_text())
    assert run_folder_of(moved / "recipe.yaml") == moved


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_neither(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a run folder"):
        run_folder_of(tmp_path / name)


def test_a_stage_takes_a_run_folder_as_its_recipe(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("x")
    assert find_recipe(str(folder)) == folder / "recipe.yaml"
    with pytest.raises(UserError, match="not a run folder"):
        find_recipe(str(tmp_path))


def test_every_command_says_that_it_takes_both():
    (verbs,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    helps = {
        (verb, action.dest): str(action.help)
        for verb, of_verb in verbs.choices.items()
        for action in of_verb._actions
        if not action.option_strings and action.dest in ("recipe", "run", "runs") and verb != "cp"
    }
    assert {("average", "runs"), ("export-samples", "run"), ("report", "recipe")} <= set(helps)
    for name, told in helps.items():
        assert "run folder" in told, name
        assert "recipe" in told, name
