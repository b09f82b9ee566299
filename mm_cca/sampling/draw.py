"""Draws the images of every arm as PNG files with a manifest; resumable, divided among ranks."""

import hashlib
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import release_memory
from PIL import Image
from tqdm import tqdm

from mm_cca.adapters.base import Defaults, Grid, UnifiedModel, grid_of
from mm_cca.config.keys import SAMPLE
from mm_cca.config.prompt_templates import filled
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import settings_of
from mm_cca.data.prompt_files import read_prompts
from mm_cca.errors import UserError
from mm_cca.modeling.sampler import SamplingSettings, image_stream, sample_codes
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage
from mm_cca.sampling.arms import Arm, arms_of, refuse_own_temperature
from mm_cca.sampling.manifest import MANIFEST, merge_manifest, picture_file, read_manifest
from mm_cca.sampling.prompts import Prompt, prompts_of, refuse_few_prompts
from mm_cca.sampling.weights import load_source


def sample_arms(recipe: Recipe, run: RunFolder) -> None:
    """Draw the missing images of every arm.

    Raises:
        UserError: no trained model yet, a changed recipe, a temperature that repeats the family's
            default, or a full disk (finished images are kept).
    """
    prompts = prompts_of(recipe, run)
    if "eval" in recipe.run.stages:
        refuse_few_prompts(recipe, prompts)
    stages = {
        arm: Stage(run.samples / arm.name, _settings(recipe, run, arm)) for arm in arms_of(recipe)
    }
    todo = {arm: stage for arm, stage in stages.items() if not stage.is_done()}
    for source in sorted({arm.source for arm in todo} - {"base"}):
        run.trained_model(source)  # fail now, not after hours of sampling
    loaded: tuple[tuple[str, float], UnifiedModel] | None = None
    for arm, stage in todo.items():
        folder = stage.folder
        weights = (arm.source, arm.dial)
        if loaded is None or loaded[0] != weights:
            loaded = None
            release_memory()  # before loading the next model, so that the device holds only one
            loaded = (weights, load_source(recipe, run, arm.source, dial=arm.dial))
            refuse_own_temperature(recipe, loaded[1].defaults)
        if PartialState().is_main_process:
            stage.begin()
        try:
            _draw_arm(loaded[1], recipe, arm, prompts, folder)
        except OSError as error:
            raise UserError(
                f"{folder} can't be written: {error}\nFinished images are kept. Free some space "
                "and run the same command again to resume."
            ) from error
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            merge_manifest(folder)
            stage.finish()
        PartialState().wait_for_everyone()


def sampling_settings(recipe: Recipe, arm: Arm, defaults: Defaults) -> SamplingSettings:
    """The sampling settings of one arm: its own, the recipe's keys, the family's defaults."""
    keys = recipe.sample
    temperature = keys.temperature if arm.temperature is None else arm.temperature
    return SamplingSettings(
        guidance_scale=arm.guidance_scale,
        temperature=defaults.temperature if temperature is None else temperature,
        top_k=defaults.top_k if keys.top_k is None else keys.top_k,
        top_p=defaults.top_p if keys.top_p is None else keys.top_p,
        negative_prompt=arm.negative_prompt,
    )


def _settings(recipe: Recipe, run: RunFolder, arm: Arm) -> dict[str, Any]:
    """Everything that decides the images of an arm."""
    prompts = recipe.sample.prompts
    texts = {} if prompts is None else {"sample.prompts": read_prompts(prompts)}
    settings = settings_of(SAMPLE, recipe, texts) | {"guidance_scale": arm.guidance_scale}
    if arm.is_guided:
        settings["sample.negative_prompt"] = arm.negative_prompt
    if arm.dial != 1.0:
        settings["dial"] = arm.dial
    if arm.temperature is not None:  # then the recipe's own decides nothing
        settings["sample.temperature"] = arm.temperature
    trained = {"cca": run.train, "control": run.control}.get(arm.source)
    if trained is not None and (trained / "stage.json").exists():
        settings["train"] = json.loads((trained / "stage.json").read_text())["settings"]
    return settings


def _draw_arm(
    model: UnifiedModel, recipe: Recipe, arm: Arm, prompts: list[Prompt], folder: Path
) -> None:
    """Draw this rank's share of the missing images into ``folder``."""
    state = PartialState()
    done = {line["index"] for line in read_manifest(folder)}
    # Every rank must read the manifest before any rank draws, as they divide the missing prompts.
    state.wait_for_everyone()
    todo = [p for p in prompts if p.index not in done][state.process_index :: state.num_processes]
    grid = grid_of(model, recipe.data.image_size)
    part = folder / f"{MANIFEST}.{state.process_index}"
    with (
        part.open("a") as manifest,
        tqdm(
            total=len(todo),
            desc=f"drawing {arm.name}",
            unit="img",
            disable=not state.is_main_process or not todo,
        ) as bar,
    ):
        # Ends a line that an interruption truncated; empty lines are skipped when reading.
        manifest.write("\n")
        for start in range(0, len(todo), recipe.sample.batch_size):
            batch = todo[start : start + recipe.sample.batch_size]
            for line in _draw_batch(model, recipe, arm, batch, grid, folder):
                manifest.write(json.dumps(line) + "\n")
            manifest.flush()
            bar.update(len(batch))


@torch.no_grad()
def draw_images(
    model: UnifiedModel, recipe: Recipe, arm: Arm, prompts: list[Prompt], grid: Grid
) -> tuple[torch.Tensor, int]:
    """[B, 3, H, W] uint8 images of prompts on the CPU, and the forward passes of each.

    The model reads the prompts in ``sample.prompt_template``.
    """
    num_codes = model.layout(grid).num_codes
    uniforms = np.stack([image_stream(recipe.sample.seed, p.index, num_codes) for p in prompts])
    settings = sampling_settings(recipe, arm, model.defaults)
    texts = filled(recipe.sample.prompt_template, (p.caption for p in prompts))
    codes, forward_passes = sample_codes(model, texts, grid, uniforms, settings)
    return model.decode(codes, grid).cpu(), forward_passes


def _draw_batch(
    model: UnifiedModel,
    recipe: Recipe,
    arm: Arm,
    batch: list[Prompt],
    grid: Grid,
    folder: Path,
) -> list[dict[str, Any]]:
    """Write the images of a batch to ``folder`` and return their lines of the manifest."""
    settings = sampling_settings(recipe, arm, model.defaults)
    template = recipe.sample.prompt_template
    # Only where it is set; "prompt" is what the image is scored by.
    given = {} if template is None else {"prompt_template": template}
    started = time.perf_counter()
    pixels, forward_passes = draw_images(model, recipe, arm, batch, grid)
    seconds = (time.perf_counter() - started) / len(batch)
    return [
        {
            "index": prompt.index,
            "split": prompt.split,
            "row": prompt.row,
            "prompt": prompt.caption,
            **given,
            "seed": [recipe.sample.seed, prompt.index],
            "guidance_scale": arm.guidance_scale,
            "sampling": {
                "temperature": settings.temperature,
                "top_k": settings.top_k,
                "top_p": settings.top_p,
            },
            "sha256": _write_png(picture_file(folder, prompt.index), image),
            "forward_passes": forward_passes,
            "seconds": round(seconds, 5),
        }
        for prompt, image in zip(batch, pixels, strict=True)
    ]


def _write_png(path: Path, image: torch.Tensor) -> str:
    """Write a [3, H, W] uint8 image and return the sha256 of the file."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()
