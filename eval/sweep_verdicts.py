"""Every point of a sweep against the best guided base, its seeds together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from mm_cca.config.metrics import LEAD, SWEEP_VERDICTS
from mm_cca.eval.compare_runs import ScoredRun, compare_runs
from mm_cca.eval.metrics.intervals import CONFIDENCE
from mm_cca.eval.summary_types import (
    ArmEntry,
    ImageNumbers,
    JudgedArm,
    Score,
    SplitNumbers,
    SplitScores,
    Standing,
    Summary,
    SweepVerdict,
    judged,
)

CCA = "cca"
STANDINGS: dict[str | None, Standing] = {"A": "behind", "B": "ahead", None: "level"}
"""By the better one of base and point."""


def sweep_verdicts(
    base: ScoredRun, points: Mapping[str, Sequence[ScoredRun]]
) -> list[SweepVerdict]:
    """Points without guidance minus the best guided base in ``SWEEP_VERDICTS``, prompt by prompt.

    Seeds of a point are pooled: an image counts as the mean over the seeds. The guided arm was
    chosen on the same prompts, which favours the base.

    Args:
        base: the run of the base's arms.
        points: name -> the runs of its seeds.

    Returns:
        one entry per point, judge, split and metric whose difference has an interval, where the
        base has guided arms.
    """
    return [
        verdict
        for name, seeds in points.items()
        for judge in (entry["name"] for entry in base.summary["judges"])
        for split in base.numbers
        for verdict in _verdicts(name, seeds, base, judge, split)
    ]


def _verdicts(
    name: str, seeds: Sequence[ScoredRun], base: ScoredRun, judge: str, split: str
) -> Iterator[SweepVerdict]:
    rival = _best_guided(judged(base.summary["arms"], judge), split)
    if rival is None:
        return
    for part in compare_runs(base, pooled(seeds), (rival, CCA)).splits:
        for pair in part.judged:
            if (part.split, pair.judge) != (split, judge):
                continue
            for score in pair.scores:
                if score.metric in SWEEP_VERDICTS and score.difference is not None:
                    yield {
                        "point": name,
                        "seeds": len(seeds),
                        "judge": judge,
                        "split": split,
                        "rival": rival,
                        "metric": score.metric,
                        "difference": score.difference,
                        "confidence": CONFIDENCE,
                        "standing": STANDINGS[score.better],
                    }


def _best_guided(arms: Sequence[JudgedArm], split: str) -> str | None:
    guided = [arm for arm in arms if arm["source"] == "base" and arm["guidance_scale"] != 1.0]
    if not guided:
        return None
    return max(guided, key=lambda arm: arm["scores"][split][LEAD]["value"])["name"]


def pooled(seeds: Sequence[ScoredRun]) -> ScoredRun:
    """One run with means over the seeds of alignments and of the scores of whole sets; all other
    numbers are those of the first one."""
    first = seeds[0]
    numbers = {split: _pooled_split([s.numbers[split] for s in seeds]) for split in first.numbers}
    arms = [
        {**arm, "scores": _pooled_scores([_arm(seed, arm["name"])["scores"] for seed in seeds])}
        for arm in first.summary["arms"]
    ]
    summary: Summary = {**first.summary, "arms": cast(list[ArmEntry], arms)}
    return replace(first, summary=summary, numbers=numbers)


def _arm(run: ScoredRun, name: str) -> ArmEntry:
    return next(arm for arm in run.summary["arms"] if arm["name"] == name)


def _pooled_scores(seeds: Sequence[dict[str, SplitScores]]) -> dict[str, SplitScores]:
    return {
        judge: {
            split: {
                name: _pooled_score([seed[judge][split][name] for seed in seeds]) for name in scores
            }
            for split, scores in of_judge.items()
        }
        for judge, of_judge in seeds[0].items()
    }


def _pooled_score(seeds: Sequence[Score]) -> Score:
    score: Score = {"value": float(np.mean([seed["value"] for seed in seeds]))}
    left_out = [seed.get("left_out", []) for seed in seeds]
    if all(left_out) and len({len(each) for each in left_out}) == 1:
        score["left_out"] = np.mean(left_out, axis=0).tolist()
    return score


def _pooled_split(seeds: Sequence[SplitNumbers]) -> SplitNumbers:
    def mean(judge: str, arm: str) -> ImageNumbers:
        each = [seed["judges"][judge][arm] for seed in seeds]
        alignment = np.mean([numbers["alignment"] for numbers in each], axis=0)
        return {"alignment": alignment.tolist(), "rank": each[0]["rank"]}

    judges = {
        judge: {arm: mean(judge, arm) for arm in arms} for judge, arms in seeds[0]["judges"].items()
    }
    return {**seeds[0], "judges": judges}
