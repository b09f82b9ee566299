"""Draws the images of every arm as PNG files with a manifest; resumable, divided among ranks."""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import release_memory
from PIL import Image
from tqdm import tqdm

from mm_cca.adapters.base import Defaults, Grid, UnifiedModel, grid_of
from mm_cca.config.prompt_templates import filled
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.modeling.decode import decode_one_by_one
from mm_cca.modeling.in_batches import in_batches
from mm_cca.modeling.sampler import Sampler, SamplingSettings, image_stream, sample_codes
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage
from mm_cca.sampling.arm_settings import sample_stages
from mm_cca.sampling.arms import Arm, arms_of, refuse_own_temperature
from mm_cca.sampling.batches import batch_size_of, behind, compiles
from mm_cca.sampling.engine_arms import ArmEngine, EngineSampler, engines_of
from mm_cca.sampling.manifest import (
    MANIFEST,
    Drawn,
    merge_manifest,
    picture_file,
    read_manifest,
)
from mm_cca.sampling.prompts import (
    Prompt,
    by_size,
    prompts_of,
    refuse_few_prompts,
    refuse_unfit_prompts,
)
from mm_cca.sampling.weights import load_image_parts, load_source


def sample_arms(recipe: Recipe, run: RunFolder) -> None:
    """Draw the missing images of every arm.

    Raises:
        UserError: no trained model yet, a changed recipe, a temperature that repeats the family's
            default, a prompt that leaves no room for the image, or a full disk (finished images
            are kept).
    """
    prompts = prompts_of(recipe, run)
    if "eval" in recipe.run.stages:
        refuse_few_prompts(recipe, prompts)
    arms = arms_of(recipe)
    engines: dict[Arm, ArmEngine] = {}
    if recipe.sample.engine:
        missing = [arm for arm in arms if not Stage.ended(run.samples / arm.name)]
        engines = engines_of(recipe, run, missing)
    stages = sample_stages(recipe, run, facts={arm: e.facts for arm, e in engines.items()})
    todo = {arm: stage for arm, stage in stages.items() if not stage.is_done()}
    unserved = [arm for arm in todo if recipe.sample.engine and arm not in engines]
    for arm in unserved:
        del todo[arm]
    for source in sorted({arm.source for arm in todo} - {"base"}):
        run.trained_model(source)  # fail now, not after hours of sampling
    artist = _artist(recipe, prompts, engines)
    loaded: tuple[tuple[str, float], UnifiedModel] | None = None
    for arm, stage in todo.items():
        if artist is not None:
            settings = sampling_settings(recipe, arm, artist.model.defaults)
            drawn_of = partial(artist.draw, engines[arm], settings)
        else:
            weights = (arm.source, arm.dial)
            if loaded is None or loaded[0] != weights:
                loaded = None
                release_memory()  # before the next model, so that the device holds only one
                loaded = (weights, load_source(recipe, run, arm.source, dial=arm.dial))
                refuse_own_temperature(recipe, loaded[1].defaults)
                refuse_unfit_prompts(loaded[1], recipe, prompts)
            settings = sampling_settings(recipe, arm, loaded[1].defaults)
            drawn_of = partial(draw_here, loaded[1], recipe, arm)
        _draw_stage(recipe, run, arm, stage, settings, drawn_of, prompts)
    if unserved:
        names = ", ".join(arm.name for arm in unserved)
        raise UserError(
            f"all arms but {names} are drawn. No server of sample.engine serves those; start one "
            "that does, and run the same command again."
        )


def _artist(
    recipe: Recipe, prompts: list[Prompt], engines: dict[Arm, ArmEngine]
) -> EngineSampler | None:
    """What draws with engines, after all their models have been checked; None without engines."""
    if not engines:
        return None
    artist = EngineSampler(load_image_parts(recipe), recipe, prompts)
    refuse_own_temperature(recipe, artist.model.defaults)
    for engine in engines.values():
        artist.check(engine)
    return artist


def _draw_stage(
    recipe: Recipe,
    run: RunFolder,
    arm: Arm,
    stage: Stage,
    settings: SamplingSettings,
    drawn_of: Callable[[list[Prompt]], Iterator[Drawn]],
    prompts: list[Prompt],
) -> None:
    """Draw what is missing of an arm, from its first record to its last."""
    state, folder = PartialState(), stage.folder
    if state.is_main_process:
        run.begin(stage, recipe)
    try:
        _draw_arm(recipe, arm, settings, drawn_of, prompts, folder)
    except OSError as error:
        raise UserError(
            f"{folder} can't be written: {error}\nFinished images are kept. Free some space "
            "and run the same command again to resume."
        ) from error
    state.wait_for_everyone()
    if state.is_main_process:
        merge_manifest(folder)
        stage.finish()
    state.wait_for_everyone()


def sampling_settings(recipe: Recipe, arm: Arm, defaults: Defaults) -> SamplingSettings:
    """The sampling settings of one arm: its own, the recipe's keys, the family's defaults."""
    return SamplingSettings.of(
        recipe.sample, defaults, arm.guidance_scale, arm.negative_prompt, arm.temperature
    )


def _draw_arm(
    recipe: Recipe,
    arm: Arm,
    settings: SamplingSettings,
    drawn_of: Callable[[list[Prompt]], Iterator[Drawn]],
    prompts: list[Prompt],
    folder: Path,
) -> None:
    """Draw this rank's share of the missing images into ``folder``."""
    state = PartialState()
    done = {line["index"] for line in read_manifest(folder)}
    # Every rank must read the manifest before any rank draws, as they divide the missing prompts.
    state.wait_for_everyone()
    todo = [p for p in prompts if p.index not in done][state.process_index :: state.num_processes]
    part = folder / f"{MANIFEST}.{state.process_index}"
    with (
        part.open("a") as manifest,
        tqdm(
            total=len(todo),
            desc=f"drawing {arm.name}",
            unit="img",
            smoothing=0,  # images come in batches
            disable=not state.is_main_process or not todo,
        ) as bar,
    ):
        # Ends a line that an interruption truncated; empty lines are skipped when reading.
        manifest.write("\n")
        write = partial(_write, recipe, arm, settings, folder)
        for lines in behind(drawn_of(todo), write):
            for line in lines:
                manifest.write(json.dumps(line) + "\n")
            manifest.flush()
            bar.update(len(lines))


def draw_here(model: UnifiedModel, recipe: Recipe, arm: Arm, todo: list[Prompt]) -> Iterator[Drawn]:
    """Draw prompts with our own sampler, batch by batch.

    Args:
        model: of the arm.
        recipe: its ``sample`` and ``data.image_size`` are used, the latter for prompts without a
            size of their own.
        arm: its guidance and temperature are used.
        todo: what to draw; the index of a prompt is the number of its random stream.
    """
    for size, prompts in by_size(todo, recipe).items():
        yield from _draw_size(model, recipe, arm, prompts, grid_of(model, size))


def _draw_size(
    model: UnifiedModel, recipe: Recipe, arm: Arm, todo: list[Prompt], grid: Grid
) -> Iterator[Drawn]:
    settings = sampling_settings(recipe, arm, model.defaults)
    num_codes = model.layout(grid).num_codes
    size = batch_size_of(recipe.sample, model, grid, is_guided=settings.is_guided)
    compiled = compiles(recipe.sample, len(todo), size, num_codes)
    sampler = Sampler(model, grid, compiled=compiled, rows=min(size, len(todo)))

    def sample(batch: list[Prompt]) -> _Codes:
        started = time.perf_counter()
        codes, passes = sampler.sample(*_inputs(recipe, batch, num_codes), settings)
        if codes.is_cuda:
            torch.cuda.current_stream(codes.device).synchronize()
        return _Codes(batch, codes, passes, time.perf_counter() - started)

    on_gpu = next(model.module.parameters()).is_cuda
    decode = partial(_decode, model, grid, torch.cuda.Stream() if on_gpu else None)
    yield from behind(in_batches(todo, size, sample), decode)


@dataclass(frozen=True)
class _Codes:
    """[B, N] codes of B prompts, the forward passes of each, and the seconds of all."""

    prompts: list[Prompt]
    codes: torch.Tensor
    forward_passes: int
    seconds: float


@torch.no_grad()
def _decode(
    model: UnifiedModel, grid: Grid, stream: torch.cuda.Stream | None, drawn: _Codes
) -> Drawn:
    """On a stream of its own (None: on a CPU), beside the steps of the next batch."""
    started = time.perf_counter()
    with torch.cuda.stream(stream):  # type: ignore[arg-type]
        pixels = decode_one_by_one(model, drawn.codes, grid)
    seconds = drawn.seconds + time.perf_counter() - started
    return Drawn(drawn.prompts, pixels, drawn.forward_passes, seconds / len(drawn.prompts))


def _inputs(recipe: Recipe, batch: list[Prompt], num_codes: int) -> tuple[list[str], np.ndarray]:
    """The prompts in ``sample.prompt_template``, and their [B, N] random numbers."""
    uniforms = [image_stream(recipe.sample.seed, p.index, num_codes) for p in batch]
    texts = filled(recipe.sample.prompt_template, (p.caption for p in batch))
    return texts, np.stack(uniforms)


@torch.no_grad()
def draw_images(
    model: UnifiedModel, recipe: Recipe, arm: Arm, prompts: list[Prompt], grid: Grid
) -> tuple[torch.Tensor, int]:
    """[B, 3, H, W] uint8 images of prompts on the CPU, and the forward passes of each.

    The model reads the prompts in ``sample.prompt_template``.
    """
    settings = sampling_settings(recipe, arm, model.defaults)
    texts, uniforms = _inputs(recipe, prompts, model.layout(grid).num_codes)
    codes, forward_passes = sample_codes(model, texts, grid, uniforms, settings)
    return decode_one_by_one(model, codes, grid), forward_passes


def _write(
    recipe: Recipe, arm: Arm, settings: SamplingSettings, folder: Path, drawn: Drawn
) -> list[dict[str, Any]]:
    """Write images to ``folder`` and return their lines of the manifest."""
    template = recipe.sample.prompt_template
    # Only where it is set; "prompt" is what the image is scored by.
    given = {} if template is None else {"prompt_template": template}
    engine = {} if drawn.engine is None else {"engine": asdict(drawn.engine)}
    return [
        {
            "index": prompt.index,
            "split": prompt.split,
            "row": prompt.row,
            "prompt": prompt.caption,
            **given,
            **({} if prompt.size is None else {"image_size": list(prompt.size)}),
            "seed": [recipe.sample.seed, prompt.index],
            "guidance_scale": arm.guidance_scale,
            "sampling": {
                "temperature": settings.temperature,
                "top_k": settings.top_k,
                "top_p": settings.top_p,
            },
            **engine,
            "sha256": _write_png(picture_file(folder, prompt.index), image),
            "forward_passes": drawn.forward_passes,
            "seconds": round(drawn.seconds, 5),
        }
        for prompt, image in zip(drawn.prompts, drawn.pixels, strict=True)
    ]


def _write_png(path: Path, image: torch.Tensor) -> str:
    """Write a [3, H, W] uint8 image and return the sha256 of the file."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()
