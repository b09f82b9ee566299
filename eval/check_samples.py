"""Before scoring: is every image there, and unchanged since sampling?"""

from mm_cca.errors import UserError
from mm_cca.eval.features.distributed import map_over_ranks
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.manifest import MANIFEST, count_problems, manifest_of, picture_file, problem_of
from mm_cca.sampling.prompts import Prompt


def refuse_bad_samples(run: RunFolder, arms: list[Arm], prompts: list[Prompt]) -> None:
    """Compare every arm's files with its manifest: same prompts, same bytes, equally many images.

    Raises:
        UserError: every arm with its count, and the first few images by name.
    """
    manifests = {
        arm.name: {line["index"]: line for line in manifest_of(run.samples / arm.name)}
        for arm in arms
    }
    work = [(arm.name, prompt) for arm in arms for prompt in prompts]

    def check(item: tuple[str, Prompt]) -> str | None:
        name, prompt = item
        line = manifests[name].get(prompt.index)
        folder = run.samples / name
        file = picture_file(folder, prompt.index).name
        if line is None:
            return f"{file} is not in {MANIFEST}"
        if line["prompt"] != prompt.caption:
            return f"{file} was sampled for another prompt ({line['prompt']!r})"
        return problem_of(folder, line)

    problems = map_over_ranks(work, check, desc="checking images", unit="img")
    messages = []
    for arm in arms:
        of_arm = [
            problem
            for (name, _), problem in zip(work, problems, strict=True)
            if name == arm.name and problem is not None
        ]
        if of_arm:
            messages.append(f"  - {arm.name}: {count_problems(of_arm, len(prompts))}")
    if messages:
        listing = "\n".join(messages)
        raise UserError(
            f"{run.samples} is incomplete; all arms need the same images:\n{listing}\n"
            "Delete the folder of each arm named and run `mm-cca sample RECIPE` again."
        )
