"""Warnings about an unhealthy training, from its metrics."""

import math
import statistics
import sys
from collections import Counter, deque
from collections.abc import Mapping, Sequence
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
COMPILED_GAP_AT_START = 0.1
"""Nats times the root of the number of codes, for compiled models: a pass with and one without
gradients are two programs, which may round bfloat16 differently (on a CPU they do not)."""

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
    """Gives each warning once, where a value stays too low without recovering.

    Right after the warm-up gaps dip below their final values in healthy trainings, so one low mean
    says nothing. A warning is given once, when for ``window`` steps in a row

    - the mean of the last ``window`` steps is below its limit by ``SURE`` standard errors, and
    - it is not above the mean of the ``window`` steps before by ``RISING`` standard errors.

    So none is given in the first ``3 * window`` steps after the warm-up.
    """

    def __init__(self, constants: Constants, window: int = 20, warmup_steps: int = 0) -> None:
        self._constants = constants
        self._window = window
        self._to_skip = warmup_steps
        self._recent: deque[Mapping[str, float | None]] = deque(maxlen=2 * window)
        self._held: Counter[str] = Counter()
        self._reported: set[str] = set()

    def see(self, numbers: Mapping[str, float | None]) -> list[str]:
        """Add the metrics of a step; new warnings."""
        if self._to_skip > 0:
            self._to_skip -= 1
            return []
        self._recent.append(numbers)
        if len(self._recent) < 2 * self._window:
            return []
        steps = list(self._recent)
        before, now = (
            {name: Sample.of(name, part) for name in SIGNALS}
            for part in (steps[: self._window], steps[self._window :])
        )
        surely = {name: one.mean + SURE * one.error for name, one in now.items() if one}
        low = warnings_of(surely, self._constants).keys()
        texts = warnings_of({n: one.mean for n, one in now.items() if one}, self._constants)
        new = []
        for name in WARNINGS:
            signal = signal_of(name, now)
            if name in low and not _rises(before[signal], now[signal]):
                self._held[name] += 1
            else:
                self._held[name] = 0
            if self._held[name] >= self._window and name not in self._reported:
                self._reported.add(name)
                new.append(texts[name])
        return new


SIGNALS = ("positive_gap", "negative_gap", "floored_gap", "drawn_gap")
WARNINGS = ("collapse", "drawn", "saturated", "unbounded")
SURE = 2.0
RISING = 1.0
"""A slow recovery must not be missed: a flat line passes for one now and then, which only delays
its warning."""


@dataclass(frozen=True)
class Sample:
    """Mean of a signal over some steps, and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, name: str, steps: Sequence[Mapping[str, float | None]]) -> "Sample | None":
        """None where no step has the signal."""
        values = [value for step in steps if (value := step.get(name)) is not None]
        if not values:
            return None
        mean = statistics.fmean(values)
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(mean, spread / math.sqrt(len(values)))


def signal_of(warning: str, present: Mapping[str, object | None]) -> str:
    """The metric that a warning is about."""
    if warning == "saturated" and present.get("floored_gap") is not None:
        return "floored_gap"
    return {"collapse": "positive_gap", "drawn": "drawn_gap"}.get(warning, "negative_gap")


def _rises(before: Sample | None, now: Sample | None) -> bool:
    if before is None or now is None:
        return False
    return now.mean - before.mean > RISING * math.hypot(before.error, now.error)


def health_of(setup: TrainingSetup, first: int) -> Health:
    """The ``Health`` of a run from step ``first``; warns at once if the loss has no lower bound."""
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
    constants = Constants(num_codes, of_cca, unbounded, of_ddo)
    return Health(constants, warmup_steps=max(0, setup.train.warmup_steps - first))


def refuse_gap_at_start(gaps: torch.Tensor, num_codes: int, *, compiled: bool) -> None:
    """[M] gaps before the first step, in nats per image. Raises UserError unless all are 0.

    ``compiled`` allows for rounding.
    """
    largest = float(gaps.abs().max())
    allowed = COMPILED_GAP_AT_START * math.sqrt(num_codes) if compiled else MAX_GAP_AT_START
    if not largest <= allowed:
        raise UserError(
            f"before the first step the model and its reference differ by up to {largest:.3g} nats "
            "per image; they are the same model, so every gap must be 0. Likely causes: dropout "
            "that is not switched off, different dtypes or attention kernels, a LoRA that does not "
            "start at zero, or (train.reference=cached) a cache that was computed on another kind "
            "of device."
        )


def loses_step(setup: TrainingSetup, loss: float | None, norm: float) -> bool:
    """Whether fp16's loss scale was too large for this step's gradients.

    The optimizer then leaves the step out, and the scale is halved: it starts at 65,536, so the
    first steps of a training often go this way. At a scale of 1 it is the gradients themselves
    that are too large.
    """
    scaler = setup.accelerator.scaler
    overflown = loss is not None and math.isfinite(loss) and not math.isfinite(norm)
    return overflown and scaler is not None and scaler.get_scale() > 1


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
