"""Warnings about an unhealthy training, from its metrics."""

import math
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from mm_cca.errors import Diverged, UserError
from mm_cca.training import checkpoint
from mm_cca.training.beta_rule import beta_of
from mm_cca.training.setup import TrainingSetup

MAX_GAP_AT_START = 1e-3
"""Nats per image; the reference is the same model, so the true gap is 0."""

COLLAPSE = -1.0
"""Nats per code: below it the likelihood of the training images has collapsed (dpo in the paper's
table 3)."""
SATURATED = 12.0
"""|beta * gap| of cca at which a negative's gradient is about 1e-5 of its initial value."""


@dataclass(frozen=True)
class Constants:
    """Constants of the loss that the warnings depend on.

    Attributes:
        num_codes: codes per image.
        beta: of cca, rescaled to the number of codes; None if cca is not part of the loss.
        drawn_beta: the same of ddo.
        unbounded: whether ``unlearn`` is part of the loss.
    """

    num_codes: int
    beta: float | None
    unbounded: bool = False
    drawn_beta: float | None = None


def warnings_of(numbers: Mapping[str, float | None], constants: Constants) -> dict[str, str]:
    """Short name -> message of each warning; empty if training is healthy.

    Args:
        numbers: metrics of one step, or their means over several; gaps in nats per image.
        constants: of the loss.
    """
    warnings: dict[str, str] = {}
    positive, negative = numbers.get("positive_gap"), numbers.get("negative_gap")
    if positive is not None and positive / constants.num_codes < COLLAPSE:
        warnings["collapse"] = (
            f"positive_gap is {positive / constants.num_codes:.2f} nats per code: the likelihood "
            "of the training images is collapsing too. Raise loss.beta, or lower loss.lambda_ or "
            "train.learning_rate."
        )
    drawn = numbers.get("drawn_gap")
    if drawn is not None and drawn * (constants.drawn_beta or 0.0) < -SATURATED:
        warnings["drawn"] = (
            f"beta * drawn_gap is {drawn * (constants.drawn_beta or 0.0):.0f}: the base's pictures "
            "are already told from real images; they give almost no gradient. Lower loss.beta, or "
            "start a new round from this model (model.path)."
        )
    if negative is None:
        return warnings
    # With a floor per code the loss sees less of the gap, and saturates later.
    floored = numbers.get("floored_gap")
    name = "negative_gap" if floored is None else "floored_gap"
    logit = (negative if floored is None else floored) * (constants.beta or 0.0)
    if logit < -SATURATED:
        warnings["saturated"] = (
            f"beta * {name} is {logit:.0f}: the negatives are already separated; they give "
            "almost no gradient. Lower loss.beta, or use harder negatives."
        )
    if constants.unbounded and negative / constants.num_codes < COLLAPSE:
        warnings["unbounded"] = (
            f"negative_gap is {negative / constants.num_codes:.2f} nats per code and unlearn has "
            "no lower bound: it falls without limit. Stop early, or lower loss.lambda_; cca is the "
            "bounded form."
        )
    return warnings


class Health:
    """Gives each warning once, from the means over the last ``window`` steps."""

    def __init__(self, constants: Constants, window: int = 20) -> None:
        self._constants = constants
        self._recent: deque[Mapping[str, float | None]] = deque(maxlen=window)
        self._reported: set[str] = set()

    def see(self, numbers: Mapping[str, float | None]) -> list[str]:
        """Add the metrics of a step; new warnings, none before the window is full."""
        self._recent.append(numbers)
        if len(self._recent) < (self._recent.maxlen or 0):
            return []
        means: dict[str, float | None] = {}
        for name in ("positive_gap", "negative_gap", "floored_gap", "drawn_gap"):
            values = [v for step in self._recent if (v := step.get(name)) is not None]
            means[name] = sum(values) / len(values) if values else None
        new = {
            k: v for k, v in warnings_of(means, self._constants).items() if k not in self._reported
        }
        self._reported |= new.keys()
        return list(new.values())


def health_of(setup: TrainingSetup) -> Health:
    """The ``Health`` of a run; warns at once if the loss has no lower bound."""
    terms, config = setup.terms, setup.terms.config
    num_codes = setup.collate.num_codes
    beta = None if terms.weights.keys().isdisjoint(("cca", "ddo")) else beta_of(config, num_codes)
    unbounded = "unlearn" in terms.weights and config.lambda_ > 0
    if unbounded and setup.accelerator.is_main_process:
        tqdm.write(
            "warning: unlearn has no lower bound: negatives are pushed down without limit and "
            "image quality collapses. Train briefly and watch positive_gap; cca is the bounded "
            "form.",
            file=sys.stderr,
        )
    of_cca, of_ddo = (beta if name in terms.weights else None for name in ("cca", "ddo"))
    return Health(Constants(num_codes, of_cca, unbounded, of_ddo))


def refuse_gap_at_start(gaps: torch.Tensor) -> None:
    """[M] gaps before the first step, in nats per image. Raises UserError unless all are 0."""
    largest = float(gaps.abs().max())
    if not largest <= MAX_GAP_AT_START:
        raise UserError(
            f"before the first step the model and its reference differ by up to {largest:.3g} nats "
            "per image; they are the same model, so every gap must be 0. Likely causes: dropout "
            "that is not switched off, different dtypes or attention kernels, a LoRA that does not "
            "start at zero, or (train.reference=cached) a cache that was computed on another kind "
            "of device."
        )


def stop_on_nan(
    setup: TrainingSetup, step: int, loss: float | None, norm: float, folder: Path
) -> None:
    """Save the weights before this step and raise Diverged if loss or gradient is not finite."""
    if loss is not None and math.isfinite(loss) and math.isfinite(norm):
        return
    rows = setup.schedule.step(step).rows.tolist()
    setup.optimizer.zero_grad()
    checkpoint.save(
        setup.accelerator,
        folder / "checkpoints",
        step,
        {"best": None, "nan_rows": rows},
        setup.train.keep_checkpoints,
    )
    raise Diverged(
        f"step {step}: the loss is {loss} and the gradient norm {norm}. The weights before this "
        f"step are saved in {folder / 'checkpoints'}. Rows of the batch: {rows}. Lower "
        "train.learning_rate or loss.lambda_, or use train.mixed_precision=bf16, in a new run.dir."
    )
