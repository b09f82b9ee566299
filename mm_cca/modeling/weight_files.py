"""The safetensors files of a checkpoint folder, whole or in shards."""

import json
from pathlib import Path


def weight_files(folder: Path) -> list[Path]:
    """Paths of the model's safetensors files; empty if the folder holds none."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        places = json.loads(index.read_text())["weight_map"]
        return [folder / name for name in sorted(set(places.values()))]
    whole = folder / "model.safetensors"
    return [whole] if whole.exists() else []
