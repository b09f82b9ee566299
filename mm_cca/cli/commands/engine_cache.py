"""The engine folder of an arm inside the run: written once, used again while it is what it was."""

import hashlib
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from mm_cca.adapters.base import UnifiedModel, refuse_without_engine
from mm_cca.cli.commands.export_engine import EngineExport, describe_export, export_for_engine
from mm_cca.config.load import dump
from mm_cca.config.read_files import json_of
from mm_cca.config.schema import Recipe
from mm_cca.config.shipped import shipped
from mm_cca.errors import UserError
from mm_cca.runs.digests import code_digest
from mm_cca.runs.files import write_json
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import locked
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.engine_arms import served_name


def cached_export(
    recipe: Recipe, run: RunFolder, model: UnifiedModel, arm: Arm
) -> tuple[EngineExport, bool]:
    """The folder ``RUN/engine/ARM``, written now unless it is there already and whole.

    It is written again if the weights, the recipe or mm_cca have changed since, or if a file of it
    is not what was written.

    Returns:
        how it is served, and whether it was there.

    Raises:
        UserError: as ``export_for_engine``.
    """
    refuse_without_engine(model)
    folder = run.root / "engine" / arm.name
    record = folder.with_name(f"{arm.name}.json")
    made_of = _made_of(recipe, run, model, arm)
    with locked(run.root / "engine"):
        if folder.is_dir() and _known(record) == {"made_of": made_of, "files": _digests(folder)}:
            return describe_export(recipe, model, folder, served_name(run, arm)), True
        if record.is_file():
            record.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        export = export_for_engine(run.root, folder, source=arm.source, dial=arm.dial)
        write_json(record, {"made_of": made_of, "files": _digests(folder)})
    return export, False


def _known(record: Path) -> dict[str, Any] | None:
    """What was recorded of an export; None if nothing, or damaged: it is then written again."""
    try:
        return json_of(record, dict[str, Any], "")
    except UserError:
        return None


def _made_of(recipe: Recipe, run: RunFolder, model: UnifiedModel, arm: Arm) -> dict[str, Any]:
    """What decides the content of the folder."""
    sources = [Path(shipped(recipe.model.path))]
    if arm.source != "base":
        sources.append(run.trained_model(arm.source))
    return {
        "mm_cca": metadata.version("mm-cca"),
        "adapter": code_digest(model),
        "served": served_name(run, arm),
        "recipe": hashlib.sha256(dump(recipe).encode()).hexdigest(),
        # Hashing a large base would take longer than loading it; its files rarely change.
        "weights": {str(source): _stamps(source) for source in sources},
    }


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and time of every file, or nothing for a name of the hub."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = {str(path.relative_to(folder)): path.stat() for path in files}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(
                    file, "sha256"
                ).hexdigest()
    return found
