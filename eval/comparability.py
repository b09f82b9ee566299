"""What can still be compared of two runs whose protocols differ."""

from collections.abc import Collection

from mm_cca.config.metrics import METRICS
from mm_cca.eval.scores import PER_IMAGE

RANKED = ("captions_ranked_sha256", "num_captions_ranked")
PROMPTS = ("prompts_sha256", "num_prompts")
SETS = (
    "images_per_prompt",
    "image_size",
    "num_reference_images",
    "reference",
    "reconstruction",
    "resize",
    "inception_sha256",
    "features",
    *PROMPTS,
)
"""Fields that decide the numbers of a whole set of images."""
RANKS = ("r_at_1", "r_at_5")
CONSEQUENCES = {
    "judges": "scores by this judge are left out",
    "metrics": "this score is left out",
    **dict.fromkeys(SETS, "distances are left out"),
    **dict.fromkeys(PROMPTS, "paired over the prompts of both; distances are left out"),
    **dict.fromkeys(RANKED, "R@k is left out, as it ranks among other captions"),
    "images_per_prompt": "the first images of a prompt are paired; distances are left out",
    **dict.fromkeys(("sampling", "seeds"), "compared; a difference may come from it"),
}
"""Of a field that differs, by the first part of its name."""


def not_comparable(differing: Collection[str], split: str) -> set[str]:
    """The scores that mean something else in both runs.

    Args:
        differing: fields of the protocols.
        split: whose scores.
    """
    refused = set(RANKS) if any(field in RANKED for field in differing) else set()
    if any(_decides_sets(field, split) for field in differing):
        refused |= {name for name in METRICS if name not in PER_IMAGE}
    return refused | {
        field.removeprefix("metrics.") for field in differing if field.startswith("metrics.")
    }


def _decides_sets(field: str, split: str) -> bool:
    """Whether it decides the numbers of whole sets, on this split if it is a field of one."""
    group, _, rest = field.partition(".")
    return group in SETS and (
        group in ("resize", "image_size") or rest.partition(".")[0] in ("", split)
    )


def consequence_of(field: str) -> str:
    """What a field that differs means for the comparison, in words."""
    if ".captions_cut" in field:
        return "compared; it belongs to the prompts"
    other = "compared; numbers may differ a little because of it"
    return CONSEQUENCES.get(field.partition(".")[0], other)
