"""The numbers behind the means, prompt by prompt: the report sorts its images by them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mm_cca.errors import UserError
from mm_cca.eval.summary_types import ImageNumbers, SplitNumbers
from mm_cca.runs.files import write_text
from mm_cca.sampling.prompts import Prompt

PER_PROMPT = "per_prompt.json"


class HasNumbers(Protocol):
    """One arm on one split."""

    @property
    def cosine(self) -> np.ndarray: ...
    @property
    def rank(self) -> np.ndarray: ...


class HasPrompts(Protocol):
    """One split."""

    @property
    def prompts(self) -> list[Prompt]: ...


def write_per_prompt(
    path: Path,
    arms: Sequence[str],
    measured: Mapping[str, Mapping[str, HasNumbers]],
    truths: Mapping[str, HasPrompts],
) -> None:
    """Alignment x100 and rank (how many captions fit better than the own one) of every image."""
    numbers: dict[str, SplitNumbers] = {
        split: {
            "indices": [prompt.index for prompt in truth.prompts],
            "captions": [prompt.caption for prompt in truth.prompts],
            "arms": {name: _numbers(measured[name][split]) for name in arms},
        }
        for split, truth in truths.items()
    }
    write_text(path, json.dumps(numbers) + "\n")


def _numbers(measured: HasNumbers) -> ImageNumbers:
    alignment = 100 * measured.cosine.astype(np.float64)  # rounded float32 has a tail of digits
    return {"alignment": alignment.round(3).tolist(), "rank": measured.rank.tolist()}


def read_per_prompt(path: Path) -> dict[str, SplitNumbers]:
    """Split -> what ``write_per_prompt`` wrote.

    Raises:
        UserError: the run was scored before this file existed.
    """
    if not path.exists():
        raise UserError(
            f"{path} does not exist, so the images can't be sorted: this run was scored by an "
            f"older mm_cca. Delete {path.parent} and run `mm-cca eval RECIPE` again."
        )
    numbers: dict[str, SplitNumbers] = json.loads(path.read_text())
    return numbers
