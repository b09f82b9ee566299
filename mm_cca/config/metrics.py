"""The scores that ``eval.metrics`` chooses from: what each needs, and what it is in words."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class On(Enum):
    """What a score looks at."""

    CAPTIONS = "scorer, image and caption"
    SCORER = "scorer's image features"
    INCEPTION = "Inception features"


@dataclass(frozen=True)
class Score:
    """One score.

    Attributes:
        on: which features.
        needs_images: whether single reference images are needed, not mean and covariance alone.
        needs_reference: whether it compares with real images at all.
        words: its definition, for the protocol.
    """

    on: On
    needs_reference: bool
    needs_images: bool
    words: str


SCORES = {
    "alignment": Score(On.CAPTIONS, False, False, "mean of 100 cos(image, caption)"),
    "clip_score": Score(On.CAPTIONS, False, False, "mean of 100 max(cos(image, caption), 0)"),
    "r_at_1": Score(On.CAPTIONS, False, False, "share whose own caption is the best of all"),
    "r_at_5": Score(On.CAPTIONS, False, False, "share whose own caption is among the best 5"),
    "frechet_distance": Score(On.SCORER, True, False, "Frechet distance (torchmetrics)"),
    "kernel_distance": Score(
        On.SCORER,
        True,
        True,
        "cubic-kernel MMD, mean of 50 subsets of at most 1,000",
    ),
    "precision": Score(On.SCORER, True, True, "improved precision, 3 neighbours (torch-fidelity)"),
    "recall": Score(On.SCORER, True, True, "improved recall, 3 neighbours (torch-fidelity)"),
    "density": Score(On.SCORER, True, True, "density, 5 neighbours (Naeem et al., 2020)"),
    "coverage": Score(On.SCORER, True, True, "coverage, 5 neighbours (Naeem et al., 2020)"),
    "cmmd": Score(On.SCORER, True, True, "1000 x MMD^2, Gaussian kernel of width 10, normalised"),
    "fid": Score(On.INCEPTION, True, False, "Frechet Inception distance (torchmetrics)"),
    "kid": Score(On.INCEPTION, True, True, "cubic-kernel MMD, mean of 50 subsets of at most 1,000"),
    "inception_score": Score(On.INCEPTION, False, False, "10 shuffled splits (torchmetrics)"),
}
DEFAULT = [
    "alignment",
    "r_at_1",
    "r_at_5",
    "frechet_distance",
    "kernel_distance",
    "precision",
    "recall",
]
NEEDED_BY_SWEEP = ("alignment", "r_at_1", "r_at_5", "frechet_distance", "recall")
"""Columns and plots of sweep.html."""


def is_published_clip(scorer: str, pretrained: str | None) -> bool:
    """Whether the name alone says that this is a published CLIP: a hub name or an open_clip tag.

    A folder may hold anything, and SigLIP is no CLIP: their cosines are an alignment.
    """
    if "siglip" in scorer.lower():
        return False
    if scorer.startswith(("hf-hub:", "hf:")):
        name = scorer.partition(":")[2]
        return name.count("/") == 1 and not Path(name).exists()
    # A tag of open_clip has neither a slash nor a dot; a file of weights has one of them.
    return ":" not in scorer and pretrained is not None and not {"/", "."} & set(pretrained)
