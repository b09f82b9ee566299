"""Checks of a recipe that involve several keys; they read no data and no weights.

Ranges and choices of single keys are declared in the schema.
"""

from urllib.parse import urlparse

from mm_cca.config.constraints import Check, declared_checks, failures
from mm_cca.config.declarations import declared
from mm_cca.config.image_sizes import problems_of_sizes
from mm_cca.config.keys import value_of
from mm_cca.config.prompt_templates import ALLOWED as TEMPLATES
from mm_cca.config.prompt_templates import is_template
from mm_cca.config.schema import AnyRecipe, Recipe, ScorerRecipe, TokenizerRecipe
from mm_cca.config.schema_train import DRAWS
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
            *_captions(recipe),
            *_versions(recipe),
            _template("data.caption_template", recipe.data.caption_template),
            _template("sample.prompt_template", recipe.sample.prompt_template),
            *_buckets(recipe),
            *loss_checks(recipe),
            *train_checks(recipe),
        ]
        checks += [*_dial(recipe), *_temperatures(recipe), *_engine(recipe), *eval_checks(recipe)]
        checks += _preview_prompts(recipe)
    elif isinstance(recipe, TokenizerRecipe):
        checks += [*_no_versions(recipe), _whole_codes(recipe), _one_size(recipe)]
    else:
        checks += [
            *_no_versions(recipe),
            _one_size(recipe),
            _adapter("scorer.adapter", recipe.scorer.adapter),
            *_scorer(recipe),
        ]
    return failures(checks)


def _adapter(key: str, adapter: str) -> Check:
    from mm_cca.config.shipped import ADAPTERS

    known = adapter in ADAPTERS or ":" in adapter
    return key, adapter, known, f"{', '.join(ADAPTERS)}, or package.module:Class"


def _template(key: str, template: str | None) -> Check:
    return key, template, template is None or is_template(template), TEMPLATES


def _one_size(recipe: TokenizerRecipe | ScorerRecipe) -> Check:
    buckets = recipe.data.buckets
    return "data.buckets", buckets, not buckets, f"[] in a {recipe.job} recipe, which has one size"


def _buckets(recipe: Recipe) -> list[Check]:
    """Sizes, and no part of a run that knows only one."""
    buckets, loss = recipe.data.buckets, recipe.loss
    if not buckets or len(recipe.data.image_size) != 2:
        return []
    wrong = problems_of_sizes(recipe.data.image_size, buckets)
    checks: list[Check] = [("data.buckets", bucket, False, allowed) for bucket, allowed in wrong]
    keeps_codes = recipe.train.reference == "cached" and loss.gap_floor is not None
    return checks + [
        ("data.buckets", buckets, not found, f"[] with {name}, {why}")
        for name, found, why in (
            ("sample.engine", recipe.sample.engine, "whose requests have one size"),
            ("loss.objective ddo", DRAWS.holds(recipe), "whose pictures have one size"),
            (
                "loss.gap_floor and train.reference=cached",
                keeps_codes,
                "whose file has as many columns as an image has codes; use another train.reference",
            ),
        )
    ]


def _captions(recipe: Recipe) -> list[Check]:
    """Columns that differ, a weight for each, and no pictures that were drawn for one of them."""
    data = recipe.data
    columns, weights = [data.caption_column, *data.more_caption_columns], data.caption_weights
    if not data.more_caption_columns:
        allowed = "[] with a single column of captions; name the others too: data.caption_column"
        return [("data.caption_weights", weights, not weights, f"{allowed}=[long, short]")]
    each = f"[], or one weight for each of the {len(columns)} columns {', '.join(columns)}"
    draws = DRAWS.holds(recipe)
    one = "one column with loss.objective ddo, whose pictures are drawn for one caption each"
    return [
        ("data.caption_column", columns, len(set(columns)) == len(columns), "different columns"),
        ("data.caption_weights", weights, len(weights) in (0, len(columns)), each),
        ("data.caption_column", columns, not draws, one),
    ]


def _versions(recipe: Recipe) -> list[Check]:
    data = recipe.data
    least, most = data.min_caption_chars, data.max_caption_chars
    return [
        (
            "data.flip",
            data.flip,
            not data.flip or data.variants > 1,
            "false with data.variants=1, as only augmented versions are mirrored",
        ),
        (
            "data.max_caption_chars",
            most,
            least is None or most is None or least <= most,
            f"at least data.min_caption_chars, {least}",
        ),
    ]


def _no_versions(recipe: TokenizerRecipe | ScorerRecipe) -> list[Check]:
    """What only the token cache of a finetune recipe knows."""
    more, flip = recipe.data.more_caption_columns, recipe.data.flip
    return [
        ("data.more_caption_columns", more, not more, f"[] in a {recipe.job} recipe"),
        ("data.flip", flip, not flip, f"false in a {recipe.job} recipe"),
    ]


def _dial(recipe: Recipe) -> list[Check]:
    allowed = "0 to 100, but not 1, which is the arm cca"
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


def _preview_prompts(recipe: Recipe) -> list[Check]:
    allowed = "texts that are not empty; [] takes the first eval prompts"
    texts = recipe.sample.preview_prompts
    return [("sample.preview_prompts", text, bool(text.strip()), allowed) for text in texts]


def _engine(recipe: Recipe) -> list[Check]:
    """Addresses, and no arms that a stock engine can't draw."""
    sample = recipe.sample
    checks: list[Check] = [
        (
            "sample.engine",
            url,
            urlparse(url).scheme in ("http", "https") and bool(urlparse(url).netloc),
            "addresses such as http://localhost:8000",
        )
        for url in sample.engine
    ]
    if not sample.engine:
        return checks
    why = (
        "with sample.engine, because a stock engine can't guide: it runs one forward pass per "
        "code. Draw guided arms with our own sampler, with sample.engine=[] before or after "
        "(finished arms stay as they are)"
    )
    guided = [("guidance_scales", "base"), ("cca_scales", "cca")]
    guided += [("control_scales", "control")] if recipe.train.control else []
    for name, source in guided:
        if source in recipe.run.sources:
            scales = getattr(sample, name)
            checks.append((f"sample.{name}", scales, not scales, f"[] {why}"))
    return checks  # without guided arms no negative prompt is used


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
    sides = data.image_size
    side = max(sides, default=0) if scorer.input_size is None else scorer.input_size
    is_vit = scorer.architecture == "vit"
    return [
        (
            "data.image_size",
            data.image_size,
            len(sides) == 2 and sides[0] == sides[1],
            "the same height and width, for a scorer",
        ),
        (
            "scorer.patch_size",
            scorer.patch_size,
            not is_vit or (scorer.patch_size > 0 and side % scorer.patch_size == 0),
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
