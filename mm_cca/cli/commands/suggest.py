"""Starting constants of cca and cca_code, from what the base knows about its prompts."""

import argparse
import math
from dataclasses import dataclass, replace

from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import grid_of
from mm_cca.cli.commands.prepare import prepare_tokens
from mm_cca.cli.commands.quiet import quiet_libraries
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import AnyRecipe, Recipe
from mm_cca.data.token_cache import open_cache
from mm_cca.errors import UserError
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import locked
from mm_cca.training.accelerator import stage_accelerator
from mm_cca.training.base_measurement import LEAST_PAIRS, measure_base
from mm_cca.training.beta_rule import (
    BEND,
    BaseMeasurement,
    K,
    Spread,
    beta_by_rule,
    formula_of,
)
from mm_cca.training.schedule import training_schedule


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
    return explain(
        measured, suggestion_of(measured, scale or recipe.loss.scale or measured.usual_scale)
    )


USUAL_LAMBDA = 10.0
"""Scores hardly change from 1 to 30 on emoji (RESULTS.md); larger values need more steps."""


@dataclass(frozen=True)
class Suggestion:
    """The proposed constants.

    Attributes:
        beta: of ``cca`` at the measured number of codes, as ``loss.beta: auto`` sets it.
        lambda_: weight of the loss on negatives.
        scale: the guidance scale to replace, ``loss.scale`` of ``cca_code``.
        code_beta: 1 / (scale - 1), the beta of ``cca_code``.
    """

    beta: float
    lambda_: float
    scale: float
    code_beta: float


def suggestion_of(measured: BaseMeasurement, scale: float) -> Suggestion:
    """Beta by the rule of ``beta_rule.py``, lambda, and ``cca_code``'s constants for a scale.

    Lambda is kept below exp(log p(x | c) - log p(x)), above which the optimum
    ``beta * gap = log p(x | c) - log p(x) - log lambda`` (arXiv 2410.09347, section 3) lowers the
    likelihood of the training pairs.
    """
    lambda_ = min(USUAL_LAMBDA, max(1.0, _bound(measured)))
    return Suggestion(beta_by_rule(measured), lambda_, scale, 1 / (scale - 1))


def _bound(measured: BaseMeasurement) -> float:
    """The lambda above which the optimum lowers one training pair in ten."""
    return math.exp(min(measured.unconditional.low, 50.0))


def measure(recipe: Recipe, run: RunFolder, num_pairs: int) -> BaseMeasurement:
    """Load the base and ``measure_base`` on the first training pairs.

    Raises:
        UserError: no token cache yet, captions from which no negatives can be built, or NaN.
    """
    accelerator = stage_accelerator(recipe.train)
    cache = open_cache(run.tokens / recipe.data.train_split, recipe.data.variants)
    # Whatever the recipe's objective: cca always plans negatives.
    schedule = training_schedule(recipe, cache, LossTerms.of(replace(recipe.loss, objective="cca")))
    model = load_checkpoint(recipe.model)
    layout = model.layout(grid_of(model, recipe.data.image_size))
    policy = CodeLogProbs(model, layout, whole_vocabulary=recipe.loss.whole_vocabulary)
    policy.to(accelerator.device)
    return measure_base(recipe, cache, schedule, policy, accelerator, num_pairs)


def explain(measured: BaseMeasurement, proposed: Suggestion) -> str:
    """The suggestion with its reasons, and the overrides to copy."""
    uncond, beta, lambda_ = measured.unconditional, proposed.beta, proposed.lambda_
    scale, nats = proposed.scale, measured.nats
    few = f"pairs are few; loss.beta=auto measures {LEAST_PAIRS} or more.\n"
    few = "" if measured.num_pairs >= LEAST_PAIRS else f"\nCaution: {measured.num_pairs} {few}"
    return f"""\
Measured on {measured.num_pairs} pairs with the base, in nats per image
of {measured.num_codes} codes (mean, its standard error, and the range of the middle 80 %):
  log p(x|c) - log p(x)             {_row(uncond)}
  log p(x|c) - log p(x|negative c)  {_row(measured.negative)}
{few}
For objective cca, start with
  loss.beta={beta:.2g} loss.beta_codes=null loss.lambda_={lambda_:.3g}
or let training measure it: loss.beta=auto loss.lambda_={lambda_:.3g}

Why. beta = {formula_of(measured)},
the larger of {K:g} / nats and 1 / ({BEND:g} * codes). Guidance of scale s widens the margin between
own and negative caption by about (s - 1) * {nats:.0f} nats, whatever the number of codes; the loss
bends some 1 / beta nats from 0, here after {1 / beta:.0f}, and must bend before every code has lost
{BEND:g} nats. A larger beta saturates before the strength of guidance is reached (warning
"saturated"); a smaller one also lowers the likelihood of the training images (warning "collapse").
The optimum itself would be guidance of scale 1 + 1/beta = {1 + 1 / beta:.0f}; training stops long
before it, so steps and learning rate decide the strength too. Lambda is {USUAL_LAMBDA:g} unless the
base depends little on its prompts: above exp({uncond.low:.1f}), here {_bound(measured):.3g}, the
optimum lowers the likelihood of one training pair in ten.

For objective cca_code, start with
  loss.objective=cca_code loss.scale={scale:g} loss.code_lambda=1
At every code its beta is 1 / (scale - 1) = {proposed.code_beta:.3g}, whatever was measured above
and however many codes there are: its optimum is guidance of scale {scale:g}.

To choose by scores:
  mm-cca sweep RECIPE loss.beta_codes=null \\
    'loss.beta=[{beta / 2:.2g},{beta:.2g},{2 * beta:.2g}]' 'loss.lambda_=[1,10]'"""


def _row(spread: Spread) -> str:
    return f"{spread.mean:9.1f} +- {spread.error:<6.2g}{spread.low:9.1f} to {spread.high:.1f}"
