"""What the numbers of training say about its health, in words."""

import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from tqdm import tqdm

from mm_cca import objectives
from mm_cca.training.setup import TrainingSetup

COLLAPSE = -1.0
"""Nats per code: below it the model no longer knows its own images (dpo in the paper's table 3)."""
SATURATED = 12.0
"""|beta * gap| of cca from which a wrong prompt's gradient is about 1e-5 of what it was."""


@dataclass(frozen=True)
class Constants:
    """What the numbers are judged by.

    Attributes:
        num_codes: codes per image.
        beta: of cca, rescaled to the number of codes; None where cca is no part of the loss.
        unbounded: whether ``unlearn`` is part of the loss.
    """

    num_codes: int
    beta: float | None
    unbounded: bool = False


def warnings_of(numbers: Mapping[str, float | None], constants: Constants) -> dict[str, str]:
    """A sentence for each thing that is wrong, by a short name; empty when all is well.

    Args:
        numbers: of one step, or better the means over some; gaps in nats per image.
        constants: see there.
    """
    found: dict[str, str] = {}
    positive, negative = numbers.get("positive_gap"), numbers.get("negative_gap")
    if positive is not None and positive / constants.num_codes < COLLAPSE:
        found["collapse"] = (
            f"positive_gap is {positive / constants.num_codes:.2f} nats per code: the model is "
            "losing its own images, not only the wrong prompts. Raise loss.beta, or lower "
            "loss.lambda_ or train.learning_rate."
        )
    if negative is None:
        return found
    logit = negative * (constants.beta or 0.0)
    if logit < -SATURATED:
        found["saturated"] = (
            f"beta * negative_gap is {logit:.0f}: the wrong prompts are told apart so well that "
            "they teach nothing any more. Lower loss.beta, or use harder negatives."
        )
    if constants.unbounded and negative / constants.num_codes < COLLAPSE:
        found["unbounded"] = (
            f"negative_gap is {negative / constants.num_codes:.2f} nats per code and unlearn has "
            "no lower bound: it falls for ever. Stop early, or lower loss.lambda_; cca is the "
            "bounded form."
        )
    return found


class Health:
    """Means over the last steps, and each warning once."""

    def __init__(self, constants: Constants, window: int = 20) -> None:
        self._constants = constants
        self._recent: deque[Mapping[str, float | None]] = deque(maxlen=window)
        self._said: set[str] = set()

    def see(self, numbers: Mapping[str, float | None]) -> list[str]:
        """Take in a step; the sentences that are new. Silent until the window is full."""
        self._recent.append(numbers)
        if len(self._recent) < (self._recent.maxlen or 0):
            return []
        means: dict[str, float | None] = {}
        for name in ("positive_gap", "negative_gap"):
            values = [v for step in self._recent if (v := step.get(name)) is not None]
            means[name] = sum(values) / len(values) if values else None
        fresh = {
            k: v for k, v in warnings_of(means, self._constants).items() if k not in self._said
        }
        self._said |= fresh.keys()
        return list(fresh.values())


def health_of(loop: TrainingSetup) -> Health:
    terms, config = loop.terms, loop.terms.config
    num_codes = loop.collate.num_codes
    beta = objectives.length_aware_beta(config.beta, config.beta_codes, num_codes)
    unbounded = "unlearn" in terms.weights and config.lambda_ > 0
    if unbounded and loop.accelerator.is_main_process:
        tqdm.write(
            "warning: unlearn has no lower bound: wrong prompts are pushed down for ever, and the "
            "images go with them. Train briefly and watch positive_gap; cca is the bounded form.",
            file=sys.stderr,
        )
    return Health(Constants(num_codes, beta if "cca" in terms.weights else None, unbounded))
