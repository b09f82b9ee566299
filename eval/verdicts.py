"""Is guidance-free CCA as good as the best guided arm? Paired differences with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mm_cca.config.metrics import LEAD, METRICS, Verdict, in_sentence, reconstruction_name
from mm_cca.config.schema import Recipe
from mm_cca.eval.contestants import (
    ALL,
    CROSS_FIT_WIDENING,
    Contestant,
    best_of,
    candidates_of,
    folds_of,
    is_choice,
    parts_of,
    rivals_of,
)
from mm_cca.eval.differences import (
    Fold,
    FrechetScore,
    KernelScore,
    MeanScore,
    Parts,
    ScoreOfArms,
)
from mm_cca.eval.ground_truth import SplitTruth
from mm_cca.eval.metrics.intervals import CONFIDENCE
from mm_cca.eval.score_warnings import (
    about_choice,
    about_few_prompts,
    about_resamples,
    over_satisfied,
    per_dimension,
)
from mm_cca.eval.scores import PER_IMAGE, ArmScores
from mm_cca.eval.summary_types import Compared, Interval, VerdictEntry, with_differences
from mm_cca.runs.folder import terms_of_training
from mm_cca.sampling.arms import Arm

MeasuredArms = Mapping[str, Mapping[str, ArmScores]]
"""By arm and split."""
KERNELS = ("kernel_distance", reconstruction_name("kernel_distance"), "kid")
"""Differences of these are over all pairs."""
FEWEST_PROMPTS = 3
"""Of fewer prompts no interval can be told."""


@dataclass(frozen=True)
class _Split:
    """The scores of a split that get a verdict.

    Attributes:
        name: of the split.
        scores: by metric.
        parts: of the prompts.
        confidence: of every interval, so that those of a sentence hold together.
        cautions: that every comparison shares.
        alignments: mean alignment x100 of every arm and floor.
    """

    name: str
    scores: dict[str, ScoreOfArms]
    parts: Parts
    confidence: float
    cautions: list[str]
    alignments: dict[str, float]


def verdicts_of(
    recipe: Recipe,
    arms: Sequence[Arm],
    measured: MeasuredArms,
    truths: Mapping[str, SplitTruth],
) -> list[VerdictEntry]:
    """CCA against base, guided base, guided control and control, split by split, by one judge.

    Where there are dials, the same for CCA at another dial; after plain fine-tuning for the guided
    model too. Who stands for each kind of arm:
    ``contestants.CHOICE_RULE``. A difference is CCA's score minus the baseline's; its interval is
    over prompts. Compared are the metrics of ``eval.metrics`` whose ``verdict`` says so. Intervals
    are wide enough to hold together over the scores of one sentence (Bonferroni).

    Args:
        recipe: the run's.
        arms: that were sampled.
        measured: arms, and floors as well if there are any, by one judge.
        truths: by split; one of fewer than three prompts gets no verdict.
    """
    if not {"base", "cca"} <= measured.keys():
        return []
    entries = []
    for split, truth in truths.items():
        if truth.groups.max() + 1 < FEWEST_PROMPTS:
            continue
        prepared = _prepare(recipe, split, measured, truth)
        entries += [
            _entry(prepared, ours, theirs)
            for ours in candidates_of(arms, finetuned=terms_of_training(recipe).is_finetuning)
            for theirs in rivals_of(arms)
        ]
    return entries


def _prepare(recipe: Recipe, split: str, measured: MeasuredArms, truth: SplitTruth) -> _Split:
    num_prompts = int(truth.groups.max()) + 1
    parts = parts_of(num_prompts, recipe.sample.seed)
    of_split = {name: by_split[split] for name, by_split in measured.items() if split in by_split}
    scores: dict[str, ScoreOfArms] = {}
    cautions = about_few_prompts(num_prompts)
    for name, metric in METRICS.items():
        if metric.verdict is Verdict.NONE or name not in recipe.eval.metrics:
            continue
        if name in PER_IMAGE:
            scores[name] = MeanScore(PER_IMAGE[name], of_split, truth.groups, parts)
            continue
        reference = truth.compared_with(metric)
        if reference is None:
            continue
        if name in KERNELS:
            scores[name] = KernelScore(metric.source, of_split, truth.groups, parts, reference)
            continue
        wanted = recipe.eval.bootstrap_samples
        score = FrechetScore(
            metric.source,
            of_split,
            truth.groups,
            parts,
            reference,
            resamples=wanted,
            seed=recipe.sample.seed,
        )
        scores[name] = score
        size = of_split["cca"].features.of(metric.source).shape[1]
        cautions += per_dimension(metric.label, len(truth.groups), size)
        cautions += about_resamples(metric.label, score.resamples, wanted)
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(in_sentence(scores)))
    alignments = {name: 100 * float(arm.cosine.mean()) for name, arm in of_split.items()}
    return _Split(split, scores, parts, confidence, cautions, alignments)


def _entry(split: _Split, ours: Contestant, theirs: Contestant) -> VerdictEntry:
    differences: dict[str, Interval] = {}
    compared: dict[str, Compared] = {}
    folds: list[Fold] = []
    halves = len(split.parts) > 1
    for name, score in split.scores.items():
        higher = METRICS[name].higher_is_better
        found = folds_of(ours, theirs, score, split.parts, higher_is_better=higher)
        differences[name] = score.difference(
            found,
            confidence=split.confidence,
            widening=CROSS_FIT_WIDENING if is_choice(ours, theirs) and halves else 1.0,
        )
        compared[name] = {
            "arm": list(dict.fromkeys(fold.ours for fold in found)),
            "against": list(dict.fromkeys(fold.theirs for fold in found)),
        }
        folds += found
    named = {name for fold in folds for name in (fold.ours, fold.theirs)}
    cautions = [*split.cautions]
    if is_choice(ours, theirs) and not halves:
        cautions += about_choice(len(split.parts[ALL]))
    cautions += over_satisfied(
        {name: {LEAD: {"value": split.alignments[name]}} for name in sorted(named)},
        {name: {LEAD: {"value": value}} for name, value in split.alignments.items()},
    )
    entry: VerdictEntry = {
        "split": split.name,
        "ours": ours.kind,
        "rival": theirs.kind,
        "arm": _best(split, ours),
        "against": _best(split, theirs),
        "confidence": split.confidence,
        "compared": compared,
        "cautions": cautions,
    }
    return with_differences(entry, differences)


def _best(split: _Split, contestant: Contestant) -> str:
    """The member with the highest alignment on all prompts, which gives the entry its name."""
    return best_of(contestant, split.scores[LEAD], ALL, higher_is_better=True)
