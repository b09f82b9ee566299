"""Score every arm on the same prompts, with floors and intervals, and say how it was done.

Shapes: n prompts of a split, F feature size, c captions of the whole data set.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from mm_cca.eval.attributes import Question, answers, questions_of
from mm_cca.eval.clip import Scorer, cosines, load_scorer, open_images, retrieval_ranks
from mm_cca.eval.fid import frechet_distance, kernel_distance, precision_recall
from mm_cca.eval.intervals import mean_interval
from mm_cca.eval.per_prompt import PER_PROMPT, write_per_prompt
from mm_cca.eval.text import measure_text, texts_of
from mm_cca.eval.verdicts import verdicts_of
from PIL import Image
from tqdm import tqdm

from mm_cca.adapters.base import grid_of
from mm_cca.arms import Arm, Prompt, arms_of, prompts_of, reference_rows
from mm_cca.checks import MIN_IMAGES
from mm_cca.data import decode_image, load_split
from mm_cca.digests import words_digest
from mm_cca.errors import UserError
from mm_cca.negatives import load_words
from mm_cca.run import RunFolder, Stage, write_json
from mm_cca.sample import load_source, read_manifest
from mm_cca.schema import Recipe
from mm_cca.tokens import open_cache

FLOORS = ("real", "reconstruction")


@dataclass(frozen=True)
class SplitTruth:
    """What the arms of one split are measured against.

    Attributes:
        prompts: the prompts of the split.
        texts: [n, F] features of their captions.
        captions: [c, F] features of all distinct captions.
        own: [n] index of each prompt's caption among them.
        reference: [m, F] features of the real images that no prompt was drawn from.
        questions: of ``eval.attributes``, by kind.
    """

    prompts: list[Prompt]
    texts: torch.Tensor
    captions: torch.Tensor
    own: torch.Tensor
    reference: torch.Tensor
    questions: dict[str, Question]


@dataclass(frozen=True)
class Measured:
    """One arm on one split: numbers per image, and features for distances between sets."""

    cosine: np.ndarray
    rank: np.ndarray
    attributes: dict[str, np.ndarray]
    features: torch.Tensor


def evaluate_arms(recipe: Recipe, run: RunFolder) -> None:
    """Write ``eval/ARM.json`` and ``eval/summary.json``.

    Raises:
        UserError: an arm was not drawn to the end, or the scorer can't be loaded.
    """
    if not PartialState().is_main_process:
        return
    arms = arms_of(recipe)
    stage = Stage(run.eval, _settings(recipe, run, arms))
    if stage.is_done():
        return
    stage.begin()
    texts = None if recipe.eval.text_nll is None else texts_of(recipe, run)
    scorer = load_scorer(
        recipe.eval.scorer,
        recipe.eval.scorer_pretrained,
        batch_size=recipe.eval.batch_size,
        device=PartialState().device,
    )
    prompts = prompts_of(recipe, run)
    truths = _truths(recipe, run, scorer, prompts)
    measured: dict[str, dict[str, Measured]] = {}
    floors = FLOORS if "base" in recipe.run.sources else ()
    names = [*floors, *(arm.name for arm in arms)]
    for name in tqdm(names, desc="scoring", unit="arm"):
        images = _floor_images(recipe, run, name) if name in FLOORS else None
        measured[name] = {
            split: _measure(run, scorer, truth, name, images) for split, truth in truths.items()
        }
    summary = {
        "arms": [_arm_entry(recipe, run, arm, measured[arm.name], truths) for arm in arms],
        "floors": {
            name: {s: _scores(recipe, m, truths[s]) for s, m in measured[name].items()}
            for name in floors
        },
        "verdicts": verdicts_of(recipe, arms, measured, truths),
        "protocol": _protocol(recipe, scorer, truths),
    }
    if texts is not None:
        sources = list(dict.fromkeys(arm.source for arm in arms))
        summary["text_nll"] = measure_text(recipe, run, sources, texts)
    for entry in summary["arms"]:
        write_json(run.eval / f"{entry['name']}.json", entry)
    write_per_prompt(run.eval / PER_PROMPT, [arm.name for arm in arms], measured, truths)
    write_json(run.eval / "summary.json", summary)
    stage.finish()


def _settings(recipe: Recipe, run: RunFolder, arms: list[Arm]) -> dict[str, Any]:
    settings = {f"eval.{k}": v for k, v in asdict(recipe.eval).items()}
    for free in ("batch_size", "grid_prompts", "report_megabytes"):
        del settings[f"eval.{free}"]
    if recipe.eval.attributes:
        settings["attribute words (sha256)"] = words_digest(recipe.data.attribute_words)
    for arm in arms:
        path = run.samples / arm.name / "stage.json"
        if not path.exists() or not json.loads(path.read_text())["done"]:
            raise UserError(f"arm {arm.name} is not drawn yet: run `mm-cca sample RECIPE` first.")
        settings[f"arm {arm.name}"] = json.loads(path.read_text())["settings"]
    return settings


def _splits_of(recipe: Recipe) -> list[str]:
    return [s for s in (recipe.data.train_split, recipe.data.heldout_split) if s is not None]


def _truths(
    recipe: Recipe, run: RunFolder, scorer: Scorer, prompts: list[Prompt]
) -> dict[str, SplitTruth]:
    everything: list[str] = []
    for split in _splits_of(recipe):
        everything += open_cache(run.tokens / split, recipe.data.variants).captions
    distinct = sorted(set(everything))
    place = {caption: i for i, caption in enumerate(distinct)}
    captions = scorer.text_features(distinct)
    truths = {}
    for split in _splits_of(recipe):
        mine = [p for p in prompts if p.split == split]
        own = torch.tensor([place[p.caption] for p in mine])
        rows = reference_rows(recipe, run, split)
        if min(len(mine), len(rows)) < MIN_IMAGES:
            raise UserError(
                f"split {split!r} gives {len(mine)} prompts and {len(rows)} images to compare "
                f"with; scores need at least {MIN_IMAGES} of each, so {2 * MIN_IMAGES} usable rows."
            )
        reference = scorer.image_features(real_images(recipe, run, split, rows.tolist()))
        questions = questions_of(
            [p.caption for p in mine],
            recipe.eval.attributes,
            load_words(recipe.data.attribute_words),
            scorer.text_features,
        )
        truths[split] = SplitTruth(mine, captions[own], captions, own, reference, questions)
    return truths


def real_images(
    recipe: Recipe, run: RunFolder, split: str, cache_rows: list[int]
) -> Iterator[Image.Image]:
    """Real images by their row in the token cache, cropped to the size the model was given."""
    table = load_split(recipe.data, split).table
    source_rows = open_cache(run.tokens / split, recipe.data.variants).source_rows
    height, width = recipe.data.image_size
    for row in cache_rows:
        pixels = decode_image(table[source_rows[row]][recipe.data.image_column], height, width)
        yield Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _floor_images(
    recipe: Recipe, run: RunFolder, name: str
) -> Callable[[list[Prompt]], Iterable[Image.Image]]:
    """The real images of the prompts, or what the tokenizer makes of them."""
    if name == "real":
        return lambda prompts: real_images(recipe, run, prompts[0].split, [p.row for p in prompts])
    model = load_source(recipe, run, "base")
    grid = grid_of(model, recipe.data.image_size)
    device = PartialState().device

    def reconstruct(prompts: list[Prompt]) -> list[Image.Image]:
        cache = open_cache(run.tokens / prompts[0].split, recipe.data.variants)
        rows = torch.tensor([p.row for p in prompts])
        codes = cache.codes(rows, torch.zeros_like(rows))
        parts = [
            model.decode(part.to(device), grid).cpu()
            for part in codes.split(recipe.sample.batch_size)
        ]
        return [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in torch.cat(parts)]

    return reconstruct


def _measure(
    run: RunFolder,
    scorer: Scorer,
    truth: SplitTruth,
    name: str,
    images: Callable[[list[Prompt]], Iterable[Image.Image]] | None,
) -> Measured:
    if images is None:
        features = scorer.image_features(
            open_images(run.samples / name, [p.index for p in truth.prompts])
        )
    else:
        features = scorer.image_features(images(truth.prompts))
    return Measured(
        cosine=cosines(features, truth.texts).numpy(),
        rank=retrieval_ranks(features, truth.captions, truth.own).numpy(),
        attributes={
            kind: answers(features, truth.texts, question)
            for kind, question in truth.questions.items()
        },
        features=features,
    )


def _scores(recipe: Recipe, measured: Measured, truth: SplitTruth) -> dict[str, Any]:
    """Each score with a 95 % bootstrap interval over prompts where it is a mean over prompts."""
    precision, recall = precision_recall(measured.features, truth.reference)
    seed = recipe.sample.seed
    return {
        "alignment": mean_interval(100 * measured.cosine, recipe),
        "r_at_1": mean_interval(measured.rank < 1, recipe),
        "r_at_5": mean_interval(measured.rank < 5, recipe),
        "frechet_distance": {"value": frechet_distance(measured.features, truth.reference)},
        "kernel_distance": {
            "value": kernel_distance(measured.features, truth.reference, seed=seed)
        },
        "precision": {"value": precision},
        "recall": {"value": recall},
        **{
            f"attribute_{kind}": mean_interval(right, recipe)
            | {"count": len(right), "chance": truth.questions[kind].chance}
            for kind, right in measured.attributes.items()
        },
    }


def _arm_entry(
    recipe: Recipe,
    run: RunFolder,
    arm: Arm,
    measured: dict[str, Measured],
    truths: dict[str, SplitTruth],
) -> dict[str, Any]:
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
        "scores": {s: _scores(recipe, m, truths[s]) for s, m in measured.items()},
    }


def _protocol(recipe: Recipe, scorer: Scorer, truths: dict[str, SplitTruth]) -> dict[str, Any]:
    sample = asdict(recipe.sample)
    packages = ("torch", "transformers", "open-clip-torch", "torchmetrics", "torch-fidelity")
    return {
        "scorer": scorer.name,
        "scorer_sha256": scorer.sha256,
        "num_prompts": {split: len(t.prompts) for split, t in truths.items()},
        "num_reference_images": {split: len(t.reference) for split, t in truths.items()},
        "num_captions_ranked": len(next(iter(truths.values())).captions),
        "image_size": recipe.data.image_size,
        "features": "open_clip image features, not normalised",
        "intervals": f"95 %, percentile bootstrap, {recipe.eval.bootstrap_samples} resamples",
        "sampling": sample,
        "versions": {name: metadata.version(name) for name in packages},
    }
