"""What makes the values of ``eval`` wrong, found without reading data or weights."""

import re
from pathlib import Path

from mm_cca.prompts import SUFFIXES
from mm_cca.schema import Recipe
from mm_cca.scores import NEEDED_BY_REPORT, SCORES, On, is_published_clip

Check = tuple[str, object, bool, str]
"""Key, value, whether it is right, what is allowed."""


def eval_checks(recipe: Recipe) -> list[Check]:
    """Checks of the scores and of what they are measured with."""
    return [*_metrics(recipe), *_inception(recipe), *_reference(recipe), *_prompts(recipe)]


def _metrics(recipe: Recipe) -> list[Check]:
    metrics = recipe.eval.metrics
    checks: list[Check] = [
        ("eval.metrics", name, name in SCORES, ", ".join(SCORES)) for name in metrics
    ]
    checks.append(("eval.metrics", metrics, len(set(metrics)) == len(metrics), "no two alike"))
    checks.append(
        (
            "eval.metrics",
            metrics,
            "alignment" in metrics,
            "a list with alignment, by which the best scale of guidance is chosen",
        )
    )
    if "report" in recipe.run.stages:
        lacking = [name for name in NEEDED_BY_REPORT if name not in metrics]
        checks.append(
            (
                "eval.metrics",
                metrics,
                not lacking,
                f"a list with {', '.join(NEEDED_BY_REPORT)} too, which report.html shows; or take "
                "report out of run.stages",
            )
        )
    if "clip_score" in metrics:
        checks.append(
            (
                "eval.metrics",
                "clip_score",
                is_published_clip(recipe.eval.scorer, recipe.eval.scorer_pretrained),
                "with a published CLIP only: an open_clip name with a tag, hf-hub:ORG/NAME or "
                f"hf:ORG/NAME; with eval.scorer={recipe.eval.scorer} it is called alignment",
            )
        )
    return checks


def _inception(recipe: Recipe) -> list[Check]:
    sha256 = recipe.eval.inception_sha256
    return [
        *(
            (
                "eval.metrics",
                name,
                recipe.eval.inception_weights is not None,
                "with eval.inception_weights=download, or a file of torch-fidelity's weights; "
                "frechet_distance, kernel_distance and cmmd are the like on eval.scorer",
            )
            for name in recipe.eval.metrics
            if name in SCORES and SCORES[name].on is On.INCEPTION
        ),
        (
            "eval.inception_sha256",
            sha256,
            sha256 is None or re.fullmatch("[0-9a-fA-F]{8,64}", sha256) is not None,
            "null (the published weights), or 8 to 64 hexadecimal digits",
        ),
    ]


def _reference(recipe: Recipe) -> list[Check]:
    reference = recipe.eval.reference
    known = [name for name in recipe.eval.metrics if name in SCORES]
    if reference is None and recipe.sample.prompts is not None:
        return [
            (
                "eval.metrics",
                name,
                not SCORES[name].needs_reference,
                "with eval.reference, as prompts from a file (sample.prompts) have no real images "
                "to compare with",
            )
            for name in known
        ]
    if reference is None or not reference.endswith(".npz"):
        return []
    return [
        (
            "eval.metrics",
            name,
            not SCORES[name].needs_images,
            f"without it, as {reference} holds mean and covariance alone; give a folder, a "
            "Parquet file or a hub name as eval.reference",
        )
        for name in known
    ]


def _prompts(recipe: Recipe) -> list[Check]:
    size, prompts = recipe.eval.image_size, recipe.sample.prompts
    return [
        (
            "eval.image_size",
            size,
            size is None or (len(size) == 2 and min(size) > 0),
            "null (as drawn), or [height, width]",
        ),
        (
            "sample.prompts",
            prompts,
            prompts is None or Path(prompts).suffix in ("", *SUFFIXES) or Path(prompts).is_dir(),
            f"null (captions of the data), a file {', '.join(SUFFIXES)}, or a folder of them",
        ),
        (
            "run.stages",
            recipe.run.stages,
            prompts is None or "report" not in recipe.run.stages,
            "without report when sample.prompts is set: the page shows real images beside the "
            "drawn ones, and such prompts have none",
        ),
    ]
