"""The previews of a training: where their pictures lie, and the record of those drawn."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm_cca.errors import UserError
from mm_cca.runs.files import write_json

PREVIEWS = "previews"
"""The folder in that of the training."""
FILE = "previews.json"


@dataclass
class PreviewRecord:
    """What ``previews.json`` holds.

    Attributes:
        prompts: R of them, without a template.
        guidance_scale: of the guided pictures.
        settings: everything else that decides the pictures of some weights.
        drawn: steps done -> seconds that the pictures took; 0 is the base.
        every: steps between previews that sample.every=auto chose; None: none yet.
    """

    prompts: list[str]
    guidance_scale: float
    settings: dict[str, Any] = field(default_factory=dict)
    drawn: dict[int, float] = field(default_factory=dict)
    every: int | None = None

    def has_same_pictures(self, other: "PreviewRecord") -> bool:
        """Whether both mean the same pictures."""
        mine = (self.prompts, self.guidance_scale, self.settings)
        return mine == (other.prompts, other.guidance_scale, other.settings)

    def write(self, training: Path) -> None:
        """Write it into the folder of a training. Raises UserError if the disk is full."""
        drawn = {str(step): max(0.001, round(s, 3)) for step, s in sorted(self.drawn.items())}
        path = training / PREVIEWS / FILE
        try:
            write_json(path, vars(self) | {"drawn": drawn})
        except OSError as error:
            raise UserError(
                f"{path} can't be written: {error}. Free some space and run the same command "
                "again, or go on without previews (sample.every=null)."
            ) from error


def read_record(training: Path) -> PreviewRecord | None:
    """The record in the folder of a training; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    path = training / PREVIEWS / FILE
    try:
        return _parsed(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} can't be read: {error!r}. It lists the previews drawn so far. Restore it, or "
            f"delete {path.parent}; training itself does not need it."
        ) from error


def _parsed(stored: Mapping[str, Any]) -> PreviewRecord:
    every = stored["every"]
    record = PreviewRecord(
        prompts=[str(prompt) for prompt in stored["prompts"]],
        guidance_scale=float(stored["guidance_scale"]),
        settings=dict(stored["settings"]),
        drawn={int(step): float(seconds) for step, seconds in stored["drawn"].items()},
        every=None if every is None else int(every),
    )
    if min(record.drawn, default=0) < 0 or not all(s > 0 for s in record.drawn.values()):
        raise ValueError("a step or its seconds are negative")
    if record.every is not None and record.every < 1:
        raise ValueError(f"every is {record.every}")
    return record


def sheet_of(training: Path, step: int) -> Path:
    """The contact sheet of the previews after so many steps."""
    return training / PREVIEWS / f"step-{step:06d}.png"


def picture_of(training: Path, step: int, row: int, *, guided: bool) -> Path:
    """The picture of prompt ``row`` (from 0) after so many steps."""
    name = f"{row:02d}-guided.png" if guided else f"{row:02d}.png"
    return sheet_of(training, step).with_suffix("") / name
