"""Two scored runs prompt by prompt: paired differences of what their protocols let compare."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mm_cca.config.metrics import METRICS
from mm_cca.errors import UserError
from mm_cca.eval.comparability import consequence_of, not_comparable
from mm_cca.eval.compare import differences
from mm_cca.eval.comparison_types import (
    ArmPair,
    JudgedPair,
    ProtocolDifference,
    RunComparison,
    ScoreDifference,
    SharedPrompt,
    SplitComparison,
)
from mm_cca.eval.contestants import ALL
from mm_cca.eval.differences import Fold, MeanScore
from mm_cca.eval.features.extract import Features
from mm_cca.eval.metrics.intervals import CONFIDENCE
from mm_cca.eval.per_prompt import PER_PROMPT, read_per_prompt
from mm_cca.eval.scores import PER_IMAGE, ArmScores
from mm_cca.eval.set_differences import better_of, set_difference
from mm_cca.eval.summary_files import SUMMARY, read_summary
from mm_cca.eval.summary_types import ImageNumbers, SplitNumbers, Summary, judged

FEWEST_PROMPTS = 3
"""Of fewer prompts no interval can be told."""
NO_FEATURES = Features(torch.empty(0, 0), None, None, "")


@dataclass(frozen=True)
class ScoredRun:
    """A run with its scores and its numbers per prompt."""

    name: str
    summary: Summary
    numbers: dict[str, SplitNumbers]

    @classmethod
    def read(cls, folder: Path, name: str) -> "ScoredRun":
        """Raises UserError: not scored yet, or its files are damaged."""
        summary = read_summary(folder / SUMMARY)
        return cls(name, summary, read_per_prompt(folder / PER_PROMPT))

    @property
    def arms(self) -> list[str]:
        return [arm["name"] for arm in self.summary["arms"]]


def compare_runs(
    first: ScoredRun, second: ScoredRun, arms: tuple[str, str] | None = None
) -> RunComparison:
    """Every pair of arms on the prompts that both runs drew, by the judges that both have.

    Args:
        first: A.
        second: B; a difference is B minus A.
        arms: one of A and one of B; None: every arm that both have.

    Raises:
        UserError: no such arm, or no judge, no prompt or no arm in common.
    """
    runs = (first, second)
    protocols = first.summary["protocol"], second.summary["protocol"]
    differing = differences(*protocols)
    pairs = _pairs(runs, arms)
    judges = _judges(runs, differing)
    splits = [
        split
        for name in first.numbers
        if name in second.numbers
        and (split := _split(name, runs, pairs, judges, differing)).prompts
    ]
    if not splits:
        raise UserError(
            f"{first.name} and {second.name} have no prompt in common, so nothing can be paired. "
            "Sample both with the same data or the same sample.prompts."
        )
    return RunComparison(
        (first.name, second.name),
        splits,
        [
            ProtocolDifference(field, values, consequence_of(field))
            for field, values in differing.items()
        ],
    )


def _pairs(runs: tuple[ScoredRun, ScoredRun], arms: tuple[str, str] | None) -> list[ArmPair]:
    if arms is not None:
        for run, arm in zip(runs, arms, strict=True):
            if arm not in run.arms:
                raise UserError(
                    f"--arms: {run.name} has no arm {arm!r}; it has {', '.join(run.arms)}."
                )
        return [ArmPair(*arms)]
    common = [name for name in runs[0].arms if name in runs[1].arms]
    if not common:
        raise UserError(
            f"{runs[0].name} has the arms {', '.join(runs[0].arms)}, {runs[1].name} has "
            f"{', '.join(runs[1].arms)}: none in common. Name one of each with --arms A B."
        )
    # The trained model comes first: it is what two runs differ in.
    return [ArmPair(name, name) for name in sorted(common, key=lambda name: name != "cca")]


def _judges(runs: tuple[ScoredRun, ScoredRun], differing: Collection[str]) -> list[tuple[str, str]]:
    """The names in A and in B of the judges with the same weights that read images alike."""
    ours, theirs = (run.summary["protocol"]["judges"] for run in runs)
    found = [
        (judge["name"], theirs[key]["name"])
        for key, judge in ours.items()
        if key in theirs
        # How many captions were cut belongs to the prompts, not to how the judge reads.
        and not {f"judges.{key}.resize", f"judges.{key}.context_length"} & set(differing)
    ]
    if not found:
        told = [", ".join(judge["name"] for judge in each.values()) for each in (ours, theirs)]
        raise UserError(
            f"{runs[0].name} is judged by {told[0]}, {runs[1].name} by {told[1]}: no judge in "
            "common with the same weights and resizing, so no score can be compared. Score one of "
            "them again with eval.scorer as in the other."
        )
    return found


def _split(
    split: str,
    runs: tuple[ScoredRun, ScoredRun],
    pairs: Sequence[ArmPair],
    judges: Sequence[tuple[str, str]],
    differing: Collection[str],
) -> SplitComparison:
    each = min(run.summary["protocol"]["images_per_prompt"] for run in runs)
    starts = [_first_images(run, split) for run in runs]
    common = [key for key in starts[0] if key in starts[1]]
    places = [[of_run[key] for key in common] for of_run in starts]
    alignments: list[dict[str, dict[str, tuple[float, float]]]] = [{} for _ in common]
    found: list[JudgedPair] = []
    for names in judges if common else []:
        for pair in pairs:
            measured = {
                letter: _measured(run.numbers[split]["judges"][judge][arm], at, each)
                for letter, run, judge, arm, at in zip("AB", runs, names, pair, places, strict=True)
            }
            paired = _paired_scores(measured, _metrics(split, runs, names, differing), each)
            sets = _set_scores(split, runs, names, pair, differing)
            found.append(JudgedPair(pair, names[0], paired + sets))
            means = [100 * scores.cosine.reshape(-1, each).mean(1) for scores in measured.values()]
            for of_prompt, own, other in zip(alignments, *means, strict=True):
                of_prompt.setdefault(names[0], {})[pair.name] = (float(own), float(other))
    ours, theirs = (run.numbers[split] for run in runs)
    prompts = [
        SharedPrompt(ours["captions"][i], (ours["indices"][i], theirs["indices"][k]), of_prompt)
        for i, k, of_prompt in zip(*places, alignments, strict=True)
    ]
    return SplitComparison(split, (len(starts[0]), len(starts[1])), prompts, found)


def _first_images(run: ScoredRun, split: str) -> dict[tuple[str, int], int]:
    """The place of every prompt's first image, by caption and how often it came before.

    Images of one prompt are adjacent, as many for every prompt.
    """
    seen: Counter[str] = Counter()
    places: dict[tuple[str, int], int] = {}
    captions = run.numbers[split]["captions"]
    for place in range(0, len(captions), run.summary["protocol"]["images_per_prompt"]):
        caption = captions[place]
        places[caption, seen[caption]] = place
        seen[caption] += 1
    return places


def _measured(numbers: ImageNumbers, firsts: Sequence[int], each: int) -> ArmScores:
    """An arm on the shared prompts: the first ``each`` images of every one."""
    places = (np.array(firsts)[:, None] + np.arange(each)).reshape(-1)
    cosine = np.array(numbers["alignment"])[places] / 100
    return ArmScores(cosine, np.array(numbers["rank"])[places], {}, NO_FEATURES)


def _metrics(
    split: str,
    runs: tuple[ScoredRun, ScoredRun],
    judges: tuple[str, str],
    differing: Collection[str],
) -> list[str]:
    """The scores that both have, mean the same, and can be compared."""
    views = [
        judged(run.summary["arms"], judge)[0]["scores"][split]
        for run, judge in zip(runs, judges, strict=True)
    ]
    refused = not_comparable(differing, split)
    return [name for name in METRICS if all(name in v for v in views) and name not in refused]


def _paired_scores(
    measured: Mapping[str, ArmScores], metrics: Collection[str], each: int
) -> list[ScoreDifference]:
    count = len(measured["A"].cosine) // each
    groups, parts = np.repeat(np.arange(count), each), {ALL: np.arange(count)}
    scores = []
    for name in metrics:
        if name not in PER_IMAGE:
            continue
        score = MeanScore(PER_IMAGE[name], measured, groups, parts)
        values = score.value("A", ALL), score.value("B", ALL)
        difference, lacking = None, f"which needs {FEWEST_PROMPTS} prompts"
        if count >= FEWEST_PROMPTS:
            difference = score.difference(
                [Fold("B", "A", ALL)], confidence=CONFIDENCE, widening=1.0
            )
            lacking = ""
        better = None if difference is None else better_of(name, difference)
        scores.append(ScoreDifference(name, values, difference, better, lacking=lacking))
    return scores


def _set_scores(
    split: str,
    runs: tuple[ScoredRun, ScoredRun],
    judges: tuple[str, str],
    pair: ArmPair,
    differing: Collection[str],
) -> list[ScoreDifference]:
    """Numbers of whole sets, as each run has them; with what both keep, an interval."""
    ours, theirs = (
        {arm["name"]: arm for arm in judged(run.summary["arms"], judge)}[name]["scores"][split]
        for run, judge, name in zip(runs, judges, pair, strict=True)
    )
    # The groups of prompts that are left out in turn are drawn by the seed of sampling.
    same_groups = "seeds.sampling" not in differing
    return [
        set_difference(name, ours[name], theirs[name], same_groups=same_groups)
        for name in _metrics(split, runs, judges, differing)
        if name not in PER_IMAGE
    ]
