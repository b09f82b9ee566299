"""The numbers behind the means, prompt by prompt: what the report sorts its pictures by."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mm_cca.errors import UserError
from mm_cca.runs.files import write_text
from mm_cca.sampling.prompts import Prompt

PER_PROMPT = "per_prompt.json"


class HasNumbers(Protocol):
    """One arm on one split."""

    cosine: np.ndarray
    rank: np.ndarray


class HasPrompts(Protocol):
    """One split."""

    prompts: list[Prompt]


def write_per_prompt(
    path: Path,
    arms: Sequence[str],
    measured: Mapping[str, Mapping[str, HasNumbers]],
    truths: Mapping[str, HasPrompts],
) -> None:
    """Alignment x100 and rank (how many captions fit better than the own one) of every image."""
    found = {
        split: {
            "indices": [prompt.index for prompt in truth.prompts],
            "captions": [prompt.caption for prompt in truth.prompts],
            "arms": {name: _numbers(measured[name][split]) for name in arms},
        }
        for split, truth in truths.items()
    }
    write_text(path, json.dumps(found) + "\n")


def _numbers(measured: HasNumbers) -> dict[str, list[float]]:
    alignment = 100 * measured.cosine.astype(np.float64)  # rounded float32 has a tail of digits
    return {"alignment": alignment.round(3).tolist(), "rank": measured.rank.tolist()}


def read_per_prompt(path: Path) -> dict[str, Any]:
    """What ``write_per_prompt`` wrote.

    Raises:
        UserError: this run was scored before there was such a file.
    """
    if not path.exists():
        raise UserError(
            f"{path} does not exist, so the pictures can't be sorted: this run was scored by an "
            f"older mm_cca. Delete {path.parent} and run `mm-cca eval RECIPE` again."
        )
    found: dict[str, Any] = json.loads(path.read_text())
    return found
