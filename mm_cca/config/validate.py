"""Checks of a recipe that involve several keys; they read no data and no weights.

Ranges and choices of single keys are declared in the schema.
"""

from mm_cca.config.constraints import Check, declared_checks, failures
from mm_cca.config.declarations import declared
from mm_cca.config.keys import value_of
from mm_cca.config.prompt_templates import ALLOWED as TEMPLATES
from mm_cca.config.prompt_templates import is_template
from mm_cca.config.schema import AnyRecipe, Recipe, ScorerRecipe, TokenizerRecipe
from mm_cca.config.validate_eval import eval_checks
from mm_cca.config.validate_train import loss_checks, train_checks


def problems(recipe: AnyRecipe) -> list[str]:
    """One message per invalid value; empty if the recipe is valid."""
    keys = declared(type(recipe))
    checks: list[Check] = [
        *declared_checks(keys, {name: value_of(recipe, name) for name in keys}),
        (
            "run.trained",
            recipe.run.trained,
            recipe.run.trained is None or isinstance(recipe, Recipe),
            f"null in a {recipe.job} recipe, which samples nothing",
        ),
    ]
    if isinstance(recipe, Recipe):
        checks += [
            _adapter("model.adapter", recipe.model.adapter),
            _template("data.caption_template", recipe.data.caption_template),
            _template("sample.prompt_template", recipe.sample.prompt_template),
            *loss_checks(recipe),
            *train_checks(recipe),
        ]
        checks += [*_dial(recipe), *_temperatures(recipe), *eval_checks(recipe)]
    elif isinstance(recipe, TokenizerRecipe):
        checks.append(_whole_codes(recipe))
    else:
        checks += [_adapter("scorer.adapter", recipe.scorer.adapter), *_scorer(recipe)]
    return failures(checks)


def _adapter(key: str, adapter: str) -> Check:
    from mm_cca.config.shipped import ADAPTERS

    known = adapter in ADAPTERS or ":" in adapter
    return key, adapter, known, f"{', '.join(ADAPTERS)}, or package.module:Class"


def _template(key: str, template: str | None) -> Check:
    return key, template, template is None or is_template(template), TEMPLATES


def _dial(recipe: Recipe) -> list[Check]:
    allowed = "0 or more, but not 1, which is the arm cca"
    return [("sample.dial", a, a != 1, allowed) for a in recipe.sample.dial]


def _temperatures(recipe: Recipe) -> list[Check]:
    own = recipe.sample.temperature
    allowed = f"not {own}, which is sample.temperature: every arm is sampled at it anyway"
    # The names of arms show numbers with six digits.
    return [
        ("sample.temperatures", other, f"{other:g}" != f"{own:g}", allowed)
        for other in recipe.sample.temperatures
        if own is not None
    ]


def _whole_codes(recipe: TokenizerRecipe) -> Check:
    side = 2 ** (len(recipe.tokenizer.channel_multiplier) - 1)
    return (
        "data.image_size",
        recipe.data.image_size,
        all(pixels % side == 0 for pixels in recipe.data.image_size),
        f"multiples of {side}, the pixels per code of this tokenizer.channel_multiplier",
    )


def _scorer(recipe: ScorerRecipe) -> list[Check]:
    scorer, data = recipe.scorer, recipe.data
    height, width = data.image_size
    side = width if scorer.input_size is None else scorer.input_size
    is_vit = scorer.architecture == "vit"
    return [
        (
            "data.image_size",
            data.image_size,
            height == width,
            "the same height and width, for a scorer",
        ),
        (
            "scorer.patch_size",
            scorer.patch_size,
            not is_vit or side % scorer.patch_size == 0,
            f"a divisor of {side}, the side of the vision tower's images",
        ),
        (
            "scorer.frozen",
            scorer.frozen,
            scorer.frozen is None or not is_vit,
            "null with scorer.architecture=vit; published weights need a timm network",
        ),
        (
            "scorer.rows",
            scorer.rows,
            scorer.rows == "train" or data.heldout_split is not None,
            "train where data.heldout_split is null",
        ),
    ]
