"""Score every arm on the same prompts by every judge, and record the protocol.

Every rank extracts features, judge by judge, so that only one judge is in memory at a time; the
main rank turns them into scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import release_memory

from mm_cca.config.keys import EVAL
from mm_cca.config.metrics import METRICS, FeatureSource, with_reconstructions
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import settings_of
from mm_cca.errors import UserError
from mm_cca.eval.check_samples import refuse_bad_samples
from mm_cca.eval.examination import earlier_examinations, refuse_unexamined
from mm_cca.eval.features.extract import Extractors
from mm_cca.eval.features.inception import Inception, load_inception
from mm_cca.eval.features.reconstructions import Reconstructor
from mm_cca.eval.features.references import files_digest
from mm_cca.eval.features.scorer import Scorer, load_scorer
from mm_cca.eval.ground_truth import captions_of
from mm_cca.eval.judge import Judgement, RunToJudge, judgement_of
from mm_cca.eval.language import measure_text, texts_of
from mm_cca.eval.panel import headline_of
from mm_cca.eval.per_prompt import PER_PROMPT, write_per_prompt
from mm_cca.eval.protocol import protocol_of
from mm_cca.eval.score_warnings import about_engines
from mm_cca.eval.summary_files import SUMMARY
from mm_cca.eval.summary_types import INCEPTION, ArmEntry, SplitScores, Summary
from mm_cca.runs.files import write_json
from mm_cca.runs.folder import RunFolder, terms_of_training
from mm_cca.runs.places import digests_of
from mm_cca.runs.stage import Stage, recorded
from mm_cca.sampling.arms import Arm, arms_of
from mm_cca.sampling.manifest import EngineFacts, read_manifest
from mm_cca.sampling.prompts import prompts_of, refuse_few_prompts


def evaluate_arms(recipe: Recipe, run: RunFolder) -> bool:
    """Write ``eval/ARM.json``, ``eval/per_prompt.json`` and ``eval/summary.json``.

    Returns:
        Whether anything was scored; not where all was there already.

    Raises:
        UserError: an arm is not fully sampled or lacks images, or a judge, an extractor or a
            reference can't be loaded, or a judge was not examined where ``eval.examined`` says.
    """
    state = PartialState()
    arms = arms_of(recipe)
    stage = eval_stage(recipe, run, arms)
    done = stage.is_done()
    state.wait_for_everyone()  # before the main rank writes what the others have just read
    if done:
        return False
    texts = None if recipe.eval.text_nll is None else texts_of(recipe)
    prompts = prompts_of(recipe, run)
    refuse_few_prompts(recipe, prompts)
    refuse_bad_samples(run, arms, prompts)
    _refuse_bad_judges(recipe)
    inception = _inception(recipe)
    captions = captions_of(recipe, run, prompts)
    # A single judge stays loaded; several were loaded to be compared.
    only = _scorer(recipe, recipe.eval.scorer[0]) if len(recipe.eval.scorer) == 1 else None
    if state.is_main_process:  # all checks have passed
        run.begin(stage, recipe)
    scored = _with_all_metrics(recipe)
    context = RunToJudge(scored, run, arms, prompts, captions, Reconstructor(recipe, run))
    judgements = []
    for number, name in enumerate(recipe.eval.scorer, 1):
        # The first judge's pass extracts Inception's features, too: they have no judge.
        scorer = _scorer(recipe, name) if only is None else only
        extractors = Extractors(scorer, inception if number == 1 else None)
        judgements.append(judgement_of(context, extractors, number))
        del extractors, scorer
        release_memory()
    context.reconstructor.release()
    said = [judgement for judgement in judgements if judgement is not None]
    if state.is_main_process:
        _write(context, said, inception, texts)
        names = (SUMMARY, PER_PROMPT)
        digests = digests_of(run.eval / name for name in names)
        stage.finish(files=dict(zip(names, digests, strict=True)))
    state.wait_for_everyone()
    return True


def eval_stage(
    recipe: Recipe, run: RunFolder, arms: list[Arm], planned: Mapping[Arm, Stage] | None = None
) -> Stage:
    """The stage of the scores.

    Args:
        recipe: a validated recipe.
        run: its folder.
        arms: of the recipe.
        planned: the stages of arms that are sampled before.

    Raises:
        UserError: an arm is not sampled yet.
    """
    settings = _settings(recipe, run, arms, planned or {})
    return Stage(run.eval, settings, results=(SUMMARY,))


def refuse_unloadable(recipe: Recipe) -> None:
    """Load every judge and extractor once, before hours of work for them.

    Raises:
        UserError: one can't be loaded or reached, or lacks a package.
    """
    _refuse_bad_judges(recipe)
    if len(recipe.eval.scorer) == 1:
        _scorer(recipe, recipe.eval.scorer[0])
    _inception(recipe)
    release_memory()


def _write(
    context: RunToJudge,
    judgements: Sequence[Judgement],
    inception: Inception | None,
    texts: list[str] | None,
) -> None:
    recipe, run, arms = context.recipe, context.run, context.arms
    by_judge = {judgement.entry["name"]: judgement for judgement in judgements}
    sampled_with = read_manifest(run.samples / arms[0].name)[0].get("sampling", {})
    truths = judgements[0].truths
    entries = [_arm_entry(run, arm, _scores_of(arm.name, judgements)) for arm in arms]
    judging = {name: j.verdicts for name, j in by_judge.items() if j.entry["may_judge"]}
    summary: Summary = {
        "judges": [judgement.entry for judgement in judgements],
        "headline": headline_of(judging),
        "arms": entries,
        "floors": {name: _scores_of(name, judgements) for name in context.floors},
        "verdicts": {name: judgement.verdicts for name, judgement in by_judge.items()},
        "warnings": [*_warnings(recipe, by_judge), *about_engines(entries)],
        "model_name": terms_of_training(recipe).model_name,
        "protocol": protocol_of(
            recipe,
            {judgement.entry["sha256"]: judgement.protocol for judgement in judgements},
            inception,
            truths,
            context.captions,
            sampled_with,
            entries,
        ),
    }
    if texts is not None:
        sources = list(dict.fromkeys(arm.source for arm in arms))
        summary["text_nll"] = measure_text(recipe, run, sources, texts)
    for entry in summary["arms"]:
        write_json(run.eval / f"{entry['name']}.json", {**entry, "protocol": summary["protocol"]})
    write_per_prompt(
        run.eval / PER_PROMPT,
        {split: truth.prompts for split, truth in truths.items()},
        {name: judgement.numbers for name, judgement in by_judge.items()},
    )
    write_json(run.eval / SUMMARY, summary)


def _scores_of(name: str, judgements: Sequence[Judgement]) -> dict[str, SplitScores]:
    """The scores of an arm or a floor by judge, then those of Inception if there are any."""
    scores = {judgement.entry["name"]: judgement.scores[name] for judgement in judgements}
    inception = judgements[0].inception[name]
    return scores | ({INCEPTION: inception} if any(inception.values()) else {})


def _warnings(recipe: Recipe, by_judge: Mapping[str, Judgement]) -> list[str]:
    """All judges' sentences, each with the judge's name where not all of several say it."""
    everything = dict.fromkeys(w for each in by_judge.values() for w in each.warnings)
    warnings = []
    for sentence in everything:
        saying = [name for name, each in by_judge.items() if sentence in each.warnings]
        is_general = len(saying) == len(by_judge)
        warnings.append(sentence if is_general else f"{', '.join(saying)}: {sentence}")
    if recipe.eval.judge_r_at_5 is None:
        warnings.append(
            "eval.judge_r_at_5 is null, so every judge may judge, whatever its examination says."
        )
    return warnings


def _with_all_metrics(recipe: Recipe) -> Recipe:
    """The recipe with the metrics against reconstructions, if ``eval.reference`` asks for them."""
    if not recipe.eval.has_reconstruction_reference:
        return recipe
    metrics = with_reconstructions(recipe.eval.metrics)
    return replace(recipe, eval=replace(recipe.eval, metrics=metrics))


def _settings(
    recipe: Recipe, run: RunFolder, arms: list[Arm], planned: Mapping[Arm, Stage]
) -> dict[str, Any]:
    settings = settings_of(EVAL, recipe)
    if recipe.eval.real_reference is not None:
        settings["eval.reference (names and sizes)"] = files_digest(recipe.eval.real_reference)
    for arm in arms:
        stored = recorded(run.samples / arm.name)
        if arm in planned:
            settings[f"arm {arm.name}"] = planned[arm].settings
        elif stored is not None and stored["done"]:
            settings[f"arm {arm.name}"] = stored["settings"]
        else:
            raise UserError(f"arm {arm.name} is not sampled yet: run `mm-cca sample RECIPE` first.")
    return settings


def _scorer(recipe: Recipe, name: str) -> Scorer:
    return load_scorer(
        name,
        recipe.eval.pretrained_of(name),
        batch_size=recipe.eval.batch_size,
        device=PartialState().device,
    )


def _refuse_bad_judges(recipe: Recipe) -> None:
    """Load every judge once before the work of any.

    Raises:
        UserError: one can't be loaded, two have the same weights, or one was not examined in the
            run of ``eval.examined``.
    """
    path = recipe.eval.examined
    earlier = earlier_examinations(path)
    if len(recipe.eval.scorer) == 1 and path is None:
        return  # it is loaded next anyway
    names: dict[str, str] = {}
    for name in recipe.eval.scorer:
        scorer = _scorer(recipe, name)
        refuse_unexamined(path, scorer.name, scorer.sha256, earlier)
        if scorer.sha256 in names:
            raise UserError(
                f"eval.scorer has {names[scorer.sha256]} and {scorer.name}, which have the same "
                "weights; a judge counts once. Remove one of them."
            )
        names[scorer.sha256] = scorer.name
        del scorer
        release_memory()


def _inception(recipe: Recipe) -> Inception | None:
    if not any(METRICS[n].source is FeatureSource.INCEPTION for n in recipe.eval.metrics):
        return None
    assert recipe.eval.inception_weights is not None
    with PartialState().main_process_first():  # which may have to download
        return load_inception(
            recipe.eval.inception_weights, recipe.eval.inception_sha256, PartialState().device
        )


def _arm_entry(run: RunFolder, arm: Arm, scores: dict[str, SplitScores]) -> ArmEntry:
    lines = read_manifest(run.samples / arm.name)
    entry: ArmEntry = {
        "name": arm.name,
        "source": arm.source,
        "guidance_scale": arm.guidance_scale,
        "negative_prompt": arm.negative_prompt if arm.is_guided else None,
        "dial": arm.dial if arm.source == "cca" else None,
        "num_images": len(lines),
        "forwards_per_image": lines[0]["forward_passes"],
        "seconds_per_image": float(np.mean([line["seconds"] for line in lines])),
        "scores": scores,
    }
    if "engine" in lines[0]:
        entry["engine"] = str(EngineFacts(**lines[0]["engine"]))
    return entry
