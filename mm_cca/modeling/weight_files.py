"""The safetensors files of a checkpoint folder, whole or in shards."""

from pathlib import Path

from typing_extensions import TypedDict

from mm_cca.config.read_files import is_there, json_of


class _Index(TypedDict):
    weight_map: dict[str, str]


def weight_files(folder: Path) -> list[Path]:
    """Paths of the model's safetensors files; empty if the folder holds none.

    Raises:
        UserError: the list of shards is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if is_there(index):
        places = json_of(index, _Index, "Restore it, or write the model again.")["weight_map"]
        return [folder / name for name in sorted(set(places.values()))]
    whole = folder / "model.safetensors"
    return [whole] if whole.exists() else []
