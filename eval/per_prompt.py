"""The numbers behind the means, prompt by prompt: the report sorts its images by them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mm_cca.config.read_files import is_there, json_of, reading, shaped
from mm_cca.errors import UserError
from mm_cca.eval.summary_types import ImageNumbers, SplitNumbers
from mm_cca.runs.files import write_text
from mm_cca.sampling.prompts import Prompt

PER_PROMPT = "per_prompt.json"


class HasNumbers(Protocol):
    """One arm on one split, by one judge."""

    @property
    def cosine(self) -> np.ndarray: ...
    @property
    def rank(self) -> np.ndarray: ...


def numbers_of(measured: HasNumbers) -> ImageNumbers:
    """Alignment x100 and rank (how many captions fit better than the own one) of every image."""
    alignment = 100 * measured.cosine.astype(np.float64)  # rounded float32 has a tail of digits
    return {"alignment": alignment.round(3).tolist(), "rank": measured.rank.tolist()}


def write_per_prompt(
    path: Path,
    prompts: Mapping[str, Sequence[Prompt]],
    numbers: Mapping[str, Mapping[str, Mapping[str, ImageNumbers]]],
) -> None:
    """Write the numbers of every image.

    Args:
        path: the file.
        prompts: by split.
        numbers: by judge, arm and split.
    """
    by_split: dict[str, SplitNumbers] = {
        split: {
            "indices": [prompt.index for prompt in of_split],
            "captions": [prompt.caption for prompt in of_split],
            "judges": {
                judge: {name: of_arm[split] for name, of_arm in arms.items()}
                for judge, arms in numbers.items()
            },
        }
        for split, of_split in prompts.items()
    }
    write_text(path, json.dumps(by_split) + "\n")


def read_per_prompt(path: Path) -> dict[str, SplitNumbers]:
    """Split -> what ``write_per_prompt`` wrote.

    Raises:
        UserError: the run was scored before this file existed, or it is damaged.
    """
    again = f"Delete {path.parent} and run `mm-cca eval RECIPE` again."
    numbers = json_of(path, dict[str, dict[str, Any]], again) if is_there(path) else {}
    if not numbers or any("judges" not in of_split for of_split in numbers.values()):
        raise UserError(
            f"{path} has no numbers by judge, so the images can't be sorted: this run was scored "
            f"by an older mm_cca. {again}"
        )
    with reading(path, again):
        return {split: shaped(of_split, SplitNumbers) for split, of_split in numbers.items()}
