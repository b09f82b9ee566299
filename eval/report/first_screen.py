"""What a reader sees first: a sentence for every judge, and a strip of pictures."""

from collections.abc import Sequence
from typing import NamedTuple

from mm_cca.config.metrics import METRICS, in_sentence
from mm_cca.eval.report.forest import MARKERS, markers_of, ours_in_words
from mm_cca.eval.report.gallery import Grid
from mm_cca.eval.report.panel_text import name_of
from mm_cca.eval.report.static_grid import image_of
from mm_cca.eval.report.wording import BADGES, cost, outcome, place_of
from mm_cca.eval.summary_types import JudgeEntry, Summary, VerdictEntry, differences_of

STRIP_PROMPTS = 6


class Finding(NamedTuple):
    """The metrics of a split that share an outcome."""

    outcome: str
    words: str
    metrics: str


class SplitFindings(NamedTuple):
    """One split in a judge's sentence."""

    split: str
    findings: list[Finding]


class JudgeSentence(NamedTuple):
    """One judge's verdict on the comparison that comes first.

    Attributes:
        judge: its name.
        marker: of its intervals in the forest plot.
        compared: who is compared with whom.
        splits: what was found on each.
        cost: forward passes of the one against the other.
    """

    judge: str
    marker: str
    compared: str
    splits: list[SplitFindings]
    cost: str


class ArmRow(NamedTuple):
    """One arm: its pictures' sources, None where one can't be shown."""

    arm: str
    is_ours: bool
    sources: list[str | None]


class PictureStrip(NamedTuple):
    """A few prompts and what the arms made of them."""

    captions: list[str]
    rows: list[ArmRow]
    exact: bool


def judge_sentences(summary: Summary) -> list[JudgeSentence]:
    """One for every judge that may judge and compared something."""
    judges = [judge for judge in summary["judges"] if judge["may_judge"]]
    markers = markers_of([judge["name"] for judge in judges])
    sentences = []
    for judge in judges:
        first = _first_comparisons(summary, judge)
        if first:
            sentences.append(_sentence(summary, judge["name"], markers[judge["name"]], first))
    return sentences


def sentence_lines(summary: Summary) -> list[str]:
    """The same in the terminal, where they come last."""
    lines: list[str] = []
    for sentence in judge_sentences(summary):
        compared = f"{sentence.compared}, {sentence.cost}:"
        if compared not in lines:
            lines.append(compared)
        parts = [
            f"on {part.split} "
            + ", ".join(f"{found.words} in {found.metrics}" for found in part.findings)
            for part in sentence.splits
        ]
        lines.append(f"  {sentence.judge}: {'; '.join(parts)}")
    return lines


def _first_comparisons(summary: Summary, judge: JudgeEntry) -> list[VerdictEntry]:
    """Of every split: the comparison that comes first."""
    found = []
    for split in summary["protocol"]["num_prompts"]:
        of_split = [v for v in summary["verdicts"][judge["name"]] if v["split"] == split]
        if of_split:
            found.append(min(of_split, key=lambda v: place_of(v["ours"], v["rival"])))
    return found


def _sentence(
    summary: Summary, judge: str, marker: str, verdicts: Sequence[VerdictEntry]
) -> JudgeSentence:
    passes = {arm["name"]: arm["forwards_per_image"] for arm in summary["arms"]}
    first, name = verdicts[0], name_of(summary)
    compared = f"{ours_in_words(first['ours'], name)} against the {first['rival']}"
    return JudgeSentence(
        judge,
        MARKERS[marker],
        compared[0].upper() + compared[1:],
        [SplitFindings(verdict["split"], _findings(verdict)) for verdict in verdicts],
        cost(passes[first["arm"]], passes[first["against"]]),
    )


def _findings(verdict: VerdictEntry) -> list[Finding]:
    """Metrics by outcome, in the order of the metrics."""
    by_outcome: dict[str, list[str]] = {}
    differences = differences_of(verdict)
    for name in in_sentence(differences):
        metric = METRICS[name]
        found = outcome(differences[name], higher_is_better=metric.higher_is_better)
        by_outcome.setdefault(found, []).append(metric.label)
    return [Finding(found, BADGES[found], _listed(names)) for found, names in by_outcome.items()]


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def picture_strip(grids: Sequence[Grid]) -> PictureStrip:
    """The first prompts of every split in turn: base, best guided base and the trained model."""
    chosen = _first_prompts([grid["captions"] for grid in grids])
    present: list[str] = [column["name"] for column in grids[0]["columns"]]
    ours = grids[0]["ours"]
    names = dict.fromkeys(["base", grids[0]["baseline"] or "base", ours])
    rows = [
        ArmRow(name, name == ours, [image_of(grids[split], name, row) for split, row in chosen])
        for name in names
        if name in present
    ]
    captions = [grids[split]["captions"][row] for split, row in chosen]
    return PictureStrip(captions, rows, grids[0]["exact"])


def _first_prompts(captions: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """(split, row) of the first image of the first prompts, equally many of every split where there
    are enough."""
    firsts = [
        [split.index(caption) for caption in list(dict.fromkeys(split))[:STRIP_PROMPTS]]
        for split in captions
    ]
    in_turn = [
        (split, rows[place])
        for place in range(STRIP_PROMPTS)
        for split, rows in enumerate(firsts)
        if place < len(rows)
    ]
    return sorted(in_turn[:STRIP_PROMPTS])
