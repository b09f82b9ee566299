"""Checks of ``eval`` that involve several keys; they read no data and no weights."""

import re
from pathlib import Path

from mm_cca.config.constraints import Check
from mm_cca.config.metrics import LEAD, METRICS, FeatureSource, ReferenceNeed, is_published_clip
from mm_cca.config.paths import is_file, is_folder
from mm_cca.config.schema import PROMPT_FILES, TEXT_FILES, Recipe
from mm_cca.config.schema_eval import RECONSTRUCTION
from mm_cca.config.shipped import PROMPT_SETS
from mm_cca.errors import UserError
from mm_cca.negatives import load_words


def eval_checks(recipe: Recipe) -> list[Check]:
    """Checks of the scores and of the models, images, prompts and texts they need."""
    return [
        *_metrics(recipe),
        *_judges(recipe),
        *_inception(recipe),
        *_reference(recipe),
        *_prompts(recipe),
        *_attributes(recipe),
        *_text_nll(recipe),
        text_file("data.text_path", recipe.data.text_path),
    ]


def _metrics(recipe: Recipe) -> list[Check]:
    metrics = recipe.eval.metrics
    checks: list[Check] = [
        (
            "eval.metrics",
            metrics,
            LEAD in metrics,
            f"a list with {LEAD}, which decides the best guidance scale",
        )
    ]
    if "clip_score" in metrics:
        scorers = recipe.eval.scorer
        checks.append(
            (
                "eval.metrics",
                "clip_score",
                any(is_published_clip(s, recipe.eval.pretrained_of(s)) for s in scorers),
                "only with a published CLIP: an open_clip name with a tag, hf-hub:ORG/NAME or "
                f"hf:ORG/NAME; with eval.scorer={', '.join(scorers)} use alignment",
            )
        )
    return checks


def _judges(recipe: Recipe) -> list[Check]:
    path = recipe.eval.examined
    valid = path is None or is_file(path)
    return [("eval.examined", path, valid, "null, or eval/summary.json of a run that exists")]


def _inception(recipe: Recipe) -> list[Check]:
    sha256 = recipe.eval.inception_sha256
    return [
        *(
            (
                "eval.metrics",
                name,
                recipe.eval.inception_weights is not None,
                "only with eval.inception_weights=download, or a file of torch-fidelity's weights; "
                f"{', '.join(_distances())} are the same kind of distance on eval.scorer's "
                "features",
            )
            for name in recipe.eval.metrics
            if name in METRICS and METRICS[name].source is FeatureSource.INCEPTION
        ),
        (
            "eval.inception_sha256",
            sha256,
            sha256 is None or re.fullmatch("[0-9a-fA-F]{8,64}", sha256) is not None,
            "null (the published weights), or 8 to 64 hexadecimal digits",
        ),
    ]


def _distances() -> list[str]:
    return [
        name
        for name, metric in METRICS.items()
        if metric.source is FeatureSource.SCORER and not metric.higher_is_better
    ]


def _reference(recipe: Recipe) -> list[Check]:
    real = recipe.eval.real_reference
    known = [name for name in recipe.eval.metrics if name in METRICS]
    checks = [*_named_references(recipe), *_reconstructions(recipe, known)]
    if real is None and recipe.sample.prompts is not None:
        return checks + [
            (
                "eval.metrics",
                name,
                METRICS[name].needs is ReferenceNeed.NONE,
                "only with eval.reference: prompts from a file (sample.prompts) have no real "
                "images to compare with",
            )
            for name in known
        ]
    if real is None or not real.endswith(".npz"):
        return checks
    return checks + [
        (
            "eval.metrics",
            name,
            METRICS[name].needs is not ReferenceNeed.IMAGES or METRICS[name].reference != "real",
            "only with a folder, a Parquet file or a hub name as eval.reference; "
            f"{real} holds only mean and covariance",
        )
        for name in known
    ]


def _named_references(recipe: Recipe) -> list[Check]:
    named = [name for name in recipe.eval.reference or [] if name != RECONSTRUCTION]
    return [
        (
            "eval.reference",
            recipe.eval.reference,
            len(named) <= 1,
            f"{RECONSTRUCTION} and one set of real images",
        )
    ]


def _reconstructions(recipe: Recipe, known: list[str]) -> list[Check]:
    """Distances to reconstructions need the key, and images of the data to reconstruct."""
    wanted = recipe.eval.has_reconstruction_reference
    checks: list[Check] = [
        (
            "eval.metrics",
            name,
            METRICS[name].reference == "real" or wanted,
            f"only with eval.reference={RECONSTRUCTION}",
        )
        for name in known
    ]
    if wanted:
        checks.append(
            (
                "eval.reference",
                RECONSTRUCTION,
                recipe.sample.prompts is None,
                "only with sample.prompts=null: prompts from a file have no real images that "
                "could be reconstructed",
            )
        )
    return checks


def _prompts(recipe: Recipe) -> list[Check]:
    prompts = recipe.sample.prompts
    return [
        (
            "sample.prompts",
            prompts,
            prompts is None or Path(prompts).suffix in ("", *PROMPT_FILES) or is_folder(prompts),
            f"null (captions of the data), a file {', '.join(PROMPT_FILES)}, a folder of them, or "
            f"a built-in set: {', '.join(PROMPT_SETS)}",
        ),
    ]


def _attributes(recipe: Recipe) -> list[Check]:
    path = recipe.data.attribute_words
    try:
        kinds = load_words(path).kinds
    except UserError as error:
        return [("data.attribute_words", path, False, f"a YAML file of word lists ({error})")]
    allowed = ", ".join(kinds)
    return [("eval.attributes", kind, kind in kinds, allowed) for kind in recipe.eval.attributes]


def _text_nll(recipe: Recipe) -> list[Check]:
    key, value = "eval.text_nll", recipe.eval.text_nll
    if value != "captions":
        return [text_file(key, value)]
    allowed = "null, a text file, or captions if data.heldout_split is set"
    return [(key, value, recipe.data.heldout_split is not None, allowed)]


def text_file(key: str, value: str | None) -> Check:
    """Check that a value is null or an existing file of texts."""
    valid = value is None or (Path(value).suffix in TEXT_FILES and is_file(value))
    return key, value, valid, f"null, or a file that ends in {', '.join(TEXT_FILES)}"
