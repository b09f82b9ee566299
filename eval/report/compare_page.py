"""Two runs compared: the terminal's tables, and a page with both runs' pictures side by side."""

import math
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mm_cca.config.metrics import LEAD, METRICS
from mm_cca.eval.comparison_types import (
    ArmPair,
    JudgedPair,
    ProtocolDifference,
    RunComparison,
    ScoreDifference,
    SharedPrompt,
    SplitComparison,
)
from mm_cca.eval.report.pages import templates
from mm_cca.eval.report.tables import TERMINAL_COLUMNS
from mm_cca.eval.report.thumbnails import EXACT_SIDE, Budget, read_image, thumbnail
from mm_cca.eval.report.wording import prompts_in_words
from mm_cca.sampling.manifest import picture_file

MOST_ROWS = 12
"""Prompts with pictures in every split."""
MOST_PAIRS = 3
"""Pairs of arms with pictures."""
LONGEST_VALUE = 60


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
            differing=[(each.field, *_shown(each), each.consequence) for each in found.differing],
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


def same_pairs(split: SplitComparison) -> list[ArmPair]:
    """The pairs of arms with the same numbers by every judge."""
    differing = {each.pair for each in split.judged if not each.is_same}
    return list(dict.fromkeys(e.pair for e in split.judged if e.pair not in differing))


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


def score_text(score: ScoreDifference, which: int) -> str:
    return f"{score.values[which]:.{METRICS[score.metric].digits}f}"


def own_text(score: ScoreDifference, which: int) -> str:
    """The side's own interval where the difference has none; empty if there is none either."""
    own = score.own[which]
    if own is None or score.difference is not None:
        return ""
    digits = METRICS[score.metric].digits
    return f"{own['low']:.{digits}f} to {own['high']:.{digits}f}"


def difference_text(score: ScoreDifference) -> str:
    """B minus A with its 95 % interval, if it has one."""
    digits = METRICS[score.metric].digits
    if score.difference is None:
        return f"{score.values[1] - score.values[0]:+z.{digits}f}"
    value, low, high = (score.difference[key] for key in ("value", "low", "high"))
    return f"{value:+z.{digits}f} [{low:+z.{digits}f}, {high:+z.{digits}f}]"


def _better(score: ScoreDifference) -> str:
    if score.difference is None:
        return "no interval"
    return "no difference found" if score.better is None else f"{score.better} is better"


def without_interval(found: RunComparison) -> str:
    """Which differences have no interval, and why; empty if all have one."""
    labels: dict[str, list[str]] = {}
    for split in found.splits:
        same = same_pairs(split)
        for score in (s for each in split.judged if each.pair not in same for s in each.scores):
            if score.lacking:
                labels.setdefault(score.lacking, []).append(METRICS[score.metric].label)
    parts = [f"{', '.join(dict.fromkeys(names))}, {why}" for why, names in labels.items()]
    if not parts:
        return ""
    return f"Differences without an interval: {'; '.join(parts)}."


def _shown(difference: ProtocolDifference) -> tuple[str, str]:
    """Both values, cut to what a line holds."""
    a, b = map(str, difference.values)
    return _cut(a), _cut(b)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def print_comparison(found: RunComparison) -> None:
    """Tables that fit into 80 columns, split by split and judge by judge."""
    console = Console()
    for letter, name in zip("AB", found.names, strict=True):
        console.print(f"{letter}: {name}", soft_wrap=True, markup=False, highlight=False)
    for each in found.differing:
        a, b = _shown(each)
        console.print(
            f"differs: {each.field} is {a} in A and {b} in B: {each.consequence}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    for split in found.splits:
        for judge in dict.fromkeys(each.judge for each in split.judged):
            console.print()
            console.print(_table(split, judge))
        if same := same_pairs(split):
            told = ", ".join(pair.name for pair in same)
            console.print(f"the same in A and B: {told}", soft_wrap=True, markup=False)
    console.print(
        "B - A: paired by prompt, with 95 % intervals. The page has all scores.", highlight=False
    )
    if told := without_interval(found):
        console.print(told, soft_wrap=True, markup=False, highlight=False)


def _table(split: SplitComparison, judge: str) -> Table:
    count = len(split.prompts)
    title = f"{count} {prompts_in_words(split.split)} of both, scored by {judge}"
    table = Table(title=title, box=SIMPLE_HEAD)
    same = same_pairs(split)
    table.add_column("arm and score", no_wrap=True)
    for heading in ("A", "B", "B - A"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("better", no_wrap=True)
    for each in split.judged:
        if each.judge != judge or each.pair in same:
            continue
        shown = _for_terminal(each.scores)
        table.add_row(escape(each.pair.name), style="bold")
        for number, score in enumerate(shown):
            table.add_row(
                f"  {METRICS[score.metric].label}",
                score_text(score, 0),
                score_text(score, 1),
                escape(difference_text(score)),
                score.better or "",
                end_section=number == len(shown) - 1,
            )
    return table


def _for_terminal(scores: list[ScoreDifference]) -> list[ScoreDifference]:
    """The few that come first; the page has all."""

    def priority(score: ScoreDifference) -> float:
        place = METRICS[score.metric].terminal_priority
        return math.inf if place is None else place

    chosen = sorted(scores, key=priority)[:TERMINAL_COLUMNS]
    return [score for score in scores if score in chosen]
