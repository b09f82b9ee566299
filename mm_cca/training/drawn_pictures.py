"""Pictures that the base drew for the captions of training: the negatives of ``ddo``.

``prepare`` draws them once, for the captions that the planned steps visit, and keeps their codes
beside the token cache and in its layout (``TRAIN_SPLIT-drawn/shards``); nothing is decoded. The
objective compares with the base's own distribution, so they are drawn from exactly that: without
guidance, at temperature 1, without truncation. Other weights are refused by their digest.

Shapes: B pairs, V pictures per caption (``loss.ddo_images``), N codes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from tqdm import tqdm

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.prompt_templates import filled
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import num_steps
from mm_cca.data.token_cache import TokenCache, open_cache
from mm_cca.data.token_shards import FEATURES, shard_path, shards_of, write_shard
from mm_cca.errors import UserError
from mm_cca.modeling.sampler import SamplingSettings, image_stream, sample_codes
from mm_cca.runs.digests import weights_digest
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage
from mm_cca.training.schedule import Schedule

SEED = 0x64646F
"""Of the random streams; the same in every run, so that runs share pictures."""
ROWS_PER_SHARD = 64
"""An interruption loses at most the pictures of so many captions."""


class DrawnPictures:
    """The drawn codes of every caption that training visits."""

    def __init__(self, drawn: TokenCache, cache: TokenCache) -> None:
        self._drawn = drawn
        self._places = torch.from_numpy(_places(drawn, cache))

    def codes(self, rows: np.ndarray, epochs: np.ndarray) -> torch.Tensor:
        """[B] rows of the train split and [B] epochs -> [B, N] int64 codes.

        Every epoch takes the next of a caption's V pictures.
        """
        places = self._places[torch.from_numpy(rows)]
        return self._drawn.codes(places, torch.from_numpy(epochs % self._drawn.num_variants))


def open_drawn(
    recipe: Recipe, run: RunFolder, model: UnifiedModel, cache: TokenCache, schedule: Schedule
) -> DrawnPictures:
    """The pictures of every caption that the planned steps visit.

    Args:
        recipe: a validated recipe.
        run: holds the token cache.
        model: the base, before any LoRA.
        cache: of the train split.
        schedule: of the recipe.

    Raises:
        UserError: pictures are missing, or were drawn by another base or for other captions.
    """
    folder = drawn_folder(recipe, run)
    rows = visited_rows(schedule, num_steps(recipe.train), len(cache))
    Stage(
        folder, _settings(recipe, model), results=("shards/*",)
    ).is_done()  # another base's pictures raise
    drawn = _open(folder, recipe)
    missing = len(rows) if drawn is None else int((_places(drawn, cache)[rows] < 0).sum())
    if drawn is None or missing:
        raise UserError(
            f"loss.objective is {recipe.loss.objective!r}, and ddo needs pictures that the base "
            f"drew: {folder} lacks those of {missing} of {len(rows)} captions. Run `mm-cca prepare "
            "RECIPE` first; it draws only what is missing."
        )
    return DrawnPictures(drawn, cache)


def prepare_drawn(
    recipe: Recipe,
    run: RunFolder,
    schedule: Schedule,
    load_model: Callable[[], UnifiedModel],
) -> None:
    """Draw the missing pictures; the captions are divided among the ranks.

    Args:
        recipe: a validated recipe.
        run: holds the token cache.
        schedule: of the recipe; one without negative captions does.
        load_model: the base in eval mode on this rank's device.

    Raises:
        UserError: the folder holds pictures of another base, or the disk is full.
    """
    state, folder = PartialState(), drawn_folder(recipe, run)
    cache = open_cache(run.tokens / recipe.data.train_split, recipe.data.variants)
    model = load_model()
    stage = _stage(recipe, folder, model)
    done, drawn = stage.is_done(), _open(folder, recipe)
    rows = visited_rows(schedule, num_steps(recipe.train), len(cache))
    if drawn is not None:
        rows = rows[_places(drawn, cache)[rows] < 0]
    # Every rank must list the missing rows before any rank writes, as they divide this list.
    state.wait_for_everyone()
    if done and not len(rows):
        return
    if state.is_main_process:
        run.begin(stage, recipe)
    shards = [rows[i : i + ROWS_PER_SHARD] for i in range(0, len(rows), ROWS_PER_SHARD)]
    _draw_shards(model, recipe, cache, shards[state.process_index :: state.num_processes], folder)
    state.wait_for_everyone()
    if state.is_main_process:
        stage.finish()
    state.wait_for_everyone()


def visited_rows(schedule: Schedule, steps: int, num_rows: int) -> np.ndarray:
    """Sorted rows of the train split that the first ``steps`` steps visit."""
    one_epoch = -(-num_rows // schedule.batch_size)  # visits every row
    return np.unique(
        np.concatenate([schedule.step(step).rows for step in range(min(steps, one_epoch))])
    )


def _draw_shards(
    model: UnifiedModel, recipe: Recipe, cache: TokenCache, shards: list[np.ndarray], folder: Path
) -> None:
    with tqdm(
        total=sum(len(rows) for rows in shards) * recipe.loss.ddo_images,
        desc="drawing pictures for ddo",
        unit="img",
        disable=not PartialState().is_main_process or not shards,
    ) as bar:
        for rows in shards:
            path = shard_path(folder, cache.source_rows[rows[0]])
            table = _draw_rows(model, recipe, cache, rows, bar)
            try:
                write_shard(path, table)
            except OSError as error:
                raise UserError(
                    f"{path} can't be written: {error}. Finished pictures are kept. Free some "
                    "space and run the same command again to resume."
                ) from error


@torch.no_grad()
def _draw_rows(
    model: UnifiedModel, recipe: Recipe, cache: TokenCache, rows: np.ndarray, bar: tqdm
) -> Dataset:
    """One shard: the V pictures of each of these rows."""
    grid, num_pictures = grid_of(model, recipe.data.image_size), recipe.loss.ddo_images
    num_codes = model.layout(grid).num_codes
    numbers = [(row, number) for row in rows.tolist() for number in range(num_pictures)]
    parts = []
    for start in range(0, len(numbers), recipe.sample.batch_size_without_auto):
        batch = numbers[start : start + recipe.sample.batch_size_without_auto]
        captions = filled(recipe.data.caption_template, (cache.captions[row] for row, _ in batch))
        uniforms = [image_stream(SEED + n, cache.source_rows[row], num_codes) for row, n in batch]
        codes, _ = sample_codes(model, captions, grid, np.stack(uniforms), SamplingSettings())
        parts.append(codes.cpu().int())
        bar.update(len(batch))
    return Dataset.from_dict(
        {
            "row": [cache.source_rows[row] for row in rows.tolist()],
            "caption": [cache.captions[row] for row in rows.tolist()],
            "codes": list(torch.cat(parts).view(len(rows), -1).numpy()),
            "problem": [""] * len(rows),
        },
        features=FEATURES,
    )


def drawn_folder(recipe: Recipe, run: RunFolder) -> Path:
    """The folder of the drawn pictures, in the token cache."""
    return run.tokens / f"{recipe.data.train_split}-drawn"


def _open(folder: Path, recipe: Recipe) -> TokenCache | None:
    """The finished shards; None if there are none."""
    if not shards_of(folder):
        return None
    return open_cache(folder, recipe.loss.ddo_images, unfinished=True)


def _places(drawn: TokenCache, cache: TokenCache) -> np.ndarray:
    """[rows of the train split] place of each row among the drawn ones; -1 if not drawn.

    Raises:
        UserError: a picture was drawn for another caption.
    """
    by_row = {row: place for place, row in enumerate(drawn.source_rows)}
    places = np.array([by_row.get(row, -1) for row in cache.source_rows])
    for row in np.flatnonzero(places >= 0).tolist():
        was, is_now = drawn.captions[places[row]], cache.captions[row]
        if was != is_now:
            raise UserError(
                f"the picture for ddo of row {cache.source_rows[row]} was drawn for the caption "
                f"{was!r}; it is now {is_now!r}. Delete the folder of the drawn pictures "
                "(TRAIN_SPLIT-drawn in the token cache) and run `mm-cca prepare RECIPE` again."
            )
    return places


def _stage(recipe: Recipe, folder: Path, model: UnifiedModel) -> Stage:
    return Stage(folder, _settings(recipe, model), results=("shards/*",))


def _settings(recipe: Recipe, model: UnifiedModel) -> dict[str, Any]:
    """Everything the pictures of one caption depend on."""
    template = recipe.data.caption_template
    # Only where it is set, so that pictures drawn without one stay valid.
    prompts = {} if template is None else {"data.caption_template": template}
    return {
        **prompts,
        "model.dtype": recipe.model.dtype,
        "data.image_size": list(recipe.data.image_size),
        "loss.ddo_images": recipe.loss.ddo_images,
        "weights (sha256)": weights_digest(model.module),
    }
