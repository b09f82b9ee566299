"""Two runs compared: a page with both runs' pictures side by side."""

from pathlib import Path
from typing import NamedTuple

from mm_cca.config.metrics import LEAD, METRICS
from mm_cca.eval.comparison_types import (
    ArmPair,
    JudgedPair,
    RunComparison,
    ScoreDifference,
    SharedPrompt,
    SplitComparison,
)
from mm_cca.eval.report.difference_text import (
    difference_text,
    own_text,
    same_pairs,
    score_text,
    shown_values,
    without_interval,
)
from mm_cca.eval.report.pages import templates
from mm_cca.eval.report.thumbnails import EXACT_SIDE, Budget, read_image, thumbnail
from mm_cca.sampling.manifest import picture_file

MOST_ROWS = 12
"""Prompts with pictures in every split."""
MOST_PAIRS = 3
"""Pairs of arms with pictures."""


class PicturesOfRun(NamedTuple):
    """Where a run's images are, and their longer side in pixels."""

    samples: Path
    side: int


class PairedImages(NamedTuple):
    """Both images of a prompt (base64, or None where one is gone) and their alignments."""

    thumbs: tuple[str | None, str | None]
    alignments: tuple[float, float]


class PictureRow(NamedTuple):
    """A prompt and its images, pair by pair."""

    caption: str
    pairs: list[PairedImages]


def compare_page(
    found: RunComparison, pictures: tuple[PicturesOfRun, PicturesOfRun], megabytes: float
) -> str:
    """The HTML; ``megabytes`` is the most that its pictures take."""
    budget = Budget(megabytes)
    rows = {split.split: _rows(split, pictures, budget) for split in found.splits}
    return (
        templates()
        .get_template("compare.html.j2")
        .render(
            names=found.names,
            found=found,
            sentences={
                split.split: [_sentence(found, each) for each in _of_lead_pair(split)]
                for split in found.splits
            },
            differing=[
                (each.field, *shown_values(each), each.consequence) for each in found.differing
            ],
            same={split.split: same_pairs(split) for split in found.splits},
            pairs={split.split: shown_pairs(split) for split in found.splits},
            rows=rows,
            metrics=METRICS,
            text=score_text,
            own=own_text,
            without=without_interval(found),
            difference=difference_text,
            better=_better,
            exact=all(each.side <= EXACT_SIDE for each in pictures),
        )
    )


def shown_pairs(split: SplitComparison) -> list[ArmPair]:
    """The pairs of arms whose pictures are shown: those that differ, if any do."""
    all_pairs = list(dict.fromkeys(each.pair for each in split.judged))
    same = same_pairs(split)
    return ([pair for pair in all_pairs if pair not in same] or all_pairs)[:MOST_PAIRS]


def _rows(
    split: SplitComparison, pictures: tuple[PicturesOfRun, PicturesOfRun], budget: Budget
) -> list[PictureRow]:
    pairs, judge = shown_pairs(split), split.judged[0].judge
    rows = []
    for prompt in _telling(split.prompts, judge, pairs[0].name)[:MOST_ROWS]:
        images = [
            PairedImages(
                (
                    _thumb(pictures[0].samples / pair.a, prompt.images[0], budget),
                    _thumb(pictures[1].samples / pair.b, prompt.images[1], budget),
                ),
                prompt.alignments[judge][pair.name],
            )
            for pair in pairs
        ]
        rows.append(PictureRow(prompt.caption, images))
    return rows


def _telling(prompts: list[SharedPrompt], judge: str, pair: str) -> list[SharedPrompt]:
    """In turn from the top, from the largest gain and from the largest loss of B, each once."""

    def gain(number: int) -> float:
        a, b = prompts[number].alignments[judge][pair]
        return b - a

    rising = sorted(range(len(prompts)), key=gain)
    turns = zip(range(len(prompts)), rising[::-1], rising, strict=True)
    return [prompts[number] for number in dict.fromkeys(n for turn in turns for n in turn)]


def _thumb(folder: Path, index: int, budget: Budget) -> str | None:
    try:
        text = thumbnail(read_image(picture_file(folder, index)))
    except ValueError:
        return None
    return text if budget.takes(text) else None


def _of_lead_pair(split: SplitComparison) -> list[JudgedPair]:
    first = shown_pairs(split)[0]
    return [each for each in split.judged if each.pair == first]


def _sentence(found: RunComparison, judged: JudgedPair) -> str:
    """The difference in the metric that comes first, in words."""
    score = next((each for each in judged.scores if each.metric == LEAD), None)
    if score is None:
        return f"{judged.judge}: {METRICS[LEAD].label} can't be compared."
    if score.difference is None:
        return f"{judged.judge}: too few prompts for an interval."
    arm = f"{judged.pair.name} of {found.names[1]}"
    told = f"difference {difference_text(score)}"
    label = METRICS[LEAD].label
    if score.better is None:
        return f"{judged.judge}: no difference found in {label} of {judged.pair.name} ({told})."
    word = "above" if score.better == "B" else "below"
    return f"{judged.judge}: {arm} is {word} that of {found.names[0]} in {label} ({told})."


def _better(score: ScoreDifference) -> str:
    if score.difference is None:
        return "no interval"
    return "no difference found" if score.better is None else f"{score.better} is better"
