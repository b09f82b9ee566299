"""Measures what the base knows about its prompts, and settles ``loss.beta: auto`` with it."""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NotRequired

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm
from typing_extensions import TypedDict

from mm_cca.adapters.base import Grid
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.read_files import is_there, json_of
from mm_cca.config.schema import LossConfig, Recipe
from mm_cca.config.schema_train import AUTO
from mm_cca.data.token_cache import TokenCache
from mm_cca.errors import UserError
from mm_cca.modeling.cpu_attention import training_attention
from mm_cca.modeling.inputs import PaddedTokens
from mm_cca.modeling.logprobs import CodeLogProbs, Scored
from mm_cca.runs.files import write_json
from mm_cca.training.beta_rule import (
    LEAST_NATS,
    BaseMeasurement,
    Spread,
    beta_by_rule,
    formula_of,
)
from mm_cca.training.collate import Collator
from mm_cca.training.schedule import Pairs, Schedule

LEAST_PAIRS = 32
"""Fewer pairs can't set beta: the ratios of single images differ by a factor of four."""
AUTO_PAIRS = 64
"""Pairs that ``auto`` measures where there are as many; the standard error is then some 6 %."""
FILE = "beta.json"


class _Beta(TypedDict):
    beta: float
    beta_codes: NotRequired[int | None]


def measure_base(
    recipe: Recipe,
    cache: TokenCache,
    schedule: Schedule,
    policy: CodeLogProbs,
    accelerator: Accelerator,
    num_pairs: int,
) -> BaseMeasurement:
    """Score the first training pairs with own, negative and unconditional prompts, all kept.

    Args:
        recipe: a validated recipe.
        cache: of the train split.
        schedule: the recipe's own, with negatives.
        policy: the base, on the accelerator's device; without a gradient, in eval mode meanwhile.
        accelerator: for autocast and the device. Every rank measures the same pairs.
        num_pairs: how many, rounded up to whole micro-batches.

    Raises:
        UserError: NaN or infinity.
    """
    model, device = policy.model, accelerator.device
    collate = Collator(
        model,
        cache,
        recipe.data.image_size,
        device,
        template=recipe.data.caption_template,
        with_unconditional=True,
    )
    was_training = policy.training
    policy.eval()
    unconditional, negative = [], []
    bar = tqdm(
        total=num_pairs,
        desc="log-probabilities of the base",
        unit="pair",
        disable=not accelerator.is_main_process,
    )
    half = recipe.train.mixed_precision != "no"
    num_codes: list[int] = []
    with bar, torch.no_grad(), accelerator.autocast():
        for pairs in _parts(schedule, recipe.train.micro_batch_size, num_pairs):
            batch, count = collate(pairs), len(pairs.rows)
            num_codes += [batch.codes.shape[1]] * count
            assert batch.unconditional is not None
            with training_attention(device, num_codes[-1], half=half):
                scored, without = (
                    _scored(policy, prompts, batch.codes[: len(prompts.ids)], batch.grid)
                    for prompts in (batch.prompts, batch.unconditional)
                )
            own, other = scored.logps[:count], scored.logps[batch.negatives]
            unconditional.append((own - without.logps).cpu())
            negative.append((own - other.view(-1, count)).cpu())
            bar.update(count)
    policy.train(was_training)
    measured = torch.cat(unconditional).numpy(), torch.cat(negative, dim=1).numpy()
    _refuse_nan(recipe, *measured)
    return BaseMeasurement(
        Spread.of(measured[0]),
        Spread.of(measured[1]),
        len(measured[0]),
        round(float(np.mean(num_codes))),
        model.defaults.guidance_scale,
    )


def _scored(
    policy: CodeLogProbs, prompts: PaddedTokens, codes: torch.Tensor, grid: Grid | None
) -> Scored:
    scored: Scored = policy(prompts.ids, prompts.mask, codes, grid=grid)
    return scored


def settle_beta(
    recipe: Recipe,
    loss: LossConfig,
    cache: TokenCache,
    schedule: Schedule,
    policy: CodeLogProbs,
    accelerator: Accelerator,
    folder: Path,
) -> LossConfig:
    """``loss`` with a number in place of ``beta: auto``; unchanged if nothing depends on beta.

    The first start measures and writes ``beta.json``; a resumed training reads it, so that every
    step has the same beta. All ranks take rank 0's number.

    Args:
        recipe: a validated recipe.
        loss: the recipe's, or the control's.
        cache: of the train split.
        schedule: of the training.
        policy: the base; a LoRA may be attached, but must not have been trained.
        accelerator: its device holds ``policy``.
        folder: of the training.

    Raises:
        UserError: fewer than 32 images, or what ``measure_base`` raises.
    """
    if loss.beta != AUTO or LossTerms.of(loss).weights.keys().isdisjoint(("cca", "dpo")):
        return loss
    path, main = folder / FILE, accelerator.is_main_process
    found: list[_Beta | None] = [_recorded(path) if main else None]
    broadcast_object_list(found)
    if found[0] is None:
        _refuse_too_few(recipe, len(cache.captions))
        num_pairs = min(AUTO_PAIRS, len(cache.captions))
        measured = measure_base(recipe, cache, schedule, policy, accelerator, num_pairs)
        settled = _Beta(beta=beta_by_rule(measured))
        if cache.sizes is not None and measured.few_codes:  # the codes decide, and they differ
            settled["beta_codes"] = measured.num_codes
        found = [settled]
        broadcast_object_list(found)
        if main:
            write_json(
                path, {**settled, "rule": formula_of(measured), "measured": asdict(measured)}
            )
            tqdm.write(_told(measured), file=sys.stderr)
    assert found[0] is not None
    # The rule's beta belongs to these images: nothing is left to rescale, but with buckets their
    # lengths, where these decided.
    return replace(loss, beta=found[0]["beta"], beta_codes=found[0].get("beta_codes"))


def _recorded(path: Path) -> _Beta | None:
    """The beta that an earlier start of this training measured."""
    if not is_there(path):
        return None
    advice = f"It holds the beta of the steps already done. Delete {path.parent} to start over."
    return json_of(path, _Beta, advice)


def _refuse_too_few(recipe: Recipe, num_images: int) -> None:
    if num_images < LEAST_PAIRS:
        raise UserError(
            f"loss.beta is auto, but data.train_split={recipe.data.train_split} has {num_images} "
            f"usable images; allowed: auto with {LEAST_PAIRS} or more, as it measures the base on "
            "them. Add images, or give loss.beta a number such as 0.01 with loss.beta_codes=null."
        )


def _refuse_nan(recipe: Recipe, *ratios: np.ndarray) -> None:
    if not all(np.isfinite(values).all() for values in ratios):
        raise UserError(
            f"the base gives NaN or infinity with model.dtype={recipe.model.dtype} and "
            f"train.mixed_precision={recipe.train.mixed_precision}. Use bf16 or no mixed "
            "precision, or check the weights."
        )


def _told(measured: BaseMeasurement) -> str:
    uncond, negative = measured.unconditional, measured.negative
    text = (
        f"loss.beta=auto: log p(x|c) is {uncond.mean:.1f} +- {uncond.error:.1f} nats per image "
        f"above log p(x) and {negative.mean:.1f} +- {negative.error:.1f} above log p(x|negative c) "
        f"({measured.num_pairs} pairs), so beta is {formula_of(measured)}"
    )
    if max(uncond.mean, negative.mean) <= LEAST_NATS:
        text += (
            "\nwarning: the base depends on its prompts by less than a nat per image; nothing can "
            "be contrasted. Is model.path a trained model, and image_size one that it knows?"
        )
    return text


def _parts(schedule: Schedule, size: int, num_pairs: int) -> Iterator[Pairs]:
    """The first training pairs in micro-batches, all with their captions (none dropped)."""
    done = 0
    for step in itertools.count():
        pairs = schedule.step(step)
        kept = replace(pairs, dropped=np.zeros_like(pairs.dropped))
        for start in range(0, schedule.batch_size, size):
            if done >= num_pairs:
                return
            yield kept.part(start, start + size)
            done += size
