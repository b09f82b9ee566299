"""The judges and their common verdict in words, for the terminal, the report and the sweep."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mm_cca.config.metrics import METRICS
from mm_cca.eval.report.wording import (
    BADGES,
    CCA,
    arms_in_words,
    cost,
    difference_in_words,
    place_of,
    prompts_in_words,
    shared_cautions,
)
from mm_cca.eval.summary_types import (
    Examination,
    FigureName,
    HeadlineEntry,
    JudgeEntry,
    Standing,
    Summary,
)


class Figure(NamedTuple):
    """One mean of an examination, and the margin by which the one before it is above."""

    label: str
    text: str
    margin: str


ORDER: dict[FigureName, str] = {
    "real": "real image, own caption",
    "reconstruction": "reconstruction, own caption",
    "other_style": "reconstruction, one attribute another",
    "other_caption": "reconstruction, another caption",
}
"""Figures of an examination, in the order in which they should fall."""
PREPOSITIONS: dict[Standing, str] = {"ahead": "ahead of", "behind": "behind"}


class HeadlineText(NamedTuple):
    """One comparison: its standing, the same in a word or two, a sentence, and cautions that not
    all comparisons of the split share."""

    standing: Standing
    badge: str
    sentence: str
    cautions: list[str]


class HeadlineTexts(NamedTuple):
    """The comparisons of a split, and the cautions that hold for all of them."""

    verdicts: list[HeadlineText]
    cautions: list[str]


def headline_texts(summary: Summary, split: str) -> HeadlineTexts:
    """The comparisons of a split, those with the guided base first."""
    of_split = [entry for entry in summary["headline"] if entry["split"] == split]
    of_split.sort(
        key=lambda entry: (
            place_of(entry["ours"], entry["rival"]),
            entry["ours"] not in ("cca", "guided cca"),
            entry["rival"] != "guided base",
        )
    )
    passes = {arm["name"]: arm["forwards_per_image"] for arm in summary["arms"]}
    shared = shared_cautions([entry["cautions"] for entry in of_split])
    return HeadlineTexts(
        [
            HeadlineText(
                entry["standing"],
                BADGES[entry["standing"]],
                headline_sentence(entry, passes, name_of(summary)),
                [caution for caution in entry["cautions"] if caution not in shared],
            )
            for entry in of_split
        ],
        shared,
    )


def name_of(summary: Summary) -> str:
    """What the trained model is called; summaries of older versions do not say."""
    return summary.get("model_name", CCA)


def headline_sentence(entry: HeadlineEntry, passes: Mapping[str, int], name: str = CCA) -> str:
    """One comparison by the least favourable judge.

    Args:
        entry: of the summary.
        passes: forward passes per image of every arm.
        name: what the trained model is called.
    """
    metric, difference = METRICS[entry["metric"]], entry["difference"]
    compared = entry["compared"]
    ours, theirs = (arms_in_words(arms, name) for arms in (compared["arm"], compared["against"]))
    told = difference_in_words(difference, metric, entry["confidence"])
    if entry["standing"] == "level":
        most = max(abs(difference["low"]), abs(difference["high"]))
        found = f"No difference found between {ours} and {theirs} in {metric.label}"
        told = f"could be up to {most:.{metric.digits}f}; {told}"
    else:
        found = f"{ours} is {PREPOSITIONS[entry['standing']]} {theirs} in {metric.label}"
    return (
        f"{found[0].upper()}{found[1:]} ({told}), {_shared(entry)}, "
        f"{cost(passes[compared['arm'][0]], passes[compared['against'][0]])}."
    )


def _shared(entry: HeadlineEntry) -> str:
    if entry["num_judges"] == 1:
        return f"by the only judge, {entry['judge']}"
    shared = f"{entry['shared_by']} of {entry['num_judges']} judges"
    return f"by {shared} (least favourable: {entry['judge']})"


def no_headline(summary: Summary) -> str | None:
    """Why there is no verdict, if there is none."""
    if summary["headline"]:
        return None
    if not any(summary["verdicts"].values()):
        return (
            f"No verdict: the arms of {name_of(summary)} and of the base are not both in this run."
        )
    count = sum(judge["may_judge"] for judge in summary["judges"])
    if count:
        return "No verdict: the judges compared nothing in common."
    names = ", ".join(judge["name"] for judge in summary["judges"])
    return f"No verdict: none of the judges may judge ({names}). Their scores are only shown."


def headline_lines(summary: Summary) -> list[str]:
    """The comparisons in the terminal, with the cautions that the warnings above have not said."""
    if (reason := no_headline(summary)) is not None:
        return [reason]
    lines = []
    said = tuple(summary["warnings"])
    for split in summary["protocol"]["num_prompts"]:
        texts = headline_texts(summary, split)
        for text in texts.verdicts:
            lines.append(f"{prompts_in_words(split)}: {text.sentence}")
            lines += [f"  caution: {each}" for each in text.cautions if not _ends_one(each, said)]
        new = [each for each in texts.cautions if not _ends_one(each, said)]
        lines += [f"{prompts_in_words(split)}: caution: {caution}" for caution in new]
    return lines


def _ends_one(caution: str, warnings: Iterable[str]) -> bool:
    """Whether a warning, which opens with judge and split, says it."""
    return any(warning.endswith(f": {caution}") for warning in warnings)


def figures_of(examination: Examination) -> list[Figure]:
    """All figures in their order; a dash where no caption has an attribute."""
    # Margins are between neighbours, in the same order.
    margins = iter(examination["margins"].values())
    figures = []
    for name, label in ORDER.items():
        value = examination[name]
        margin = None if name == "real" or value is None else next(margins)
        figures.append(
            Figure(
                label,
                "–" if value is None else f"{value:z.1f}",  # z: no minus before a rounded zero
                "" if margin is None else f"{margin['value']:.1f} ± {margin['standard_error']:.1f}",
            )
        )
    return figures


def judge_lines(judges: Sequence[JudgeEntry]) -> list[str]:
    """One line for every judge and split: its examination, and whether it may judge."""
    lines = []
    for judge in judges:
        lines.append(f"judge {judge['name']}: {standing_in_words(judge)}")
        for split, examination in (judge["examination"] or {}).items():
            parts = [
                f"{figure.label} {figure.text}"
                + (f" (margin {figure.margin})" if figure.margin else "")
                for figure in figures_of(examination)
            ]
            lines.append(f"  {split}: {'; '.join(parts)}; R@5 {examination['r_at_5']:.2f}")
    return lines


def standing_in_words(judge: JudgeEntry) -> str:
    """Whether it may judge, and if not, why."""
    if not judge["may_judge"]:
        return f"may not judge: {'; '.join(judge['reasons'])}"
    if judge["examination"] is None:
        return "judges without an examination (eval.judge_r_at_5 is null)"
    source = f" in {judge['examined_in']}" if judge["examined_in"] is not None else ""
    return f"may judge (examined{source})"


def warning_lines(warnings: Iterable[str]) -> list[str]:
    """Sentences beside the verdict."""
    return [f"read with care: {sentence}" for sentence in warnings]
