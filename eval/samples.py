"""Is every picture there, and as it was drawn? Asked before scoring."""

import hashlib
import json
from pathlib import Path

from mm_cca.eval.ranks import spread

from mm_cca.arms import Arm, Prompt
from mm_cca.errors import UserError
from mm_cca.run import RunFolder
from mm_cca.sample import MANIFEST

NAMED = 5


def refuse_bad_samples(run: RunFolder, arms: list[Arm], prompts: list[Prompt]) -> None:
    """Compare every arm's files with its manifest: same prompts, same bytes, equally many images.

    Raises:
        UserError: every arm with its count, and the first few pictures by name.
    """
    work = [(arm.name, prompt) for arm in arms for prompt in prompts]
    listed = {arm.name: _manifest(run.samples / arm.name) for arm in arms}
    found = spread(
        work,
        lambda item: _problem(run.samples / item[0], item[1], listed[item[0]]),
        desc="checking pictures",
        unit="img",
    )
    lines = []
    for arm in arms:
        bad = [
            problem
            for (name, _), problem in zip(work, found, strict=True)
            if name == arm.name and problem is not None
        ]
        if bad:
            more = "" if len(bad) <= NAMED else f" and {len(bad) - NAMED} more"
            lines.append(
                f"  - {arm.name}: {len(bad)} of {len(prompts)} pictures can't be used: "
                f"{'; '.join(bad[:NAMED])}{more}"
            )
    if lines:
        told = "\n".join(lines)
        raise UserError(
            f"{run.samples} is not whole, and arms are compared on equally many pictures:\n{told}\n"
            "Delete the folder of each arm named and run `mm-cca sample RECIPE` again."
        )


def _manifest(folder: Path) -> dict[int, dict[str, object]]:
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        lines = [json.loads(text) for text in path.read_text().splitlines() if text]
        return {line["index"]: line for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is torn: {error}. Delete {folder} and run `mm-cca sample RECIPE` again."
        ) from error


def _problem(folder: Path, prompt: Prompt, manifest: dict[int, dict[str, object]]) -> str | None:
    file = folder / f"{prompt.index:06d}.png"
    line = manifest.get(prompt.index)
    if line is None:
        return f"{file.name} is not in {MANIFEST}"
    if line["prompt"] != prompt.caption:
        return f"{file.name} was drawn for another prompt ({line['prompt']!r})"
    if not file.exists():
        return f"{file.name} is missing"
    if hashlib.sha256(file.read_bytes()).hexdigest() != line["sha256"]:
        return f"{file.name} is not what was drawn (its sha256 is not the manifest's)"
    return None
