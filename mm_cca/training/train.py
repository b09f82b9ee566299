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
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import DistributedType
from tqdm import tqdm

from mm_cca import objectives
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import STEPS_DONE, num_steps, training_settings
from mm_cca.errors import Interrupted, UserError
from mm_cca.modeling.logprobs import Scored, training_attention
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage
from mm_cca.training import checkpoint
from mm_cca.training.accelerator import new_accelerator, on_any_rank, stop_signal
from mm_cca.training.collate import MicroBatch
from mm_cca.training.health import health_of, refuse_gap_at_start, stop_on_nan
from mm_cca.training.losses import loss_of
from mm_cca.training.model_files import write_model
from mm_cca.training.optimizer import learning_rate
from mm_cca.training.resume import refuse_to_continue_from_nothing, resume
from mm_cca.training.schedule import Pairs
from mm_cca.training.setup import TrainingSetup, set_up
from mm_cca.training.step_metrics import MetricsFile, StepMetrics
from mm_cca.training.validation import Validation


def train(recipe: Recipe, run: RunFolder, *, control: bool = False) -> None:
    """Train to ``train.max_steps`` and write ``model/``; resumes from the newest checkpoint.

    A finished training with fewer steps is extended.

    Args:
        recipe: a validated recipe.
        run: holds the token cache; gets ``train/`` (or ``control/``).
        control: train with nll instead of the recipe's objective, on the same images in the same
            order with the same schedule, to measure the effect of the extra steps alone.

    Raises:
        Diverged: NaN or infinity.
        UserError: changed recipe, full disk, a reference that is not the model at step 0.
        Interrupted: after saving.
    """
    folder = run.control if control else run.train
    loss = replace(recipe.loss, objective="nll", text_weight=0.0) if control else recipe.loss
    stage = Stage(folder, training_settings(replace(recipe, loss=loss)), grows=STEPS_DONE)
    if stage.is_done():
        return
    refuse_to_continue_from_nothing(stage)
    accelerator = new_accelerator(recipe.train, folder)
    if accelerator.is_main_process:
        stage.begin()
    setup = set_up(recipe, run, accelerator, loss, folder)
    _run_steps(setup, folder, Validation.of(recipe, run, setup, folder))
    write_model(setup, folder)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        stage.finish()
    # Not end_training(): it would also disconnect the ranks, which still have to sample.
    for tracker in accelerator.trackers:
        tracker.finish()
    # Wrapped objects refer to themselves and would stay in memory during the next stage.
    accelerator.free_memory()


def _run_steps(setup: TrainingSetup, folder: Path, validation: Validation) -> None:
    config, accelerator = setup.train, setup.accelerator
    is_main = accelerator.is_main_process
    last = num_steps(config)
    first, validation.best = resume(accelerator, folder, last)
    bar = tqdm(
        total=last,
        initial=first,
        desc=f"training ({setup.terms.config.objective})",
        unit="step",
        disable=not is_main,
    )
    health = health_of(setup)
    metrics_file = MetricsFile(folder / "metrics.jsonl", first, is_main)
    with metrics_file as metrics, stop_signal() as stopped, bar:
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
                metrics.flush()
                checkpoint.save(
                    accelerator,
                    folder / "checkpoints",
                    done,
                    {"best": validation.best},
                    config.keep_checkpoints,
                )
            if stop and done < last:
                raise Interrupted(f"stopped after step {done}, saved in {folder}")


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
        batch = setup.collate(pairs)
        # With no_sync, FSDP would keep unsharded gradients on every rank.
        sharded = accelerator.distributed_type == DistributedType.FSDP
        sync = nullcontext() if last or sharded else accelerator.no_sync(setup.policy)
        # Also around the backward pass, where gradient checkpointing repeats the forward pass.
        with sync, training_attention(accelerator.device):
            loss, stats = _loss(setup, batch, check_start=step == 0 and number == 0)
            accelerator.backward(loss / len(parts))
        collected.add(loss, stats, batch)
    norm = float(accelerator.clip_grad_norm_(setup.policy.parameters(), config.max_grad_norm))
    numbers = collected.reduce(accelerator)
    stop_on_nan(setup, step, numbers["loss"], norm, folder)
    setup.optimizer.step()
    setup.optimizer.zero_grad()
    if setup.ema is not None:
        setup.ema.update()
    seconds = time.perf_counter() - started
    return {
        **numbers,
        "grad_norm": norm,
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
    )
    if check_start and ref is not None:
        refuse_gap_at_start(scored.logps.detach() - ref.logps)
    if check_start and scored.contrast is not None:
        refuse_gap_at_start(scored.contrast.positive_gap.sum(dim=1))
    return loss_of(setup.terms, batch, scored, ref)
