"""Where a training that was interrupted, or is asked for more steps, goes on."""

from pathlib import Path

from accelerate import Accelerator

from mm_cca.config.stage_keys import STEPS_DONE
from mm_cca.errors import UserError
from mm_cca.runs.stage import Stage
from mm_cca.training import checkpoint


def refuse_to_continue_from_nothing(stage: Stage) -> None:
    """Raises UserError where a finished training is asked for more steps and has no checkpoint."""
    saved = stage.folder / "checkpoints"
    if stage.is_extended() and not checkpoint.checkpoints(saved):
        raise UserError(
            f"{stage.folder} is finished and {stage.settings[STEPS_DONE]} steps are asked for now, "
            f"but {saved} holds no checkpoint to continue from. Restore the old number of steps, "
            f"or delete {stage.folder} to start over."
        )


def resume(accelerator: Accelerator, folder: Path, last: int) -> tuple[int, float | None]:
    """Load the newest checkpoint; steps done so far, and the best held-out loss if one is kept.

    Raises:
        UserError: a checkpoint that can't be loaded, or one of more than ``last`` steps.
    """
    state = checkpoint.load_newest(accelerator, folder / "checkpoints")
    if state is None:
        return 0, None
    first = int(state["step"])
    if first > last:
        raise UserError(
            f"{folder} has done {first} steps already, and the recipe asks for {last} "
            "(train.stop_after or train.max_steps). Ask for as many or more, or delete "
            f"{folder} to start over."
        )
    return first, state["best"]
