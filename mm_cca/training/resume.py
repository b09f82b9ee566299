"""Resume an interrupted training, or extend a finished one."""

import shutil
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from mm_cca.config.keys import value_of
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import STEPS_DONE
from mm_cca.errors import UserError
from mm_cca.runs.digests import BASE
from mm_cca.runs.preview_record import PREVIEWS
from mm_cca.runs.stage import Stage, recorded
from mm_cca.training import checkpoint
from mm_cca.training.base_measurement import FILE as BETA

MEMORY_KEYS = ("train.micro_batch_size", "train.gradient_checkpointing")


def refuse_to_continue_from_nothing(stage: Stage) -> None:
    """Raises UserError if a finished training is to be extended but has no checkpoint."""
    saved = stage.folder / "checkpoints"
    if stage.is_extended() and not checkpoint.checkpoints(saved):
        raise UserError(
            f"{stage.folder} is finished and the recipe now has {stage.settings[STEPS_DONE]} "
            f"steps, but {saved} holds no checkpoint to resume from. Restore the old number of "
            f"steps, or delete {stage.folder} to start over."
        )


def forget_start(folder: Path) -> None:
    """Delete what a start that made no checkpoint measured: the recipe may be another by now."""
    for name in (BASE, BETA):
        (folder / name).unlink(missing_ok=True)
    for name in ("negatives", PREVIEWS):
        shutil.rmtree(folder / name, ignore_errors=True)


def computed_with(recipe: Recipe, folder: Path) -> list[dict[str, Any]]:
    """What decides rounding but no pairs, with the step from which on; a change is told.

    Args:
        recipe: a validated recipe.
        folder: of the training.
    """
    saved = checkpoint.checkpoints(folder / "checkpoints")
    earlier = list((recorded(folder) or {}).get("computed_with", [])) if saved else []
    now = {name: value_of(recipe, name) for name in MEMORY_KEYS}
    was = {k: v for k, v in earlier[-1].items() if k != "from_step"} if earlier else now
    changes = [f"{name} {now[name]} (was {was[name]})" for name in now if now[name] != was[name]]
    if changes:
        tqdm.write(
            f"{folder} goes on with {' and '.join(changes)}: every step has the same pairs, and "
            "the result is the same up to rounding, not to the last bit",
            file=sys.stderr,
        )
    if earlier and not changes:
        return earlier
    step = int(saved[-1].name.removeprefix("step-")) if saved else 0
    return [*earlier, {"from_step": step, **now}]


def resume(accelerator: Accelerator, folder: Path, last: int) -> tuple[int, float | None]:
    """Load the newest checkpoint; the steps done so far, and the best held-out loss if known.

    Raises:
        UserError: a checkpoint that can't be loaded, or one of more than ``last`` steps.
    """
    state = checkpoint.load_newest(accelerator, folder / "checkpoints")
    if state is None:
        return 0, None
    first = int(state["step"])
    if first > last:
        raise UserError(
            f"{folder} has done {first} steps already, but the recipe has only {last} "
            f"(train.stop_after or train.max_steps). Use {first} or more, or delete {folder} to "
            "start over."
        )
    return first, state["best"]
