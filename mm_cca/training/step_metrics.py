"""Metrics of training: one JSON line per step, averaged over micro-batches and ranks."""

import json
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from accelerate import Accelerator

from mm_cca.config.read_files import is_there, text_of
from mm_cca.objectives import Stats
from mm_cca.training.collate import MicroBatch

OF_DRAWN = ("drawn_gap", "drawn_margin", "drawn_accuracy")
WITH_CONDITION = ("positive_gap", "kl", "mean_scale_share", *OF_DRAWN)
OF_NEGATIVES = ("negative_gap", "margin", "accuracy", "floored_gap", "codes_at_floor")


class StepMetrics:
    """Collects the micro-batches of one step. Gaps are means in nats per image.

    ``positive_gap``, ``kl``, ``mean_scale_share`` and those of drawn pictures exclude rows with a
    dropped condition; ``negative_gap``, ``margin``, ``accuracy``, ``floored_gap`` and
    ``codes_at_floor`` exclude rows that count as positive;
    ``unconditional_gap`` is the positive gap of the dropped rows.
    """

    def __init__(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._stats: dict[str, list[torch.Tensor]] = {}
        self._dropped: list[torch.Tensor] = []
        self._positive: list[torch.Tensor] = []
        self.tokens = 0

    def add(self, loss: torch.Tensor, stats: Stats, batch: MicroBatch) -> None:
        """Add one micro-batch."""
        self._losses.append(loss.detach())
        for name, values in stats.items():
            self._stats.setdefault(name, []).append(values)
        self._dropped.append(batch.dropped)
        self._positive.append(batch.counts_as_positive)
        self.tokens += batch.num_tokens

    def reduce(self, accelerator: Accelerator) -> dict[str, float | None]:
        """Means over all ranks; None where no row qualifies."""
        numbers: dict[str, float | None] = {
            "loss": float(accelerator.gather(torch.stack(self._losses)).mean())
        }
        if not self._stats:
            return numbers
        stats = {name: accelerator.gather(torch.cat(v)) for name, v in self._stats.items()}
        dropped = accelerator.gather(torch.cat(self._dropped))
        negative = ~accelerator.gather(torch.cat(self._positive))
        rows = {
            **dict.fromkeys(WITH_CONDITION, ~dropped),
            **dict.fromkeys(OF_NEGATIVES, negative),
        }
        for name, values in stats.items():
            numbers[name] = _mean(values, rows.get(name, torch.ones_like(values, dtype=torch.bool)))
        if "positive_gap" in stats:
            numbers["unconditional_gap"] = _mean(stats["positive_gap"], dropped)
        return numbers


def _mean(values: torch.Tensor, chosen: torch.Tensor) -> float | None:
    return float(values[chosen].mean()) if bool(chosen.any()) else None


class MetricsFile:
    """``metrics.jsonl``; opening it deletes the lines of steps that will be repeated."""

    def __init__(self, path: Path, first_step: int, is_main_process: bool) -> None:
        self._path = path
        self._first_step = first_step
        self._is_main = is_main_process

    def __enter__(self) -> Self:
        if self._is_main:
            kept = [line for line in self._lines() if _step_of(line) < self._first_step]
            self._path.write_text("".join(line + "\n" for line in kept))
            # Line by line, for those who watch.
            self._file = self._path.open("a", buffering=1)
        return self

    def _lines(self) -> list[str]:
        if not is_there(self._path):
            return []
        advice = "Delete it; the curves of the steps already done are then lost."
        return text_of(self._path, advice).splitlines()

    def write(self, step: int, numbers: dict[str, float | None]) -> None:
        """Append one line."""
        if self._is_main:
            self._file.write(json.dumps({"step": step, **numbers}) + "\n")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_main:
            self._file.close()


def _step_of(line: str) -> float:
    """The step of a line; infinity for a truncated or damaged one, which is deleted."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
