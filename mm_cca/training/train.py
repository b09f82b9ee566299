"""Fine-tune a unified model with CCA (or another objective) on its token cache. Read this first.

Launch through the CLI (``mm-cca train RECIPE``), alone or under ``accelerate launch``. One step:

    pairs     = schedule.step(n)            images x, their captions c, negative captions c'
    batch     = collate(pairs)              prompt ids and mask, image codes
    logps     = policy(batch)               log p(x | c) and log p(x | c'), summed over codes
    ref_logps = reference.scores(batch)     the same under the frozen base
    gap       = logps - ref_logps           so that, with the paper's equation 11,
    loss      = -log sigmoid(beta gap(x, c)) - lambda log sigmoid(-beta gap(x, c'))

``schedule.py``, ``collate.py``, ``modeling/logprobs.py``, ``reference.py``, ``losses.py`` and
``objectives.py`` hold these lines in this order.

Shapes: B pairs of a micro-batch, M rows with all their prompts.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import DistributedType
from tqdm import tqdm

from mm_cca import objectives
from mm_cca.config.schema import LossConfig, Recipe
from mm_cca.config.stage_keys import STEPS_DONE, num_steps, training_settings
from mm_cca.data.contents import contents_of
from mm_cca.errors import Interrupted, UserError
from mm_cca.modeling.cpu_attention import training_attention
from mm_cca.modeling.logprobs import Scored
from mm_cca.runs.digests import model_digests
from mm_cca.runs.folder import TRAINED, RunFolder
from mm_cca.runs.stage import Stage
from mm_cca.training import checkpoint
from mm_cca.training.accelerator import new_accelerator, on_any_rank, stop_signal
from mm_cca.training.collate import MicroBatch
from mm_cca.training.health import health_of, loses_step, refuse_gap_at_start, stop_on_nan
from mm_cca.training.losses import loss_of
from mm_cca.training.model_files import write_model
from mm_cca.training.optimizer import learning_rate
from mm_cca.training.previews import Previews, refuse_sharded
from mm_cca.training.resume import (
    computed_with,
    forget_start,
    refuse_to_continue_from_nothing,
    resume,
)
from mm_cca.training.schedule import Pairs
from mm_cca.training.setup import TrainingSetup, set_up
from mm_cca.training.step_metrics import MetricsFile, StepMetrics
from mm_cca.training.validation import Validation


def train(
    recipe: Recipe,
    run: RunFolder,
    *,
    control: bool = False,
    previews: Callable[[], Sequence[tuple[int, str]]] | None = None,
) -> None:
    """Train to ``train.max_steps`` and write ``model/``; resumes from the newest checkpoint.

    A finished training with fewer steps is extended.

    Args:
        recipe: a validated recipe.
        run: holds the token cache; gets ``train/`` (or ``control/``).
        control: train with nll instead of the recipe's objective, on the same images in the same
            order with the same schedule, to measure the effect of the extra steps alone.
        previews: number of the random stream and text of every prompt of the previews
            (sample.every); None: none are drawn.

    Raises:
        Diverged: NaN or infinity.
        UserError: changed recipe, full disk, a reference that is not the model at step 0, previews
            that can't be drawn.
        Interrupted: after saving.
    """
    stage, folder = training_stage(recipe, run, control=control), _folder(run, control)
    if stage.is_done():
        return
    refuse_to_continue_from_nothing(stage)
    accelerator = new_accelerator(recipe.train, folder)
    prompts = [] if previews is None else previews()
    if prompts:
        refuse_sharded(recipe, accelerator)
    if accelerator.is_main_process and stage.holds_nothing():
        forget_start(folder)
    accelerator.wait_for_everyone()
    setup = set_up(recipe, run, accelerator, _loss_of(recipe, control), folder)
    validation = Validation.of(recipe, run, setup, folder)
    pictures = Previews.of(recipe, setup, folder, prompts, num_steps(recipe.train))
    if accelerator.is_main_process:  # all checks have passed
        run.begin(stage, recipe, computed_with=computed_with(recipe, folder))
    _run_steps(setup, folder, validation, pictures)
    write_model(setup, folder)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        stage.finish(weights=model_digests(folder / "model"))
    # Not end_training(): it would also disconnect the ranks, which still have to sample.
    for tracker in accelerator.trackers:
        tracker.finish()
    # Wrapped objects refer to themselves and would stay in memory during the next stage.
    accelerator.free_memory()


def training_stage(recipe: Recipe, run: RunFolder, *, control: bool = False) -> Stage:
    """The stage of a recipe's training, or of its control's."""
    recipe = replace(recipe, loss=_loss_of(recipe, control))
    names = [recipe.data.train_split]
    if recipe.train.keep == "best" and recipe.data.heldout_split is not None:
        names.append(recipe.data.heldout_split)
    settings = training_settings(recipe, contents_of(recipe, run, names))
    return Stage(_folder(run, control), settings, grows=STEPS_DONE, results=TRAINED)


def _folder(run: RunFolder, control: bool) -> Path:
    return run.control if control else run.train


def _loss_of(recipe: Recipe, control: bool) -> LossConfig:
    return replace(recipe.loss, objective="nll", text_weight=0.0) if control else recipe.loss


def _run_steps(
    setup: TrainingSetup, folder: Path, validation: Validation, previews: Previews | None
) -> None:
    config, accelerator = setup.train, setup.accelerator
    is_main = accelerator.is_main_process
    last = num_steps(config)
    first, validation.best = resume(accelerator, folder, last)
    bar = tqdm(
        total=last,
        initial=first,
        desc=f"training ({setup.terms.config.objective})",
        unit="step",
        # What is left by the mean of all steps: checkpoints, evaluations and previews belong to it,
        # and a busy minute must not be taken for the rest.
        smoothing=0,
        disable=not is_main,
    )
    health = health_of(setup, first)
    metrics_file = MetricsFile(folder / "metrics.jsonl", first, is_main)
    with metrics_file as metrics, stop_signal() as stopped, bar:
        if previews is not None:
            previews.begin(first, stopped)
        for step in range(first, last):
            done = step + 1
            numbers = _step(setup, step, folder) | validation.after(done, is_last=done == last)
            metrics.write(step, numbers)
            accelerator.log({k: v for k, v in numbers.items() if v is not None}, step=step)
            if is_main:
                for warning in health.see(numbers):
                    bar.write(f"warning: step {step}: {warning}", file=sys.stderr)
            bar.update()
            bar.set_postfix(loss=f"{numbers['loss']:.4f}", refresh=False)
            stop = on_any_rank(accelerator, stopped())
            if stop or done % config.save_every == 0 or done == last:
                checkpoint.save(
                    accelerator,
                    folder / "checkpoints",
                    done,
                    {"best": validation.best},
                    config.keep_checkpoints,
                )
            if stop and done < last:
                raise Interrupted(f"stopped after step {done}, saved in {folder}")
            if previews is not None:
                previews.after(done, numbers["seconds"] or 0.0)


def _step(setup: TrainingSetup, step: int, folder: Path) -> dict[str, float | None]:
    """One optimizer step over all micro-batches of this rank; its metrics."""
    config, accelerator = setup.train, setup.accelerator
    started = time.perf_counter()
    rate = learning_rate(step, config)
    for group in setup.optimizer.param_groups:
        group["lr"] = rate
    setup.policy.train()
    collected = StepMetrics()
    parts = list(_micro_batches(setup, setup.schedule.step(step)))
    for number, pairs in enumerate(parts):
        last = number == len(parts) - 1
        accelerator.sync_gradients = last  # DeepSpeed steps inside the last backward pass
        batch = setup.collate(pairs)
        # With no_sync, FSDP would keep unsharded gradients on every rank.
        sharded = accelerator.distributed_type == DistributedType.FSDP
        sync = nullcontext() if last or sharded else accelerator.no_sync(setup.policy)
        # Also around the backward pass, where gradient checkpointing repeats the forward pass.
        half = config.mixed_precision != "no"
        with sync, training_attention(accelerator.device, batch.codes.shape[1], half=half):
            loss, stats = _loss(setup, batch, check_start=step == 0 and number == 0)
            accelerator.backward(loss / len(parts))
        collected.add(loss, stats, batch)
    norm = float(accelerator.clip_grad_norm_(setup.policy.parameters(), config.max_grad_norm))
    numbers = collected.reduce(accelerator)
    lost = loses_step(setup, numbers["loss"], norm)
    if not lost:
        stop_on_nan(setup, step, numbers["loss"], norm, folder)
    setup.optimizer.step()
    setup.optimizer.zero_grad()
    if setup.ema is not None:
        setup.ema.update()
    seconds = time.perf_counter() - started
    grid = batch.grid  # all of a step have one
    shape = {} if grid is None else {"grid_rows": float(grid[0]), "grid_columns": float(grid[1])}
    return {
        **numbers,
        **shape,
        "grad_norm": None if lost else norm,
        "learning_rate": rate,
        "seconds": seconds,
        "tokens_per_second": collected.tokens * accelerator.num_processes / seconds,
    }


def _micro_batches(setup: TrainingSetup, pairs: Pairs) -> Iterator[Pairs]:
    """This rank's share of a step, in parts of ``micro_batch_size``."""
    world, rank = setup.accelerator.num_processes, setup.accelerator.process_index
    size = setup.train.micro_batch_size
    if setup.train.batch_size % (size * world):
        raise UserError(
            f"train.batch_size is {setup.train.batch_size}; with {world} process(es) and "
            f"train.micro_batch_size {size} it must be a multiple of {size * world}."
        )
    for start in range(rank * size, len(pairs.rows), world * size):
        yield pairs.part(start, start + size)


def _loss(
    setup: TrainingSetup, batch: MicroBatch, check_start: bool
) -> tuple[torch.Tensor, objectives.Stats]:
    """The loss of one micro-batch [] and its statistics."""
    ref, base = None, None
    if setup.reference is not None:
        with setup.accelerator.autocast():
            if setup.terms.needs_reference:
                ref = setup.reference.scores(batch)
            if setup.terms.needs_base:
                conditional = setup.terms.needs_conditional_base
                base = setup.reference.base_states(batch, conditional=conditional)
    scored: Scored = setup.policy(
        batch.prompts.ids,
        batch.prompts.mask,
        batch.codes,
        base=base,
        code_terms=setup.code_terms,
        text_ids=None if batch.texts is None else batch.texts.ids,
        text_mask=None if batch.texts is None else batch.texts.mask,
        grid=batch.grid,
    )
    if check_start:
        gaps = [] if ref is None else [scored.logps.detach() - ref.logps]
        gaps += [] if scored.contrast is None else [scored.contrast.positive_gap.sum(dim=1)]
        for gap in gaps:
            num_codes = batch.codes.shape[1]
            refuse_gap_at_start(gap, num_codes, compiled=setup.train.compile)
    return loss_of(setup.terms, batch, scored, ref)
