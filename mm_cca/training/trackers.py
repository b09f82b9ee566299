"""What trackers are told: the recipe as configuration, the run's name, pictures, and the scores."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image

from mm_cca.config.schema import Recipe
from mm_cca.runs.folder import RunFolder
from mm_cca.training.accelerator import stage_accelerator

PROJECT = "mm_cca"
NAMED = ("wandb", "trackio")
"""Trackers that give a run a name; TensorBoard shows its folder."""
Scalar = int | float | str | bool


def start_trackers(accelerator: Accelerator, recipe: Recipe, name: str) -> None:
    """Open the recipe's trackers, with the recipe as their configuration.

    Args:
        accelerator: made with ``log_with``.
        recipe: of the run.
        name: of the run.
    """
    accelerator.init_trackers(
        PROJECT,
        config=flat(recipe),
        init_kwargs={tracker: {"name": name} for tracker in NAMED},
    )


def name_of_run(run: RunFolder, folder: Path) -> str:
    """The name of a run's folder; of its control, with that word."""
    name = run.root.resolve().name
    return f"{name} control" if folder == run.control else name


def flat(recipe: Recipe) -> dict[str, Scalar]:
    """``group.key`` -> value, as text where it is neither a number nor a text: TensorBoard takes
    nothing else."""
    values: dict[str, Scalar] = {}
    for group, keys in asdict(recipe).items():
        for key, value in keys.items() if isinstance(keys, dict) else [("", keys)]:
            name = f"{group}.{key}" if key else group
            values[name] = value if isinstance(value, int | float | str) else str(value)
    return values


def log_picture(tracker: GeneralTracker, name: str, picture: Image.Image, step: int) -> None:
    """Each tracker's own way of logging a picture; accelerate has none for trackio."""
    if tracker.name == "trackio":
        trackio = import_module("trackio")  # an extra
        tracker.log({name: trackio.Image(picture)}, step=step)
    elif tracker.name == "tensorboard":
        tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
    else:
        tracker.log_images({name: [picture]}, step=step)


def log_results(
    recipe: Recipe, run: RunFolder, scores: Mapping[str, float], picture: Image.Image | None
) -> None:
    """Log the scores of a run, and a picture of its arms, as a run of their own beside the
    training's, which has ended; by the main process.

    Args:
        recipe: of the run.
        run: its folder.
        scores: by name.
        picture: with the arms' images, if there is one.
    """
    accelerator = stage_accelerator(recipe.train, run.eval)
    start_trackers(accelerator, recipe, f"{run.root.resolve().name} scores")
    values: dict[str, Any] = {**scores}
    for tracker in accelerator.trackers:
        tracker.log(values, step=0)
        if picture is not None:
            log_picture(tracker, "arms", picture, 0)
        tracker.finish()
    accelerator.trackers = []
