"""The stage of an arm: what decides its images, as ``stage.json`` in its folder records it."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mm_cca.config.image_sizes import size_text
from mm_cca.config.keys import SAMPLE
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import settings_of, texts_digest
from mm_cca.data.contents import contents_of, model_contents
from mm_cca.data.prompt_files import read_prompts, read_sizes
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage, recorded
from mm_cca.sampling.arms import Arm, arms_of
from mm_cca.sampling.manifest import EngineFacts
from mm_cca.sampling.prompts import splits_of

log = logging.getLogger(__name__)

ENGINE = "engine"
"""The setting that says which engine drew an arm; our own sampler has none."""


PICTURES = ("*.png",)


def sample_stages(
    recipe: Recipe,
    run: RunFolder,
    *,
    planned: Mapping[str, dict[str, Any]] | None = None,
    facts: Mapping[Arm, EngineFacts] | None = None,
) -> dict[Arm, Stage]:
    """The stage of every arm.

    Args:
        recipe: a validated recipe.
        run: its folder.
        planned: source -> settings of a training that will be done before.
        facts: of the engines that will draw; None: not asked yet, so that every arm keeps the
            engine that it was begun with.
    """
    return {
        arm: Stage(
            run.samples / arm.name,
            settings_of_arm(
                recipe,
                run,
                arm,
                None if facts is None else facts.get(arm),
                keeps_engine=facts is None,
                planned=planned,
            ),
            results=PICTURES,
        )
        for arm in arms_of(recipe)
    }


def settings_of_arm(
    recipe: Recipe,
    run: RunFolder,
    arm: Arm,
    engine: EngineFacts | None,
    *,
    keeps_engine: bool = False,
    planned: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Everything that decides the images of an arm.

    A finished arm keeps the engine that it was drawn by: so the guided arms of a run are drawn by
    our own sampler before or after the others by an engine.

    Args:
        recipe: a validated recipe.
        run: its folder.
        arm: of the recipe.
        engine: that draws it if it is not finished; None: our own sampler.
        keeps_engine: an unfinished arm keeps its engine too.
        planned: source -> settings of a training that will be done before.
    """
    settings = _settings(recipe, run, arm, planned or {})
    stored = recorded(run.samples / arm.name)
    if stored is not None and (stored["done"] or keeps_engine):
        if ENGINE in stored["settings"]:
            return settings | {ENGINE: stored["settings"][ENGINE]}
        if recipe.sample.engine and not keeps_engine:
            log.warning(
                "%s was drawn by our own sampler and is kept; delete %s to draw it with "
                "sample.engine.",
                arm.name,
                run.samples / arm.name,
            )
        return settings
    return settings if engine is None else settings | {ENGINE: asdict(engine)}


def _settings(
    recipe: Recipe, run: RunFolder, arm: Arm, planned: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    prompts = recipe.sample.prompts
    texts = {} if prompts is None else {"sample.prompts": read_prompts(prompts)}
    is_captions = prompts is None
    contents = (
        contents_of(recipe, run, splits_of(recipe)) if is_captions else model_contents(recipe, run)
    )
    settings = settings_of(SAMPLE, recipe, texts, contents)
    if prompts is not None and recipe.data.buckets:
        sizes = [None if size is None else size_text(size) for size in read_sizes(prompts)]
        if any(sizes):
            settings["sizes of sample.prompts"] = texts_digest(str(size) for size in sizes)
    settings["guidance_scale"] = arm.guidance_scale
    if arm.is_guided:
        settings["sample.negative_prompt"] = arm.negative_prompt
    if arm.dial != 1.0:
        settings["dial"] = arm.dial
    if arm.temperature is not None:  # then the recipe's own decides nothing
        settings["sample.temperature"] = arm.temperature
    trained = {"cca": run.train, "control": run.control}.get(arm.source)
    stored = None if trained is None else recorded(trained)
    if arm.source in planned:
        settings["train"] = planned[arm.source]
    elif stored is not None:
        settings["train"] = stored["settings"]
    return settings
