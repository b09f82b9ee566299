"""Is every picture there, and as it was drawn? Asked before scoring."""

from typing import Any

from mm_cca.errors import UserError
from mm_cca.eval.features.distributed import map_over_ranks
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.manifest import MANIFEST, count_problems, manifest_of, picture_file, problem_of
from mm_cca.sampling.prompts import Prompt


def refuse_bad_samples(run: RunFolder, arms: list[Arm], prompts: list[Prompt]) -> None:
    """Compare every arm's files with its manifest: same prompts, same bytes, equally many images.

    Raises:
        UserError: every arm with its count, and the first few pictures by name.
    """
    listed = {
        arm.name: {line["index"]: line for line in manifest_of(run.samples / arm.name)}
        for arm in arms
    }
    work = [(arm.name, prompt) for arm in arms for prompt in prompts]

    def check(item: tuple[str, Prompt]) -> str | None:
        name, prompt = item
        line = listed[name].get(prompt.index)
        folder = run.samples / name
        file = picture_file(folder, prompt.index).name
        if line is None:
            return f"{file} is not in {MANIFEST}"
        return _another_prompt(file, line, prompt) or problem_of(folder, line)

    found = map_over_ranks(work, check, desc="checking pictures", unit="img")
    told = []
    for arm in arms:
        mine = [each for (name, _), each in zip(work, found, strict=True) if name == arm.name]
        bad = [problem for problem in mine if problem is not None]
        if bad:
            told.append(f"  - {arm.name}: {count_problems(bad, len(prompts))}")
    if told:
        listing = "\n".join(told)
        raise UserError(
            f"{run.samples} is not whole, and arms are compared on equally many pictures:\n"
            f"{listing}\nDelete the folder of each arm named and run `mm-cca sample RECIPE` again."
        )


def _another_prompt(file: str, line: dict[str, Any], prompt: Prompt) -> str | None:
    if line["prompt"] == prompt.caption:
        return None
    return f"{file} was drawn for another prompt ({line['prompt']!r})"
