"""The scores and pictures that trackers get once a run is scored."""

from PIL import Image

from mm_cca.config.schema import Recipe
from mm_cca.eval.per_prompt import PER_PROMPT, read_per_prompt
from mm_cca.eval.report.tables import best_guided
from mm_cca.eval.report.thumbnails import read_image
from mm_cca.eval.summary_files import SUMMARY, read_summary
from mm_cca.eval.summary_types import Summary, judged, leading_judge
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.manifest import picture_file
from mm_cca.training.contact_sheet import contact_sheet
from mm_cca.training.trackers import log_results

NUM_PROMPTS = 6


def track_scores(recipe: Recipe, run: RunFolder) -> None:
    """Log the scores of all arms, and a sheet of some, to ``train.trackers``."""
    summary = read_summary(run.eval / SUMMARY)
    log_results(recipe, run, scalars_of(summary), sheet_of_arms(run, summary))


def scalars_of(summary: Summary) -> dict[str, float]:
    """``SPLIT/JUDGE/ARM/METRIC`` -> value."""
    return {
        f"{split}/{judge}/{arm['name']}/{metric}": score["value"]
        for arm in summary["arms"]
        for judge, by_split in arm["scores"].items()
        for split, scores in by_split.items()
        for metric, score in scores.items()
    }


def sheet_of_arms(run: RunFolder, summary: Summary) -> Image.Image | None:
    """A few prompts of the last split, drawn by the base, the best guided base and the trained
    model; None where an image is gone."""
    numbers = read_per_prompt(run.eval / PER_PROMPT)
    split = list(numbers)[-1]
    judge = leading_judge(summary["judges"])
    arms = judged(summary["arms"], judge)
    wanted = ("base", best_guided(arms, split), "cca", best_guided(arms, split, "cca"))
    names = [name for name in wanted if name in numbers[split]["judges"][judge]]
    columns = [name for name in names if name is not None] or [arms[0]["name"]]
    first: dict[str, int] = {}
    for index, caption in zip(numbers[split]["indices"], numbers[split]["captions"], strict=True):
        first.setdefault(caption, index)
    prompts = dict(list(first.items())[:NUM_PROMPTS])
    try:
        pictures = [
            [read_image(picture_file(run.samples / name, index)) for name in columns]
            for index in prompts.values()
        ]
    except ValueError:
        return None
    return contact_sheet(pictures, list(prompts), columns, split)
