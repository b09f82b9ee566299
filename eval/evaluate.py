"""Score every arm on the same prompts, with floors and intervals, and record the protocol.

Every rank extracts features; the main rank turns them into scores.
Shapes: n images of a split, F feature size, c captions of the whole data set.
"""

import json
from typing import Any

import numpy as np
from accelerate import PartialState

from mm_cca.config.keys import EVAL
from mm_cca.config.metrics import METRICS, FeatureSource
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import settings_of
from mm_cca.errors import UserError
from mm_cca.eval.check_samples import refuse_bad_samples
from mm_cca.eval.features.extract import Extractors, Features, extract
from mm_cca.eval.features.image_sets import (
    ImageSet,
    real_images_of,
    reconstructed_images,
    sampled_images,
    size_of,
)
from mm_cca.eval.features.inception import load_inception
from mm_cca.eval.features.references import files_digest, save_statistics
from mm_cca.eval.features.scorer import load_scorer
from mm_cca.eval.ground_truth import SplitTruth, captions_of, truths_of
from mm_cca.eval.language import measure_text, texts_of
from mm_cca.eval.per_prompt import PER_PROMPT, write_per_prompt
from mm_cca.eval.protocol import protocol_of
from mm_cca.eval.score_warnings import warnings_of
from mm_cca.eval.scores import ArmScores, measure, scores_of
from mm_cca.eval.summary_types import ArmEntry, Summary
from mm_cca.eval.verdicts import verdicts_of
from mm_cca.runs.files import write_json
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage
from mm_cca.sampling.arms import Arm, arms_of
from mm_cca.sampling.manifest import read_manifest
from mm_cca.sampling.prompts import has_real_images, prompts_of, refuse_few_prompts
from mm_cca.sampling.weights import load_source

FLOORS = ("real", "reconstruction")

FeaturesOfArms = dict[str, dict[str, Features]]
"""By arm or floor, and split."""


def evaluate_arms(recipe: Recipe, run: RunFolder) -> None:
    """Write ``eval/ARM.json``, ``eval/per_prompt.json`` and ``eval/summary.json``.

    Raises:
        UserError: an arm is not fully sampled or lacks images, or an extractor or a reference can't
            be loaded.
    """
    state = PartialState()
    arms = arms_of(recipe)
    stage = Stage(run.eval, _settings(recipe, run, arms))
    done = stage.is_done()
    state.wait_for_everyone()  # before the main rank writes what the others have just read
    if done:
        return
    if state.is_main_process:
        stage.begin()
    texts = None if recipe.eval.text_nll is None else texts_of(recipe)
    prompts = prompts_of(recipe, run)
    refuse_few_prompts(recipe, prompts)
    refuse_bad_samples(run, arms, prompts)
    extractors = _extractors(recipe)
    captions = captions_of(recipe, run, prompts)
    truths = truths_of(recipe, run, extractors, prompts, captions)
    floors = FLOORS if "base" in recipe.run.sources and has_real_images(recipe) else ()
    features: FeaturesOfArms = {}
    for name in (*floors, *(arm.name for arm in arms)):
        sets = _image_sets(recipe, run, name, truths)
        features[name] = {split: extract(images, extractors) for split, images in sets.items()}
    if state.is_main_process:
        _write(recipe, run, arms, extractors, captions, texts, truths, features)
        stage.finish()
    state.wait_for_everyone()


def _write(
    recipe: Recipe,
    run: RunFolder,
    arms: list[Arm],
    extractors: Extractors,
    captions: list[str],
    texts: list[str] | None,
    truths: dict[str, SplitTruth],
    features: FeaturesOfArms,
) -> None:
    measured = {
        name: {split: measure(each, truths[split]) for split, each in by_split.items()}
        for name, by_split in features.items()
    }
    sampled_with = read_manifest(run.samples / arms[0].name)[0].get("sampling", {})
    summary: Summary = {
        "arms": [_arm_entry(recipe, run, arm, measured[arm.name], truths) for arm in arms],
        "floors": {
            name: {split: scores_of(recipe, m, truths[split]) for split, m in by_split.items()}
            for name, by_split in measured.items()
            if name in FLOORS
        },
        "verdicts": verdicts_of(recipe, arms, measured, truths),
        "warnings": warnings_of(recipe, extractors, truths, features[arms[0].name]),
        "protocol": protocol_of(recipe, extractors, truths, captions, sampled_with),
    }
    if texts is not None:
        sources = list(dict.fromkeys(arm.source for arm in arms))
        summary["text_nll"] = measure_text(recipe, run, sources, texts)
    for split, truth in truths.items():
        if truth.reference is not None:
            save_statistics(recipe, truth.reference, extractors, run.eval / "reference", split)
    for entry in summary["arms"]:
        write_json(run.eval / f"{entry['name']}.json", {**entry, "protocol": summary["protocol"]})
    write_per_prompt(run.eval / PER_PROMPT, [arm.name for arm in arms], measured, truths)
    write_json(run.eval / "summary.json", summary)


def _settings(recipe: Recipe, run: RunFolder, arms: list[Arm]) -> dict[str, Any]:
    settings = settings_of(EVAL, recipe)
    if recipe.eval.reference is not None:
        settings["eval.reference (names and sizes)"] = files_digest(recipe.eval.reference)
    for arm in arms:
        path = run.samples / arm.name / "stage.json"
        if not path.exists() or not json.loads(path.read_text())["done"]:
            raise UserError(f"arm {arm.name} is not sampled yet: run `mm-cca sample RECIPE` first.")
        settings[f"arm {arm.name}"] = json.loads(path.read_text())["settings"]
    return settings


def _extractors(recipe: Recipe) -> Extractors:
    device = PartialState().device
    scorer = load_scorer(
        recipe.eval.scorer,
        recipe.eval.scorer_pretrained,
        batch_size=recipe.eval.batch_size,
        device=device,
    )
    if not any(METRICS[n].source is FeatureSource.INCEPTION for n in recipe.eval.metrics):
        return Extractors(scorer, None)
    assert recipe.eval.inception_weights is not None
    with PartialState().main_process_first():  # which may have to download
        inception = load_inception(
            recipe.eval.inception_weights, recipe.eval.inception_sha256, device
        )
    return Extractors(scorer, inception)


def _image_sets(
    recipe: Recipe, run: RunFolder, name: str, truths: dict[str, SplitTruth]
) -> dict[str, ImageSet]:
    """An arm's images, or a floor's: real images of the prompts, or their reconstructions."""
    prompts_by_split = {split: truth.prompts for split, truth in truths.items()}
    if name == "real":
        size = size_of(recipe)
        return {
            split: real_images_of(recipe, run, split, [prompt.row for prompt in prompts], size)
            for split, prompts in prompts_by_split.items()
        }
    if name == "reconstruction":
        model = load_source(recipe, run, "base")
        return {
            split: reconstructed_images(recipe, run, model, prompts)
            for split, prompts in prompts_by_split.items()
        }
    return {
        split: sampled_images(recipe, run, name, prompts)
        for split, prompts in prompts_by_split.items()
    }


def _arm_entry(
    recipe: Recipe,
    run: RunFolder,
    arm: Arm,
    measured: dict[str, ArmScores],
    truths: dict[str, SplitTruth],
) -> ArmEntry:
    lines = read_manifest(run.samples / arm.name)
    return {
        "name": arm.name,
        "source": arm.source,
        "guidance_scale": arm.guidance_scale,
        "negative_prompt": arm.negative_prompt if arm.is_guided else None,
        "dial": arm.dial if arm.source == "cca" else None,
        "num_images": len(lines),
        "forwards_per_image": lines[0]["forward_passes"],
        "seconds_per_image": float(np.mean([line["seconds"] for line in lines])),
        "scores": {split: scores_of(recipe, m, truths[split]) for split, m in measured.items()},
    }
