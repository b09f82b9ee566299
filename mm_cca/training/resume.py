"""Resume an interrupted training, or extend a finished one."""

from pathlib import Path

from accelerate import Accelerator

from mm_cca.config.stage_keys import STEPS_DONE
from mm_cca.errors import UserError
from mm_cca.runs.stage import Stage
from mm_cca.training import checkpoint


def refuse_to_continue_from_nothing(stage: Stage) -> None:
    """Raises UserError if a finished training is to be extended but has no checkpoint."""
    saved = stage.folder / "checkpoints"
    if stage.is_extended() and not checkpoint.checkpoints(saved):
        raise UserError(
            f"{stage.folder} is finished and the recipe now has {stage.settings[STEPS_DONE]} "
            f"steps, but {saved} holds no checkpoint to resume from. Restore the old number of "
            f"steps, or delete {stage.folder} to start over."
        )


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
