"""How the scores were computed: everything that another run must share to be comparable."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import torch
from accelerate import PartialState

from mm_cca.config.metrics import METRICS
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import texts_digest
from mm_cca.eval.contestants import CHOICE_RULE
from mm_cca.eval.features.image_sets import RESIZE, size_of
from mm_cca.eval.features.inception import RESIZE as INCEPTION_RESIZE
from mm_cca.eval.features.inception import Inception
from mm_cca.eval.features.references import ReferenceSet
from mm_cca.eval.features.scorer import Scorer
from mm_cca.eval.ground_truth import SplitTruth
from mm_cca.eval.metrics.bootstrap import intervals_text
from mm_cca.eval.summary_types import (
    OWN_SAMPLER,
    ArmEntry,
    DrawnBy,
    JudgeProtocol,
    ReferenceEntry,
    ScoringProtocol,
)

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "open-clip-torch",
    "torchmetrics",
    "torch-fidelity",
    "scipy",
    "numpy",
    "pillow",
    "mm-cca",
)


def judge_protocol(scorer: Scorer, truths: Mapping[str, SplitTruth]) -> JudgeProtocol:
    """The part of a protocol that is about one judge."""
    return {
        "name": scorer.name,
        "resize": scorer.resize,
        "context_length": scorer.context_length,
        "captions_cut": {
            split: scorer.num_cut([prompt.caption for prompt in truth.prompts])
            for split, truth in truths.items()
        },
    }


def protocol_of(
    recipe: Recipe,
    judges: Mapping[str, JudgeProtocol],
    inception: Inception | None,
    truths: Mapping[str, SplitTruth],
    captions: list[str],
    sampled_with: Mapping[str, Any],
    arms: Sequence[ArmEntry],
) -> ScoringProtocol:
    """The protocol block of a summary.

    Args:
        recipe: the run's, with the metrics that were computed.
        judges: by the sha256 of their weights.
        inception: if a metric needs it.
        truths: of any judge, by split.
        captions: all that retrieval ranks, in their order.
        sampled_with: temperature, top_k and top_p where the recipe leaves them to the family.
        arms: that were scored.
    """
    seed = recipe.sample.seed
    texts = {split: [prompt.caption for prompt in t.prompts] for split, t in truths.items()}
    references = {split: truth.reference for split, truth in truths.items()}
    return {
        "judges": dict(judges),
        **_engine(arms),
        **_buckets(recipe),
        "inception_sha256": None if inception is None else inception.sha256,
        "metrics": {
            name: f"{METRICS[name].definition}; on {METRICS[name].source.value}"
            for name in recipe.eval.metrics
        },
        "num_prompts": {split: len(each) for split, each in texts.items()},
        "images_per_prompt": recipe.sample.images_per_prompt,
        "prompts_sha256": {split: texts_digest(each) for split, each in texts.items()},
        "num_reference_images": {s: 0 if r is None else r.n for s, r in references.items()},
        "reference": {split: _reference(each) for split, each in references.items()},
        "reconstruction": {s: _reference(truth.reconstruction) for s, truth in truths.items()},
        "num_captions_ranked": len(captions),
        "captions_ranked_sha256": texts_digest(captions),
        "image_size": size_of(recipe),
        "resize": {
            "images": RESIZE,
            "inception": None if inception is None else INCEPTION_RESIZE,
        },
        "features": "image features as the model gives them, not normalised; cmmd normalises",
        "intervals": f"{intervals_text(recipe.eval.bootstrap_samples)} {CHOICE_RULE}",
        "seeds": {"sampling": seed, "bootstrap": seed, "kernel_subsets": seed, "splits": seed},
        "sampling": asdict(recipe.sample) | dict(sampled_with),
        "dtype": {"model": recipe.model.dtype, "extractors": "float32"},
        "device": _device(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def _engine(arms: Sequence[ArmEntry]) -> DrawnBy:
    """What drew the arms without guidance; nothing if no engine did, as in older protocols."""
    drawn_by = {arm.get("engine", OWN_SAMPLER) for arm in arms if arm["guidance_scale"] == 1.0}
    if drawn_by <= {OWN_SAMPLER}:
        return {}
    return {"engine": " and ".join(sorted(drawn_by))}


def _buckets(recipe: Recipe) -> DrawnBy:
    """Nothing where all images have one size, as in older protocols."""
    return {"buckets": recipe.data.buckets} if recipe.data.buckets else {}


def _reference(reference: ReferenceSet | None) -> ReferenceEntry | None:
    if reference is None:
        return None
    return {"images": reference.name, "sha256": reference.sha256}


def _device() -> str:
    device = PartialState().device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
