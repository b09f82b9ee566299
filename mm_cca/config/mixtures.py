"""Weighted sums of names (``cca + 0.1 nll``), and what the objectives in a sum need."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from mm_cca.config.schema import CONTRASTIVE, OBJECTIVES, WITH_BASE, WITH_DRAWN, LossConfig

_TERM = re.compile(r"^(?:(?P<weight>[0-9.]+(?:e-?[0-9]+)?)\s*\*?\s*)?(?P<name>[a-z_]+)$")


def parse_sum(text: str, allowed: Sequence[str]) -> dict[str, float]:
    """Names and weights in the order written; a name without a weight has weight 1.

    Raises:
        ValueError: an invalid term, an unknown or repeated name, or a weight that is not above 0.
    """
    terms: dict[str, float] = {}
    for part in text.split("+"):
        match = _TERM.match(part.strip())
        if match is None:
            raise ValueError(
                f"{part.strip()!r} is not a valid term, e.g. {allowed[0]} or 0.5 {allowed[0]}"
            )
        name = match["name"]
        if name not in allowed:
            near = get_close_matches(name, allowed, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name!r} is not one of {', '.join(allowed)}{hint}")
        if name in terms:
            raise ValueError(f"{name!r} appears twice")
        try:
            terms[name] = float(match["weight"] or 1.0)
        except ValueError:
            raise ValueError(f"{match['weight']!r} is not a number") from None
        if not 0 < terms[name] < math.inf:
            raise ValueError(f"the weight of {name!r} must be above 0 and finite")
    return terms


@dataclass(frozen=True)
class LossTerms:
    """The objectives of a recipe with their weights, and what they need.

    Attributes:
        weights: objective -> weight.
        config: the constants.
    """

    weights: dict[str, float]
    config: LossConfig

    @classmethod
    def of(cls, config: LossConfig) -> "LossTerms":
        """From a validated recipe's ``loss``."""
        return cls(parse_sum(config.objective, OBJECTIVES), config)

    @property
    def is_cca(self) -> bool:
        """Whether guidance is trained into the model: by CCA, or by its rivals of the same aim."""
        return "cca" in self.weights or self.needs_base

    @property
    def is_finetuning(self) -> bool:
        """Whether it is plain fine-tuning, after which the model needs guidance as before."""
        return self.weights.keys() == {"nll"}

    @property
    def model_name(self) -> str:
        """What the trained model is called in reports."""
        return "CCA" if self.is_cca else "the fine-tuned model"

    @property
    def needs_negatives(self) -> bool:
        """Whether negative captions are needed."""
        return any(name in self.weights for name in CONTRASTIVE)

    @property
    def needs_drawn(self) -> bool:
        """Whether pictures drawn by the base are needed."""
        return any(name in self.weights for name in WITH_DRAWN)

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities of images are needed."""
        return self.needs_negatives or self.needs_drawn

    @property
    def needs_base(self) -> bool:
        """Whether the base's whole distributions along the images are needed."""
        return any(name in self.weights for name in WITH_BASE)

    @property
    def needs_conditional_base(self) -> bool:
        """Whether these are needed given the images' captions too."""
        return "distill" in self.weights or "cca_code" in self.weights

    @property
    def needs_text(self) -> bool:
        """Whether plain texts are needed."""
        return self.config.text_weight > 0
