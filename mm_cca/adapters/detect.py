"""Which adapter reads a checkpoint, found by its config.json."""

from pathlib import Path

from mm_cca.adapters.chameleon_files import is_lumina
from mm_cca.adapters.checkpoint_files import FILE_ERRORS, CheckpointError, is_hub_name
from mm_cca.adapters.families import kind_of
from mm_cca.adapters.loading import read_config
from mm_cca.config.shipped import shipped
from mm_cca.errors import UserError


def adapter_of(path: str) -> str:
    """The name of the adapter for a checkpoint folder, a hub name or ``emu3-emoji``.

    Raises:
        UserError: nothing is there, config.json can't be read, or no adapter reads its family.
    """
    resolved = shipped(path)
    if not Path(resolved).is_dir() and not is_hub_name(resolved):
        raise UserError(
            f"{path!r} is neither a folder nor a hub name (OWNER/NAME); give a run folder, a "
            "folder that mm-cca export or save_pretrained wrote, or a hub name."
        )
    try:
        config = read_config(resolved)
    except (CheckpointError, *FILE_ERRORS) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"config.json of {path!r} can't be read: {why}") from error
    if config.get("model_type") is None:
        raise UserError(
            f"{path!r} holds no model: neither recipe.yaml of a run, nor mm_cca.json of an export, "
            "nor a config.json with a model_type."
        )
    kind = kind_of(config)
    if kind.name == "chameleon":  # two adapters read this kind, each its own checkpoints
        return "lumina-mgpt" if is_lumina(config, resolved) else "chameleon"
    if kind.adapter is None:
        raise UserError(f"{path!r} holds {kind.what}: {kind.advice}.")
    return kind.adapter
