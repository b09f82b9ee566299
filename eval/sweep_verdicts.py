"""Every point of a sweep against the best guided base, its seeds together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mm_cca.config.metrics import LEAD
from mm_cca.eval.compare_runs import ScoredRun, compare_runs
from mm_cca.eval.metrics.intervals import CONFIDENCE
from mm_cca.eval.summary_types import (
    ImageNumbers,
    JudgedArm,
    SplitNumbers,
    Standing,
    SweepVerdict,
    judged,
)

CCA = "cca"
STANDINGS: dict[str | None, Standing] = {"A": "behind", "B": "ahead", None: "level"}
"""By the better one of base and point."""


def sweep_verdicts(
    base: ScoredRun, points: Mapping[str, Sequence[ScoredRun]]
) -> list[SweepVerdict]:
    """Alignment of a point without guidance minus that of the best guided base, prompt by prompt.

    Seeds of a point are pooled: an image counts as the mean over the seeds. The guided arm was
    chosen on the same prompts, which favours the base.

    Args:
        base: the run of the base's arms.
        points: name -> the runs of its seeds.

    Returns:
        one entry per point, judge and split, where the base has guided arms.
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
                if score.metric == LEAD and score.difference is not None:
                    yield {
                        "point": name,
                        "seeds": len(seeds),
                        "judge": judge,
                        "split": split,
                        "rival": rival,
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
    """One run whose alignments are means over the seeds; ranks are those of the first one."""
    first = seeds[0]
    numbers = {split: _pooled_split([s.numbers[split] for s in seeds]) for split in first.numbers}
    return replace(first, numbers=numbers)


def _pooled_split(seeds: Sequence[SplitNumbers]) -> SplitNumbers:
    def mean(judge: str, arm: str) -> ImageNumbers:
        each = [seed["judges"][judge][arm] for seed in seeds]
        alignment = np.mean([numbers["alignment"] for numbers in each], axis=0)
        return {"alignment": alignment.tolist(), "rank": each[0]["rank"]}

    judges = {
        judge: {arm: mean(judge, arm) for arm in arms} for judge, arms in seeds[0]["judges"].items()
    }
    return {**seeds[0], "judges": judges}
