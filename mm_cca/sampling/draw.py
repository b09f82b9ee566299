"""Draw every arm: PNG files and a manifest, resumable, spread over ranks."""

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
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import settings_of
from mm_cca.data.prompt_files import read_prompts
from mm_cca.errors import UserError
from mm_cca.modeling.sampler import SamplingSettings, image_stream, sample_codes
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage
from mm_cca.sampling.arms import Arm, arms_of
from mm_cca.sampling.manifest import MANIFEST, merge_manifest, read_manifest
from mm_cca.sampling.prompts import Prompt, prompts_of, refuse_few_prompts
from mm_cca.sampling.weights import load_source


def sample_arms(recipe: Recipe, run: RunFolder) -> None:
    """Draw what is missing of every arm.

    Raises:
        UserError: no trained model yet, a changed recipe, a full disk (what was drawn stays).
    """
    prompts = prompts_of(recipe, run)
    if "eval" in recipe.run.stages:
        refuse_few_prompts(recipe, prompts)
    stages = {
        arm: Stage(run.samples / arm.name, _settings(recipe, run, arm)) for arm in arms_of(recipe)
    }
    todo = {arm: stage for arm, stage in stages.items() if not stage.is_done()}
    for source in sorted({arm.source for arm in todo} - {"base"}):
        run.trained_model(source)  # or hours of drawing the base would come first
    loaded: tuple[tuple[str, float], UnifiedModel] | None = None
    for arm, stage in todo.items():
        folder = stage.folder
        if PartialState().is_main_process:
            stage.begin()
        weights = (arm.source, arm.dial)
        if loaded is None or loaded[0] != weights:
            loaded = None
            release_memory()  # or two models would lie on the device at once
            loaded = (weights, load_source(recipe, run, arm.source, dial=arm.dial))
        try:
            _draw_arm(loaded[1], recipe, arm, prompts, folder)
        except OSError as error:
            raise UserError(
                f"{folder} can't be written: {error}\nWhat was drawn stays. Free some space and "
                "run the same command again."
            ) from error
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            merge_manifest(folder)
            stage.finish()
        PartialState().wait_for_everyone()


def sampling_settings(recipe: Recipe, arm: Arm, defaults: Defaults) -> SamplingSettings:
    """The recipe's sampling keys for one arm; None is what the family's authors sample with."""
    s = recipe.sample
    return SamplingSettings(
        guidance_scale=arm.guidance_scale,
        temperature=defaults.temperature if s.temperature is None else s.temperature,
        top_k=defaults.top_k if s.top_k is None else s.top_k,
        top_p=defaults.top_p if s.top_p is None else s.top_p,
        negative_prompt=arm.negative_prompt,
    )


def _settings(recipe: Recipe, run: RunFolder, arm: Arm) -> dict[str, Any]:
    prompts = recipe.sample.prompts
    texts = {} if prompts is None else {"sample.prompts": read_prompts(prompts)}
    settings = settings_of(SAMPLE, recipe, texts) | {"guidance_scale": arm.guidance_scale}
    if arm.is_guided:
        settings["sample.negative_prompt"] = arm.negative_prompt
    if arm.dial != 1.0:
        settings["dial"] = arm.dial
    trained = {"cca": run.train, "control": run.control}.get(arm.source)
    if trained is not None and (trained / "stage.json").exists():
        settings["train"] = json.loads((trained / "stage.json").read_text())["settings"]
    return settings


def _draw_arm(
    model: UnifiedModel, recipe: Recipe, arm: Arm, prompts: list[Prompt], folder: Path
) -> None:
    state = PartialState()
    done = {line["index"] for line in read_manifest(folder)}
    state.wait_for_everyone()  # or a slow rank would see what a quick one drew, and skip others
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
        manifest.write("\n")  # ends a line torn by an interruption; empty lines are passed over
        for start in range(0, len(todo), recipe.sample.batch_size):
            batch = todo[start : start + recipe.sample.batch_size]
            for line in _draw_batch(model, recipe, arm, batch, grid, folder):
                manifest.write(json.dumps(line) + "\n")
            manifest.flush()
            bar.update(len(batch))


@torch.no_grad()
def _draw_batch(
    model: UnifiedModel,
    recipe: Recipe,
    arm: Arm,
    batch: list[Prompt],
    grid: Grid,
    folder: Path,
) -> list[dict[str, Any]]:
    num_codes = model.layout(grid).num_codes
    uniforms = np.stack([image_stream(recipe.sample.seed, p.index, num_codes) for p in batch])
    settings = sampling_settings(recipe, arm, model.defaults)
    started = time.perf_counter()
    codes, forwards = sample_codes(model, [p.caption for p in batch], grid, uniforms, settings)
    pixels = model.decode(codes, grid).cpu()
    seconds = (time.perf_counter() - started) / len(batch)
    lines = []
    for prompt, picture in zip(batch, pixels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG")
        (folder / f"{prompt.index:06d}.png").write_bytes(buffer.getvalue())
        lines.append(
            {
                "index": prompt.index,
                "split": prompt.split,
                "row": prompt.row,
                "prompt": prompt.caption,
                "seed": [recipe.sample.seed, prompt.index],
                "guidance_scale": arm.guidance_scale,
                "sampling": {
                    "temperature": settings.temperature,
                    "top_k": settings.top_k,
                    "top_p": settings.top_p,
                },
                "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
                "forward_passes": forwards,
                "seconds": round(seconds, 5),
            }
        )
    return lines
