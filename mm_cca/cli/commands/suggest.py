"""A starting beta and lambda, from the base's log-probabilities with own and negative captions."""

import argparse
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import grid_of
from mm_cca.cli.commands.prepare import prepare_tokens
from mm_cca.cli.commands.quiet import quiet_libraries
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import AnyRecipe, Recipe
from mm_cca.data.token_cache import open_cache
from mm_cca.errors import UserError
from mm_cca.modeling.logprobs import CodeLogProbs, Scored, training_attention
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import locked
from mm_cca.training.collate import Collator
from mm_cca.training.schedule import Pairs, Schedule, training_schedule


def suggest(args: argparse.Namespace) -> int:
    """Run ``mm-cca suggest``."""
    from mm_cca.config.load import load_config

    recipe = load_config(args.recipe, args.overrides)
    print(suggest_constants(recipe, args.pairs, args.scale))
    return 0


def suggest_constants(recipe: AnyRecipe, num_pairs: int, scale: float | None) -> str:
    """Measure the base and propose a beta and a lambda, as text.

    Raises:
        UserError: another job's recipe, too few pairs, or what ``prepare`` raises.
    """
    if not isinstance(recipe, Recipe):
        raise UserError(f"a {recipe.job} recipe has no beta; use a finetune recipe.")
    if num_pairs < 2:
        raise UserError(f"--pairs is {num_pairs}; allowed: 2 or more.")
    if scale is not None and scale <= 1:
        raise UserError(f"--scale is {scale:g}; it must be above 1 (1 means no guidance).")
    quiet_libraries()
    run = RunFolder.of(recipe)
    with locked(run.root):
        prepare_tokens(recipe, run)
        measured = measure(recipe, run, num_pairs)
    return explain(measured, suggestion_of(measured, scale or measured.usual_scale))


USUAL_LAMBDA = 10.0
"""Scores hardly change from 1 to 30 on emoji (RESULTS.md); larger values need more steps."""


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and the 10 % and 90 % quantiles, in nats per image."""

    mean: float
    std: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        low, high = np.quantile(values, [0.1, 0.9]).tolist()
        return cls(float(values.mean()), float(values.std()), low, high)


@dataclass(frozen=True)
class BaseMeasurement:
    """Log-likelihood ratios of the base on training pairs, in nats per image.

    Attributes:
        unconditional: log p(x | c) - log p(x).
        negative: log p(x | c) - log p(x | negative c).
        num_pairs: how many pairs were measured.
        num_codes: per image.
        usual_scale: the model family's default guidance scale.
    """

    unconditional: Spread
    negative: Spread
    num_pairs: int
    num_codes: int
    usual_scale: float


@dataclass(frozen=True)
class Suggestion:
    """The proposed constants.

    Attributes:
        beta: at the measured number of codes.
        lambda_: weight of the loss on negatives.
        scale: the guidance scale to replace.
        negative_gap: how far that guidance lowers log p(x | negative c), in nats per image.
    """

    beta: float
    lambda_: float
    scale: float
    negative_gap: float


def suggestion_of(measured: BaseMeasurement, scale: float) -> Suggestion:
    """Beta and lambda for a guidance scale s, from the measured log-likelihood ratios.

    Guidance of scale s adds (s - 1) (log p(x | c) - log p(x)) to log p(x | c). For a negative
    caption c' it lowers log p(x | c') by about (s - 1) (log p(x) - log p(x | c')), which is
    (s - 1) (negative - unconditional). The gradient of CCA's negatives vanishes once beta times
    their gap is well below -1, so beta is the inverse of that distance. Lambda is kept below
    exp(log p(x | c) - log p(x)), above which the optimum
    ``beta * gap = log p(x | c) - log p(x) - log lambda`` (arXiv 2410.09347, section 3) lowers the
    likelihood of the training pairs.
    """
    distance = (scale - 1) * (measured.negative.mean - measured.unconditional.mean)
    # A base that ignores its prompts gives no distance; one nat keeps beta at most 1.
    negative_gap = max(distance, 1.0)
    bound = math.exp(min(measured.unconditional.low, 50.0))
    lambda_ = min(USUAL_LAMBDA, max(1.0, bound))
    return Suggestion(1 / negative_gap, lambda_, scale, negative_gap)


def measure(recipe: Recipe, run: RunFolder, num_pairs: int) -> BaseMeasurement:
    """Score the first training pairs with own, negative and unconditional prompts.

    Raises:
        UserError: no token cache yet, or captions from which no negatives can be built.
    """
    accelerator = Accelerator(mixed_precision=recipe.train.mixed_precision)
    cache = open_cache(run.tokens / recipe.data.train_split, recipe.data.variants)
    contrastive = LossTerms.of(replace(recipe.loss, objective="cca", uncond_ratio=0.0))
    schedule = training_schedule(recipe, cache, contrastive)
    model = load_checkpoint(recipe.model)
    layout = model.layout(grid_of(model, recipe.data.image_size))
    policy = CodeLogProbs(model, layout, whole_vocabulary=recipe.loss.whole_vocabulary)
    policy.to(accelerator.device).eval().requires_grad_(False)
    device = accelerator.device
    collate = Collator(model, cache, recipe.data.image_size, device, with_unconditional=True)
    unconditional, negative = [], []
    with tqdm(total=num_pairs, desc="log-probabilities of the base", unit="pair") as bar:
        for pairs in _parts(schedule, recipe.train.micro_batch_size, num_pairs):
            batch = collate(pairs)
            with torch.no_grad(), accelerator.autocast(), training_attention(device):
                scored: Scored = policy(batch.prompts.ids, batch.prompts.mask, batch.codes)
                assert batch.unconditional is not None
                without: Scored = policy(
                    batch.unconditional.ids,
                    batch.unconditional.mask,
                    batch.codes[: batch.num_pairs],
                )
            own, other = scored.logps[: batch.num_pairs], scored.logps[batch.num_pairs :]
            unconditional.append((own - without.logps).cpu())
            negative.append((own.repeat(len(other) // len(own)) - other).cpu())
            bar.update(len(own))
    return BaseMeasurement(
        Spread.of(torch.cat(unconditional).numpy()),
        Spread.of(torch.cat(negative).numpy()),
        sum(len(part) for part in unconditional),
        layout.num_codes,
        model.defaults.guidance_scale,
    )


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


def explain(measured: BaseMeasurement, proposed: Suggestion) -> str:
    """The suggestion with its reasons, and the overrides to copy."""
    uncond, negative, codes = measured.unconditional, measured.negative, measured.num_codes
    bound = math.exp(min(uncond.low, 50.0))
    beta, gap = proposed.beta, proposed.negative_gap
    return f"""\
Measured on {measured.num_pairs} pairs with the base, in nats per image of {codes} codes
(mean, and the range of the middle 80 %):
  log p(x|c) - log p(x)             {uncond.mean:9.1f}   {uncond.low:.1f} to {uncond.high:.1f}
  log p(x|c) - log p(x|negative c)  {negative.mean:9.1f}   {negative.low:.1f} to {negative.high:.1f}

Start with
  loss.beta={beta:.2g} loss.beta_codes={codes} loss.lambda_={proposed.lambda_:.3g}

Why. Guidance of scale {proposed.scale:g} lowers log p(x|negative c) by about {gap:.0f} nats:
(scale - 1) * (log p(x) - log p(x|negative c)). A negative has a gradient as long as beta * gap is
not far below -1, so beta = 1 / {gap:.0f}. A larger beta saturates before the strength of guidance
is reached (warning "saturated"); a smaller one also lowers the likelihood of the training images
(warning "collapse"). Lambda is {USUAL_LAMBDA:g} unless the base depends little on its prompts:
above exp({uncond.low:.1f}), here {bound:.3g}, the optimum lowers the likelihood
of one training pair in ten.

To choose by scores:
  mm-cca sweep RECIPE loss.beta_codes={codes} \\
    'loss.beta=[{beta / 2:.2g},{beta:.2g},{2 * beta:.2g}]' 'loss.lambda_=[1,10]'"""
