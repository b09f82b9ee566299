"""Log-probabilities of the frozen model, computed once by ``prepare`` and kept on disk.

They depend on images, weights and plan, but not on beta, lambda or the learning rate: a sweep pays
for them once, and training needs neither a second copy of the model nor a second pass.

Shapes: a place is a pair in the order of training; m other prompts per pair.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.attention import training_attention
from mm_cca.batches import Schedule
from mm_cca.collate import Collator, MicroBatch
from mm_cca.digests import code_digest, texts_digest, weights_digest
from mm_cca.errors import UserError
from mm_cca.guided_kl import Teacher
from mm_cca.logprobs import CodeLogProbs
from mm_cca.losses import LossTerms
from mm_cca.planning import training_schedule
from mm_cca.reference import RefScores, live_scores
from mm_cca.run import RunFolder, Stage
from mm_cca.schema import Recipe
from mm_cca.tokens import TokenCache, open_cache

FILE = "logps.npy"
FLUSH_EVERY = 64
DEPENDS_ON = (
    "data.path",
    "data.image_size",
    "data.variants",
    "data.max_zoom",
    "data.max_shift",
    "data.attribute_words",
    "loss.uncond_ratio",
    "loss.negatives",
    "loss.num_negatives",
    "loss.negatives_embedding",
    "loss.hard_candidates",
    "loss.max_similarity",
    "loss.whole_vocabulary",
    "train.seed",
    "train.micro_batch_size",
    "train.mixed_precision",
)
"""Keys of a recipe, beside those of the model, that the numbers depend on, to the last bit."""


class CachedReference:
    """Reads what ``prepare_reference`` wrote, memory-mapped."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._logps = np.load(folder / FILE, mmap_mode="r")
        self._device = device

    def scores(self, batch: MicroBatch) -> RefScores:
        rows = self._logps[batch.start : batch.start + batch.num_pairs]
        # Own prompts first, then each of the others in a block: as the collator orders them.
        logps = torch.from_numpy(np.ascontiguousarray(rows.T)).flatten()
        return RefScores(logps.to(self._device), None)

    def teacher(self, batch: MicroBatch, scale: float) -> Teacher:
        raise AssertionError("checks.py refuses distill with train.reference=cached")


def open_cached(recipe: Recipe, run: RunFolder, model: UnifiedModel) -> Path:
    """The folder of a cache that fits the recipe and this base model (before any LoRA).

    Raises:
        UserError: it was made for another recipe or other weights, or is not complete.
    """
    cache = open_cache(run.tokens / recipe.data.train_split, recipe.data.variants)
    stage = Stage(run.reference, _settings(recipe, model, cache))
    done = stage.is_done()  # refuses a stale one, key by key
    if not done or _num_missing(run.reference / FILE, _num_places(recipe)):
        raise UserError(
            f"{run.reference} does not hold all reference log-probabilities of this recipe: run "
            "`mm-cca prepare RECIPE` first; it goes on from what is there."
        )
    return run.reference


def prepare_reference(recipe: Recipe, run: RunFolder) -> None:
    """Compute what is missing of the cache; ranks take turns at the micro-batches.

    Raises:
        UserError: the cache was made for another recipe or other weights.
    """
    accelerator = Accelerator(mixed_precision=recipe.train.mixed_precision)
    cache = open_cache(run.tokens / recipe.data.train_split, recipe.data.variants)
    model = load_checkpoint(recipe.model)
    stage = Stage(run.reference, _settings(recipe, model, cache))
    file, num_places = run.reference / FILE, _num_places(recipe)
    if stage.is_done() and not _num_missing(file, num_places):
        return
    schedule = training_schedule(recipe, cache, LossTerms.of(recipe.loss))
    if accelerator.is_main_process:
        stage.begin()
        _allocate(file, num_places, 1 + recipe.loss.num_negatives)
    accelerator.wait_for_everyone()
    policy = CodeLogProbs(
        model,
        model.layout(grid_of(model, recipe.data.image_size)),
        whole_vocabulary=recipe.loss.whole_vocabulary,
    )
    policy.to(accelerator.device).eval()
    collate = Collator(model, cache, recipe.data.image_size, accelerator.device)
    _fill(file, num_places, accelerator, policy, schedule, collate, recipe)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        stage.finish()
    accelerator.free_memory()


def _fill(
    file: Path,
    num_places: int,
    accelerator: Accelerator,
    policy: CodeLogProbs,
    schedule: Schedule,
    collate: Collator,
    recipe: Recipe,
) -> None:
    logps = np.load(file, mmap_mode="r+")
    size = recipe.train.micro_batch_size
    missing = [p for p in range(0, num_places, size) if np.isnan(logps[p : p + size]).any()]
    accelerator.wait_for_everyone()  # or a slow rank would see what a quick one wrote
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    for number, place in enumerate(
        tqdm(
            mine,
            desc="reference log-probabilities",
            unit="batch",
            disable=not accelerator.is_main_process,
        )
    ):
        step, first = divmod(place, schedule.batch_size)
        batch = collate(schedule.step(step).part(first, first + size))
        # Everything as in training, so that the numbers are the same to the last bit.
        with accelerator.autocast(), training_attention(accelerator.device):
            found = live_scores(policy, batch, torch.inference_mode).logps
        logps[place : place + size] = found.view(-1, batch.num_pairs).T.cpu().numpy()
        if number % FLUSH_EVERY == 0:
            logps.flush()
    logps.flush()


def _num_places(recipe: Recipe) -> int:
    return (recipe.train.stop_after or recipe.train.max_steps) * recipe.train.batch_size


def _num_missing(file: Path, num_places: int) -> int:
    if not file.exists():
        return num_places
    logps = np.load(file, mmap_mode="r")
    if len(logps) < num_places:
        return num_places - len(logps)
    return int(np.isnan(logps[:num_places]).any(axis=1).sum())


def _allocate(file: Path, num_places: int, columns: int) -> None:
    """A file of NaN, with what an earlier, shorter one held."""
    old = np.load(file, mmap_mode="r") if file.exists() else np.empty((0, columns), np.float32)
    if len(old) >= num_places:
        return
    beside = file.with_name(file.name + ".partial")
    new = np.lib.format.open_memmap(
        beside, mode="w+", dtype=np.float32, shape=(num_places, columns)
    )
    new[: len(old)] = old
    new[len(old) :] = np.nan
    new.flush()
    beside.replace(file)


def _settings(recipe: Recipe, model: UnifiedModel, cache: TokenCache) -> dict[str, Any]:
    """All that the numbers depend on, to the last bit."""
    groups = asdict(recipe)
    values = {key: groups[key.split(".")[0]][key.split(".")[1]] for key in DEPENDS_ON}
    return {
        **values,
        **{f"model.{key}": value for key, value in asdict(recipe.model).items()},
        "captions (sha256)": texts_digest(cache.captions),
        "weights (sha256)": weights_digest(model.module),
        "adapter": code_digest(model),
    }
