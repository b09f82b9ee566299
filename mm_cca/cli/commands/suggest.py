"""A starting beta and lambda, from what the base thinks of right and wrong prompts.

Shapes: n pairs of image and prompts.
"""

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
    from mm_cca.config.load import load_config

    recipe = load_config(args.recipe, args.overrides)

    print(suggest_constants(recipe, args.pairs, args.scale))
    return 0


def suggest_constants(recipe: AnyRecipe, num_pairs: int, scale: float | None) -> str:
    """Measure the base and name a beta and a lambda to start with.

    Raises:
        UserError: another job's recipe, no pair to measure on, or what ``prepare`` raises.
    """

    if not isinstance(recipe, Recipe):
        raise UserError(f"a {recipe.job} recipe has no beta; name a finetune recipe.")
    if num_pairs < 2:
        raise UserError(f"--pairs is {num_pairs}; allowed: 2 or more.")
    if scale is not None and scale <= 1:
        raise UserError(f"--scale is {scale:g}; allowed: more than 1, which is no guidance.")
    quiet_libraries()
    run = RunFolder.of(recipe)
    with locked(run.root):
        prepare_tokens(recipe, run)
        measured = measure(recipe, run, num_pairs)
    return explain(measured, suggestion_of(measured, scale or measured.usual_scale))


USUAL_LAMBDA = 10.0
"""Scores hardly change from 1 to 30 on emoji (RESULTS.md); more asks for steps few runs take."""


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
    """What the base says of its own pairs.

    Attributes:
        blank: log p(x | c) - log p(x).
        wrong: log p(x | c) - log p(x | wrong c).
        num_pairs: how many were looked at.
        num_codes: per image.
        usual_scale: the guidance that the family's authors sample with.
    """

    blank: Spread
    wrong: Spread
    num_pairs: int
    num_codes: int
    usual_scale: float


@dataclass(frozen=True)
class Suggestion:
    """Where to start.

    Attributes:
        beta: at the measured number of codes.
        lambda_: weight of the wrong prompts.
        scale: the guidance that is to be replaced.
        wrong_gap: how far guidance of that scale lowers log p(x | wrong prompt), nats per image.
    """

    beta: float
    lambda_: float
    scale: float
    wrong_gap: float


def suggestion_of(measured: BaseMeasurement, scale: float) -> Suggestion:
    """From the spread of log p(x | c) - log p(x) and of log p(x | c) - log p(x | c').

    Guidance of scale s adds (s - 1) (log p(x | c) - log p(x)) to log p(x | c). For a wrong prompt
    that is negative: it lowers log p(x | c') by about (s - 1) (log p(x) - log p(x | c')), which is
    (s - 1) (wrong - blank). CCA's wrong prompts stop teaching once beta times
    their gap is well below -1, so beta is the inverse of that distance. Lambda is kept below
    exp(log p(x | c) - log p(x)), beyond which the optimum
    ``beta * gap = log p(x | c) - log p(x) - log lambda`` (arXiv 2410.09347, section 3) asks the
    model to forget its own pairs.
    """
    distance = (scale - 1) * (measured.wrong.mean - measured.blank.mean)
    # A base that can't tell prompts apart gives no distance; one nat keeps beta at most 1.
    wrong_gap = max(distance, 1.0)
    bound = math.exp(min(measured.blank.low, 50.0))
    lambda_ = min(USUAL_LAMBDA, max(1.0, bound))
    return Suggestion(1 / wrong_gap, lambda_, scale, wrong_gap)


def measure(recipe: Recipe, run: RunFolder, num_pairs: int) -> BaseMeasurement:
    """Score the first pairs of training with their own, a wrong and no prompt.

    Raises:
        UserError: no token cache yet, or captions that negatives can't be made of.
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
    blank, wrong = [], []
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
            blank.append((own - without.logps).cpu())
            wrong.append((own.repeat(len(other) // len(own)) - other).cpu())
            bar.update(len(own))
    return BaseMeasurement(
        Spread.of(torch.cat(blank).numpy()),
        Spread.of(torch.cat(wrong).numpy()),
        sum(len(part) for part in blank),
        layout.num_codes,
        model.defaults.guidance_scale,
    )


def _parts(schedule: Schedule, size: int, num_pairs: int) -> Iterator[Pairs]:
    """The first pairs of training in micro-batches, none with its prompt dropped."""
    done = 0
    for step in itertools.count():
        pairs = schedule.step(step)
        kept = replace(pairs, dropped=np.zeros_like(pairs.dropped))
        for start in range(0, schedule.batch_size, size):
            if done >= num_pairs:
                return
            yield kept.part(start, start + size)
            done += size


def explain(measured: BaseMeasurement, found: Suggestion) -> str:
    """The suggestion in words, with the overrides to copy."""
    blank, wrong, codes = measured.blank, measured.wrong, measured.num_codes
    bound = math.exp(min(blank.low, 50.0))
    beta, gap = found.beta, found.wrong_gap
    return f"""\
BaseMeasurement on {measured.num_pairs} pairs with the base, in nats per image of {codes} codes
(mean, and the range of the middle 80 %):
  log p(x|c) - log p(x)             {blank.mean:9.1f}   {blank.low:.1f} to {blank.high:.1f}
  log p(x|c) - log p(x|wrong c)     {wrong.mean:9.1f}   {wrong.low:.1f} to {wrong.high:.1f}

Start with
  loss.beta={beta:.2g} loss.beta_codes={codes} loss.lambda_={found.lambda_:.3g}

Why. Guidance of scale {found.scale:g} lowers log p(x|wrong c) by about {gap:.0f} nats:
(scale - 1) * (log p(x) - log p(x|wrong c)). A wrong prompt teaches as long as beta * gap is not
far below -1, so beta = 1 / {gap:.0f}. A larger beta saturates before the strength of guidance is
reached (warning "saturated"); a smaller one drags the own prompts down too (warning "collapse").
Lambda is {USUAL_LAMBDA:g} unless the base hardly knows its prompts: above exp({blank.low:.1f}),
here {bound:.3g}, the optimum of one pair in ten asks the model to forget that pair.

To choose by scores:
  mm-cca sweep RECIPE loss.beta_codes={codes} \\
    'loss.beta=[{beta / 2:.2g},{beta:.2g},{2 * beta:.2g}]' 'loss.lambda_=[1,10]'"""
