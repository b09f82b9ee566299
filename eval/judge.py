"""One judge's view of a whole run: its features, scores, floors, examination and differences.

Every rank extracts features; the main rank turns them into numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from accelerate import PartialState

from mm_cca.config.metrics import METRICS, FeatureSource, is_published_clip
from mm_cca.config.schema import Recipe
from mm_cca.eval.examination import earlier_examinations, examine_split, refusals
from mm_cca.eval.features.extract import Extractors, Features, extract
from mm_cca.eval.features.image_sets import ImageSet, real_images_of, sampled_images, size_of
from mm_cca.eval.features.reconstructions import Reconstructor
from mm_cca.eval.features.references import save_statistics
from mm_cca.eval.features.scorer import Scorer
from mm_cca.eval.ground_truth import SplitTruth, truths_of
from mm_cca.eval.per_prompt import numbers_of
from mm_cca.eval.protocol import judge_protocol
from mm_cca.eval.score_warnings import warnings_of
from mm_cca.eval.scores import measure, scores_of
from mm_cca.eval.summary_types import (
    Examinations,
    ImageNumbers,
    JudgeEntry,
    JudgeProtocol,
    Scores,
    SplitScores,
    VerdictEntry,
)
from mm_cca.eval.verdicts import verdicts_of
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.prompts import Prompt, has_real_images

FLOORS = ("real", "reconstruction")

FeaturesOfArms = dict[str, dict[str, Features]]
"""By arm or floor, and split."""


@dataclass(frozen=True)
class RunToJudge:
    """What every judge sees.

    Attributes:
        recipe: with all metrics that are computed, those against reconstructions among them.
        run: its folder.
        arms: to score.
        prompts: of all splits.
        captions: all distinct ones, which retrieval ranks.
        reconstructor: of real images.
    """

    recipe: Recipe
    run: RunFolder
    arms: list[Arm]
    prompts: list[Prompt]
    captions: list[str]
    reconstructor: Reconstructor

    @property
    def floors(self) -> tuple[str, ...]:
        """Floors need real images, and the base's tokenizer."""
        has_base = "base" in self.recipe.run.sources
        return FLOORS if has_base and has_real_images(self.recipe) else ()


@dataclass(frozen=True)
class Judgement:
    """Everything that one judge says.

    Attributes:
        entry: for the summary.
        protocol: how it reads images and captions.
        truths: by split.
        scores: by arm or floor, and split.
        inception: the same of Inception's metrics, which only the first judge's pass computes.
        verdicts: differences between arms, whether or not it may judge.
        warnings: sentences.
        numbers: of every image, by arm and split.
    """

    entry: JudgeEntry
    protocol: JudgeProtocol
    truths: dict[str, SplitTruth]
    scores: dict[str, SplitScores]
    inception: dict[str, SplitScores]
    verdicts: list[VerdictEntry]
    warnings: list[str]
    numbers: dict[str, dict[str, ImageNumbers]]


def judgement_of(context: RunToJudge, extractors: Extractors, number: int) -> Judgement | None:
    """Extract one judge's features, and score all arms with them.

    Args:
        context: the run.
        extractors: the judge, and Inception for the first one if a metric needs it.
        number: of the judge, from 1.

    Returns:
        None on all ranks but the main one.

    Raises:
        UserError: an image or a reference that can't be read, too few of them.
    """
    recipe = _recipe_for(context.recipe, extractors)
    context = replace(context, recipe=recipe)
    truths = truths_of(
        recipe,
        context.run,
        extractors,
        context.prompts,
        context.captions,
        context.reconstructor,
    )
    features: FeaturesOfArms = {}
    for name in (*context.floors, *(arm.name for arm in context.arms)):
        sets = _image_sets(context, name, truths)
        features[name] = {split: extract(images, extractors) for split, images in sets.items()}
    if not PartialState().is_main_process:
        return None
    return _judgement(context, extractors, number, truths, features)


def _judgement(
    context: RunToJudge,
    extractors: Extractors,
    number: int,
    truths: dict[str, SplitTruth],
    features: FeaturesOfArms,
) -> Judgement:
    recipe, scorer = context.recipe, extractors.scorer
    measured = {
        name: {split: measure(each, truths[split]) for split, each in by_split.items()}
        for name, by_split in features.items()
    }
    scores = {
        name: {split: scores_of(recipe, m, truths[split]) for split, m in by_split.items()}
        for name, by_split in measured.items()
    }
    for split, truth in truths.items():
        if truth.reference is not None:
            folder = context.run.eval / "reference"
            save_statistics(recipe, truth.reference, extractors, folder, split, number)
    return Judgement(
        entry=_entry(context, scorer, truths, features),
        protocol=judge_protocol(scorer, truths),
        truths=truths,
        scores=_of_source(scores, inception=False),
        inception=_of_source(scores, inception=True),
        verdicts=verdicts_of(recipe, context.arms, measured, truths),
        warnings=warnings_of(recipe, extractors, truths, features[context.arms[0].name]),
        numbers={
            arm.name: {split: numbers_of(m) for split, m in measured[arm.name].items()}
            for arm in context.arms
        },
    )


def _recipe_for(recipe: Recipe, extractors: Extractors) -> Recipe:
    """The recipe with the metrics that these networks give."""
    scorer = extractors.scorer.name
    name, _, pretrained = scorer.partition(" ")
    left_out = set()
    if extractors.inception is None:
        left_out |= {n for n, m in METRICS.items() if m.source is FeatureSource.INCEPTION}
    if not is_published_clip(name, pretrained or None):
        left_out.add("clip_score")
    metrics = [name for name in recipe.eval.metrics if name not in left_out]
    return replace(recipe, eval=replace(recipe.eval, metrics=metrics))


def _of_source(scores: Mapping[str, SplitScores], *, inception: bool) -> dict[str, SplitScores]:
    def chosen(of_split: Scores) -> Scores:
        return {
            name: score
            for name, score in of_split.items()
            if (name in METRICS and METRICS[name].source is FeatureSource.INCEPTION) == inception
        }

    return {
        name: {split: chosen(of_split) for split, of_split in by_split.items()}
        for name, by_split in scores.items()
    }


def _image_sets(
    context: RunToJudge, name: str, truths: Mapping[str, SplitTruth]
) -> dict[str, ImageSet]:
    """An arm's images, or a floor's: real images of the prompts, or their reconstructions."""
    recipe, run = context.recipe, context.run
    prompts_by_split = {split: truth.prompts for split, truth in truths.items()}
    if name not in FLOORS:
        return {
            split: sampled_images(recipe, run, name, prompts)
            for split, prompts in prompts_by_split.items()
        }
    rows = {split: [p.row for p in prompts] for split, prompts in prompts_by_split.items()}
    if name == "real":
        size = size_of(recipe)
        return {
            split: real_images_of(recipe, run, split, each, size) for split, each in rows.items()
        }
    return {split: context.reconstructor.images(split, each) for split, each in rows.items()}


def _entry(
    context: RunToJudge,
    scorer: Scorer,
    truths: Mapping[str, SplitTruth],
    features: FeaturesOfArms,
) -> JudgeEntry:
    recipe = context.recipe
    figures, source = _examination(context, scorer, truths, features)
    least = recipe.eval.judge_r_at_5
    if least is None:
        reasons = []
    elif figures is None:
        reasons = [_never_examined(context, scorer.name)]
    else:
        reasons = refusals(figures, least)
    return {
        "name": scorer.name,
        "sha256": scorer.sha256,
        "may_judge": not reasons,
        "reasons": reasons,
        "examination": figures,
        "examined_in": source,
    }


def _examination(
    context: RunToJudge,
    scorer: Scorer,
    truths: Mapping[str, SplitTruth],
    features: FeaturesOfArms,
) -> tuple[Examinations | None, str | None]:
    """The figures, and the file of an earlier run that they come from where this run can't."""
    if context.floors and len(context.captions) > 1:
        figures = {
            split: examine_split(
                context.recipe,
                scorer,
                truth,
                features["real"][split].scorer,
                features["reconstruction"][split].scorer,
            )
            for split, truth in truths.items()
        }
        return figures, None
    path = context.recipe.eval.examined
    return earlier_examinations(path).get(scorer.sha256), path


def _never_examined(context: RunToJudge, name: str) -> str:
    if not has_real_images(context.recipe):
        why = "prompts from a file have no real images to examine it with"
    elif not context.floors:
        why = "run.sources lacks the base, whose tokenizer makes the reconstructions"
    else:
        why = "the data have only one caption"
    return (
        f"it was never examined: {why}. Set eval.examined to eval/summary.json of a run that "
        f"examined {name} on captions of the data"
        + (
            ""
            if context.floors or not has_real_images(context.recipe)
            else ", or add base to run.sources"
        )
        + "."
    )
