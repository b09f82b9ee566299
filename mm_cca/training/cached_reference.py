"""Log-probabilities of the frozen model, computed once by ``prepare`` and kept on disk.

They depend on images, weights and plan, but not on beta, lambda or the learning rate: a sweep
computes them once, and training needs neither a second copy nor a second pass.

A place is the index of a pair in the order of training; its C columns are the own caption, m
negative captions and, with ``ddo``, the drawn picture. Files: ``logps.npy`` [places, C] float32
nats per image, NaN where not computed yet; ``keys.npy`` [places, C] uint64 hashes of prompt and
codes; with ``loss.gap_floor`` only, ``code_logps.npy`` [places, C, N], the nats of every code.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from tqdm import tqdm

from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.keys import REFERENCE
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.read_files import reading
from mm_cca.config.schema import LossConfig, Recipe
from mm_cca.config.stage_keys import num_steps, settings_of, texts_digest
from mm_cca.data.contents import contents_of
from mm_cca.data.token_cache import TokenCache, open_cache
from mm_cca.errors import UserError
from mm_cca.modeling.cpu_attention import training_attention
from mm_cca.modeling.guidance import BaseStates
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.runs.digests import code_digest, refuse_other_files, row_keys, weights_digest
from mm_cca.runs.files import atomic_path
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.places import digests_of
from mm_cca.runs.stage import Stage, recorded
from mm_cca.training.accelerator import stage_accelerator
from mm_cca.training.collate import Collator, MicroBatch
from mm_cca.training.drawn_pictures import open_drawn
from mm_cca.training.reference import RefScores, live_scores
from mm_cca.training.schedule import Schedule, training_schedule

FILE = "logps.npy"
CODE_FILE = "code_logps.npy"
KEYS = "keys.npy"
FLUSH_EVERY = 64


class CachedReference:
    """Reads what ``prepare_reference`` wrote, memory-mapped."""

    def __init__(self, folder: Path, device: torch.device, *, per_code: bool) -> None:
        self._folder = folder
        self._per_code = _array(folder / CODE_FILE) if per_code else None
        self._logps = _array(folder / FILE)
        self._keys = _array(folder / KEYS)
        self._device = device

    def scores(self, batch: MicroBatch) -> RefScores:
        """The cached values. Raises UserError if they were computed for other images or prompts."""
        places = slice(batch.start, batch.start + batch.num_pairs)
        # Own prompts, negatives in blocks, drawn pictures: the collator's order.
        keys = self._keys[places].T.flatten()
        if (keys != row_keys(batch.prompts.ids, batch.prompts.mask, batch.codes)).any():
            raise UserError(
                f"{self._folder} is stale: at place {batch.start} of training it was computed for "
                "other image codes or prompts (new images or words in the same files, or a plan "
                f"made on another kind of device). Delete {self._folder} and run `mm-cca prepare "
                "RECIPE` again."
            )
        logps = torch.from_numpy(self._logps[places].T.flatten())
        if self._per_code is None:
            return RefScores(logps.to(self._device), None)
        by_column = self._per_code[places].swapaxes(0, 1)
        per_code = torch.from_numpy(by_column.reshape(len(logps), -1))
        return RefScores(logps.to(self._device), per_code.to(self._device))

    def base_states(self, batch: MicroBatch, *, conditional: bool) -> BaseStates:
        raise AssertionError("validate_train.py refuses such objectives with a cached reference")


def open_cached(recipe: Recipe, run: RunFolder, model: UnifiedModel) -> Path:
    """The folder of a cache that fits the recipe and this base model (before any LoRA).

    Raises:
        UserError: it was made for another recipe or other weights, or is incomplete.
    """
    cache = open_cache(run.tokens / recipe.data.train_split, recipe.data.variants)
    stage = _stage(recipe, run, model, cache)
    done = stage.is_done()  # a stale cache raises, with the keys that differ
    if done:
        files = (recorded(run.reference) or {}).get("files", {})
        advice = f"Delete {run.reference} and run `mm-cca prepare RECIPE` again."
        refuse_other_files(run.reference, files, advice)
        _tell_other_sizes(recipe, run.reference)
    if not done or _is_incomplete(recipe, run):
        raise UserError(
            f"{run.reference} does not hold all reference log-probabilities of this recipe: run "
            "`mm-cca prepare RECIPE` first; it computes only what is missing."
        )
    return run.reference


def _stage(recipe: Recipe, run: RunFolder, model: UnifiedModel, cache: TokenCache) -> Stage:
    """A cache of other micro-batches serves too: it is equal up to rounding, which is told."""
    return Stage(
        run.reference,
        _settings(recipe, run, model, cache),
        aside=("train.micro_batch_size",),
        results=(FILE,),
    )


def _sizes_used(folder: Path) -> list[int]:
    """The micro-batch sizes that a cache was computed with."""
    stored = recorded(folder)
    if stored is None or not (folder / FILE).exists():
        return []
    one = stored["settings"].get("train.micro_batch_size")
    return list(stored.get("micro_batch_sizes", [one]))


def _tell_other_sizes(recipe: Recipe, folder: Path) -> None:
    sizes, now = _sizes_used(folder), recipe.train.micro_batch_size
    if any(size != now for size in sizes) and PartialState().is_main_process:
        listed = ", ".join(map(str, sizes))
        print(
            f"train.micro_batch_size is {now}, but {folder} was computed with {listed}: the "
            "base's log-probabilities are those of training up to rounding, not to the last bit "
            f"(delete {folder} and run `mm-cca prepare RECIPE` to compute them with {now})",
            file=sys.stderr,
        )


def prepare_reference(recipe: Recipe, run: RunFolder) -> None:
    """Compute the missing part of the cache; each rank fills a block of micro-batches.

    Raises:
        UserError: the cache was made for another recipe or other weights, or the disk is full.
    """
    accelerator = stage_accelerator(recipe.train)
    cache = open_cache(run.tokens / recipe.data.train_split, recipe.data.variants)
    num_places = _num_places(recipe)
    model = load_checkpoint(recipe.model)
    if recipe.train.compile:  # to round as training does
        model.compile()
    stage = _stage(recipe, run, model, cache)
    if stage.is_done() and not _is_incomplete(recipe, run):
        return
    terms = LossTerms.of(recipe.loss)
    schedule = training_schedule(recipe, cache, terms)
    drawn = open_drawn(recipe, run, model, cache, schedule) if terms.needs_drawn else None
    layout = model.layout(grid_of(model, recipe.data.image_size))
    if accelerator.is_main_process:
        sizes = sorted({*_sizes_used(run.reference), recipe.train.micro_batch_size})
        run.begin(stage, recipe, micro_batch_sizes=sizes)
        shape = num_places, _num_columns(terms)
        _allocate(run.reference / KEYS, np.zeros(shape, np.uint64))
        _allocate(run.reference / FILE, np.full(shape, np.nan, np.float32))
        if keeps_codes(recipe.loss):
            per_code = np.full((*shape, layout.num_codes), np.nan, np.float32)
            _allocate(run.reference / CODE_FILE, per_code)
    accelerator.wait_for_everyone()
    policy = CodeLogProbs(model, layout, whole_vocabulary=recipe.loss.whole_vocabulary)
    policy.to(accelerator.device).eval()
    collate = Collator(
        model,
        cache,
        recipe.data.image_size,
        accelerator.device,
        template=recipe.data.caption_template,
        drawn=drawn,
    )
    _fill(run.reference, num_places, accelerator, policy, schedule, collate, recipe)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        names = [FILE, KEYS] + [CODE_FILE] * keeps_codes(recipe.loss)
        digests = digests_of(run.reference / name for name in names)
        stage.finish(files=dict(zip(names, digests, strict=True)))
    accelerator.free_memory()


def _fill(
    folder: Path,
    num_places: int,
    accelerator: Accelerator,
    policy: CodeLogProbs,
    schedule: Schedule,
    collate: Collator,
    recipe: Recipe,
) -> None:
    names = [FILE, KEYS] + [CODE_FILE] * keeps_codes(recipe.loss)
    logps, keys, *of_codes = files = [_array(folder / name, writable=True) for name in names]
    size = recipe.train.micro_batch_size
    missing = [
        place
        for place in range(0, num_places, size)
        if any(np.isnan(file[place : place + size]).any() for file in (logps, *of_codes))
    ]
    accelerator.wait_for_everyone()  # all ranks list the missing places before any rank writes
    # One block per rank: two ranks writing to one page of a shared disk could lose writes.
    rank, ranks = accelerator.process_index, accelerator.num_processes
    rank_places = missing[rank * len(missing) // ranks : (rank + 1) * len(missing) // ranks]
    bar = tqdm(
        rank_places,
        desc="reference log-probabilities",
        unit="batch",
        disable=not accelerator.is_main_process,
    )
    for number, place in enumerate(bar):
        step, first = divmod(place, schedule.batch_size)
        pairs = schedule.step(step).part(first, first + size)
        batch = collate(pairs)
        # Exactly as in training, so that the values are equal to the last bit.
        half = recipe.train.mixed_precision != "no"
        attention = training_attention(accelerator.device, batch.codes.shape[1], half=half)
        with accelerator.autocast(), attention:
            scores = live_scores(policy, batch, torch.inference_mode)
        _refuse_nan(scores.logps, pairs.rows.tolist(), recipe)
        places = slice(place, place + size)
        keys[places] = (
            row_keys(batch.prompts.ids, batch.prompts.mask, batch.codes)
            .reshape(-1, batch.num_pairs)
            .T
        )
        logps[places] = scores.logps.view(-1, batch.num_pairs).T.cpu().numpy()
        for file in of_codes:
            assert scores.per_code is not None
            columns = scores.per_code.cpu().numpy().reshape(-1, batch.num_pairs, file.shape[2])
            file[places] = columns.swapaxes(0, 1)
        if number % FLUSH_EVERY == 0:
            _flush(files)
    _flush(files)


def _flush(files: Iterable[np.memmap]) -> None:
    for file in files:
        file.flush()


def _refuse_nan(logps: torch.Tensor, rows: list[int], recipe: Recipe) -> None:
    if not bool(logps.isfinite().all()):
        raise UserError(
            f"the base gives NaN or infinity for the images in rows {rows} with model.dtype="
            f"{recipe.model.dtype} and train.mixed_precision={recipe.train.mixed_precision}. Use "
            "bf16 or no mixed precision, or check the weights."
        )


def _num_places(recipe: Recipe) -> int:
    return num_steps(recipe.train) * recipe.train.batch_size


def keeps_codes(loss: LossConfig) -> bool:
    """Whether the log-probability of every code is kept, not only their sums."""
    return loss.gap_floor is not None


def _num_columns(terms: LossTerms) -> int:
    num_negatives = terms.config.num_negatives if terms.needs_negatives else 0
    return 1 + num_negatives + terms.needs_drawn


def _is_incomplete(recipe: Recipe, run: RunFolder) -> bool:
    names = [FILE] + [CODE_FILE] * keeps_codes(recipe.loss)
    return any(_num_missing(run.reference / name, _num_places(recipe)) for name in names)


def _array(file: Path, *, writable: bool = False) -> np.memmap:
    """An array of the cache, memory-mapped. Raises UserError if it is damaged."""
    with reading(file, f"Delete {file.parent} and run `mm-cca prepare RECIPE` again."):
        array: np.memmap = np.load(file, mmap_mode="r+" if writable else "r")
        return array


def _num_missing(file: Path, num_places: int) -> int:
    if not file.exists():
        return num_places
    logps = _array(file)
    if len(logps) < num_places:
        return num_places - len(logps)
    return int(np.isnan(logps[:num_places]).reshape(num_places, -1).any(axis=1).sum())


def _allocate(file: Path, empty: np.ndarray) -> None:
    """Write ``empty``, keeping the rows of an existing shorter file."""
    if file.exists():
        old = _array(file)
        if old.shape[1:] != empty.shape[1:] or old.dtype != empty.dtype:
            raise UserError(
                f"{file} holds {old.dtype} of shape {list(old.shape)}, not {empty.dtype} of "
                f"{list(empty.shape)}. Delete {file.parent} and run `mm-cca prepare RECIPE` again."
            )
        if len(old) >= len(empty):
            return
        empty[: len(old)] = old
    try:
        # Write every byte now: a memory-mapped file on a full disk kills the process.
        with atomic_path(file) as temporary, temporary.open("wb") as out:
            np.save(out, empty)
    except OSError as error:
        raise UserError(f"{file} can't be written: {error}. Free some space.") from error


def _settings(
    recipe: Recipe, run: RunFolder, model: UnifiedModel, cache: TokenCache
) -> dict[str, Any]:
    """Everything the cached values depend on, to the last bit."""
    terms = LossTerms.of(recipe.loss)
    # Only with drawn pictures, so that caches without them stay valid.
    columns = {"rows per pair": _num_columns(terms)} if terms.needs_drawn else {}
    texts: dict[str, str] = {}
    if cache.texts is not None:
        every = (text for row in cache.texts for text in row)
        texts = {"all captions (sha256)": texts_digest(every)}
    splits = [recipe.data.train_split]
    return {
        **settings_of(REFERENCE, recipe, contents=contents_of(recipe, run, splits)),
        **columns,
        "captions (sha256)": texts_digest(cache.captions),
        **texts,
        "weights (sha256)": weights_digest(model.module),
        "adapter": code_digest(model),
    }
