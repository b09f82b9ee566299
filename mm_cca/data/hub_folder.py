"""A data set that was downloaded from the hub: which files its README.md gives to which split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard

from mm_cca.errors import UserError

TRAIN = "train"


def configured_files(root: Path, subset: str | None) -> dict[str, list[Path]] | None:
    """Split -> files, as the ``configs`` of ``root/README.md`` say; None without any.

    Args:
        root: the folder.
        subset: the configuration; None: the only one, or the default.

    Raises:
        UserError: no such configuration, several without a default, or files that are not there.
    """
    found = _configs(root / "README.md")
    if not found:
        return None
    if subset is None:
        defaults = [name for name, c in found.items() if c.get("default") or name == "default"]
        subset = next(iter(found)) if len(found) == 1 else next(iter(defaults), None)
    if subset not in found:
        raise UserError(
            f"data.subset is {subset!r}; allowed for {root}: {', '.join(found)} (its README.md)."
        )
    patterns = _patterns(found[subset]["data_files"])
    files = {split: _globbed(root, paths) for split, paths in patterns.items()}
    for split, paths in files.items():
        if not paths:
            raise UserError(
                f"{root}: the files of split {split!r}, {', '.join(patterns[split])}, are not "
                "there. Download all of the data set."
            )
    return files


def _configs(readme: Path) -> dict[str, dict[str, Any]]:
    try:
        configs: Any = DatasetCard.load(readme).data.to_dict().get("configs")
    except (ValueError, OSError, yaml.YAMLError):  # none, or some other README
        return {}
    listed = configs if isinstance(configs, list) else []
    dicts = [config for config in listed if isinstance(config, dict)]
    return {str(c.get("config_name", "default")): c for c in dicts if c.get("data_files")}


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """Split -> patterns; README.md files have a text, a list of texts, or splits with paths."""
    if isinstance(data_files, dict):
        entries = list(data_files.items())
    else:
        listed = data_files if isinstance(data_files, list) else [data_files]
        entries = [(e["split"], e["path"]) if isinstance(e, dict) else (TRAIN, e) for e in listed]
    patterns: dict[str, list[str]] = {}
    for split, paths in entries:
        patterns.setdefault(split, []).extend(paths if isinstance(paths, list) else [paths])
    return patterns


def _globbed(root: Path, patterns: Sequence[str]) -> list[Path]:
    """Files below the folder only."""
    inside = [p for p in patterns if ".." not in Path(p).parts and not Path(p).is_absolute()]
    return sorted({path for p in inside for path in root.glob(p) if path.is_file()})
