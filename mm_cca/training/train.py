"""Fine-tune a unified model with CCA (or another objective) on its token cache. Read this first.

Launch through the CLI (``mm-cca train RECIPE``), alone or under ``accelerate launch``. One step:
the schedule names the pairs, one forward gives log-probabilities of every image under its own and
its other prompts, the reference gives the same, ``losses.py`` makes a loss of them.

Shapes: B pairs of a micro-batch, M rows with all their prompts.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from tqdm import tqdm

from mm_cca import objectives
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import LossConfig, Recipe
from mm_cca.data.texts import read_texts
from mm_cca.errors import Diverged, Interrupted, UserError
from mm_cca.modeling.logprobs import Scored, training_attention
from mm_cca.runs.digests import texts_digest, words_digest
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage
from mm_cca.training import checkpoint
from mm_cca.training.accelerator import new_accelerator, on_any_rank, stop_signal
from mm_cca.training.collate import MicroBatch
from mm_cca.training.health import health_of
from mm_cca.training.losses import loss_of
from mm_cca.training.model_files import save_model, write_model
from mm_cca.training.optimizer import learning_rate
from mm_cca.training.schedule import Pairs
from mm_cca.training.setup import TrainingSetup, set_up
from mm_cca.training.step_metrics import MetricsFile, StepMetrics
from mm_cca.training.validation import heldout_evaluation

MAX_GAP_AT_START = 1e-3
"""Nats per image; the reference is the same model, so the truth is 0."""


def train(recipe: Recipe, run: RunFolder, *, control: bool = False) -> None:
    """Train to ``train.max_steps`` and write ``model/``; resumes from the newest checkpoint.

    Args:
        recipe: a validated recipe.
        run: holds the token cache; gets ``train/`` (or ``control/``).
        control: train with nll instead of the recipe's objective, on the same images in the same
            order with the same schedule: what the extra steps alone would have given.

    Raises:
        Diverged: NaN or infinity.
        UserError: changed recipe, full disk, a reference that is not the model at step 0.
        Interrupted: after saving.
    """
    folder = run.control if control else run.train
    loss = replace(recipe.loss, objective="nll", text_weight=0.0) if control else recipe.loss
    stage = Stage(folder, _settings(recipe, loss))
    if stage.is_done():
        return
    accelerator = new_accelerator(recipe.train, folder)
    if accelerator.is_main_process:
        stage.begin()
    loop = set_up(recipe, run, accelerator, loss, folder)
    _run_steps(loop, folder, heldout_evaluation(recipe, run, loop))
    write_model(loop, folder)
    loop.accelerator.wait_for_everyone()
    if loop.accelerator.is_main_process:
        stage.finish()
    # Not end_training(): it would also part the ranks, which have sampling still to do.
    for tracker in loop.accelerator.trackers:
        tracker.finish()
    # What accelerate wrapped refers to itself, and would lie there beside whatever follows.
    loop.accelerator.free_memory()


def _settings(recipe: Recipe, loss: LossConfig) -> dict[str, Any]:
    """The keys that decide the result; saving and logging may change between two calls."""
    terms = LossTerms.of(loss)
    free = {"save_every", "keep_checkpoints", "trackers", "control"}
    if not (terms.needs_negatives or terms.needs_teacher):
        free.add("reference")  # plain nll, the control's too, asks none
    data = asdict(recipe.data)
    words, texts = data.pop("attribute_words"), data.pop("text_path")
    groups = {
        "model": asdict(recipe.model),
        "data": data,
        "loss": {key: value for key, value in asdict(loss).items() if key in terms.keys_in_use},
        "train": {k: v for k, v in asdict(recipe.train).items() if k not in free},
    }
    found = {f"{group}.{key}": v for group, keys in groups.items() for key, v in keys.items()}
    # Files by what is in them: the path may stay and the words change.
    if terms.needs_negatives and "edit" in loss.negatives:
        found["attribute words (sha256)"] = words_digest(words)
    if terms.needs_text and texts is not None:
        found["data.text_path (sha256)"] = texts_digest(read_texts(texts, "data.text_path"))
    return found


def _run_steps(loop: TrainingSetup, folder: Path, evaluate: Callable[[], float | None]) -> None:
    config, accelerator = loop.train, loop.accelerator
    state = checkpoint.load_newest(accelerator, folder / "checkpoints") or {"step": 0, "best": None}
    best: float | None = state["best"]
    first = int(state["step"])
    last = config.stop_after or config.max_steps
    bar = tqdm(
        total=last,
        initial=first,
        desc=f"training ({loop.terms.config.objective})",
        unit="step",
        disable=not accelerator.is_main_process,
    )
    health = health_of(loop)
    with (
        MetricsFile(folder / "metrics.jsonl", first, accelerator.is_main_process) as metrics,
        stop_signal() as stopped,
        bar,
    ):
        for step in range(first, last):
            numbers = _step(loop, step, folder)
            done = step + 1
            if config.eval_every and (done % config.eval_every == 0 or done == last):
                heldout = evaluate()
                numbers["heldout_nll"] = heldout
                if (
                    config.keep == "best"
                    and heldout is not None
                    and (best is None or heldout < best)
                ):
                    best = heldout
                    save_model(loop, folder / "best")
            metrics.write(step, numbers)
            accelerator.log({k: v for k, v in numbers.items() if v is not None}, step=step)
            if accelerator.is_main_process:
                for sentence in health.see(numbers):
                    bar.write(f"warning: step {step}: {sentence}", file=sys.stderr)
            bar.update()
            bar.set_postfix(loss=f"{numbers['loss']:.4f}", refresh=False)
            stop = on_any_rank(accelerator, stopped())
            if stop or done % config.save_every == 0 or done == last:
                metrics.flush()
                checkpoint.save(
                    accelerator,
                    folder / "checkpoints",
                    done,
                    {"best": best},
                    config.keep_checkpoints,
                )
            if stop and done < last:
                raise Interrupted(f"stopped after step {done}, saved in {folder}")


def _step(loop: TrainingSetup, step: int, folder: Path) -> dict[str, float | None]:
    """One optimizer step over all micro-batches of this rank; its metrics."""
    config, accelerator = loop.train, loop.accelerator
    started = time.perf_counter()
    rate = learning_rate(step, config)
    for group in loop.optimizer.param_groups:
        group["lr"] = rate
    loop.policy.train()
    collected = StepMetrics()
    parts = list(_micro_batches(loop, loop.schedule.step(step)))
    for number, pairs in enumerate(parts):
        last = number == len(parts) - 1
        batch = loop.collate(pairs)
        # FSDP without it would keep every gradient whole on every rank.
        sharded = accelerator.distributed_type == DistributedType.FSDP
        together = nullcontext() if last or sharded else accelerator.no_sync(loop.policy)
        # Around the backward pass too: gradient checkpointing runs the forward again there.
        with together, training_attention(accelerator.device):
            loss, stats = _loss(loop, batch, check_start=step == 0 and number == 0)
            accelerator.backward(loss / len(parts))
        collected.add(loss, stats, batch)
    norm = accelerator.clip_grad_norm_(loop.policy.parameters(), config.max_grad_norm)
    numbers = collected.reduce(accelerator)
    _stop_on_nan(loop, step, numbers["loss"], float(norm), folder)
    loop.optimizer.step()
    loop.optimizer.zero_grad()
    seconds = time.perf_counter() - started
    return {
        **numbers,
        "grad_norm": float(norm),
        "learning_rate": rate,
        "seconds": seconds,
        "tokens_per_second": collected.tokens * accelerator.num_processes / seconds,
    }


def _micro_batches(loop: TrainingSetup, pairs: Pairs) -> Iterator[Pairs]:
    """This rank's share of a step, in parts of ``micro_batch_size``."""
    world, rank = loop.accelerator.num_processes, loop.accelerator.process_index
    size = loop.train.micro_batch_size
    if loop.train.batch_size % (size * world):
        raise UserError(
            f"train.batch_size is {loop.train.batch_size}; with {world} process(es) and "
            f"train.micro_batch_size {size} it must be a multiple of {size * world}."
        )
    for start in range(rank * size, len(pairs.rows), world * size):
        yield pairs.part(start, start + size)


def _loss(
    loop: TrainingSetup, batch: MicroBatch, check_start: bool
) -> tuple[torch.Tensor, objectives.Stats]:
    ref, teacher = None, None
    if loop.reference is not None:
        with loop.accelerator.autocast():
            if loop.terms.needs_negatives:
                ref = loop.reference.scores(batch)
            if loop.terms.needs_teacher:
                scale = loop.terms.config.distill_scale or loop.model.defaults.guidance_scale
                teacher = loop.reference.teacher(batch, scale)
    text_ids, text_mask = batch.texts or (None, None)
    scored: Scored = loop.policy(
        *batch.prompts, batch.codes, teacher=teacher, text_ids=text_ids, text_mask=text_mask
    )
    if check_start and ref is not None:
        _check_start(scored.logps.detach() - ref.logps)
    return loss_of(loop.terms, batch, scored, ref)


def _check_start(gaps: torch.Tensor) -> None:
    largest = float(gaps.abs().max())
    if not largest <= MAX_GAP_AT_START:
        raise UserError(
            f"before the first step the model and its reference differ by up to {largest:.3g} nats "
            "per image; they are the same model, so every gap must be 0. Likely causes: dropout "
            "that is not switched off, another dtype or attention kernel in one of the two, a LoRA "
            "that does not start at zero, or (train.reference=cached) a cache that another kind of "
            "device computed."
        )


def _stop_on_nan(
    loop: TrainingSetup, step: int, loss: float | None, norm: float, folder: Path
) -> None:
    if loss is not None and math.isfinite(loss) and math.isfinite(norm):
        return
    rows = loop.schedule.step(step).rows.tolist()
    loop.optimizer.zero_grad()
    checkpoint.save(
        loop.accelerator,
        folder / "checkpoints",
        step,
        {"best": None, "nan_rows": rows},
        loop.train.keep_checkpoints,
    )
    raise Diverged(
        f"step {step}: the loss is {loss} and the gradient norm {norm}. The weights before this "
        f"step are saved in {folder / 'checkpoints'}. Rows of the batch: {rows}. Lower "
        "train.learning_rate or loss.lambda_, or use train.mixed_precision=bf16, in a new run.dir."
    )
