"""Scored runs made by hand: summaries, numbers per prompt, and run folders with pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mm_cca.eval.compare_runs import ScoredRun
from mm_cca.eval.summary_types import ArmEntry, ScoringProtocol, SplitNumbers, Summary
from mm_cca.runs.files import write_json, write_text
from mm_cca.runs.places import file_digest
from mm_cca.sampling.manifest import picture_file
from tests.support import runs

JUDGE = "judge"


def protocol_of(num_prompts: int, each: int) -> ScoringProtocol:
    """On one split, by one judge."""
    return {
        "judges": {
            "aa": {
                "name": JUDGE,
                "resize": "none",
                "context_length": 8,
                "captions_cut": {"train": 0},
            }
        },
        "inception_sha256": None,
        "metrics": {"alignment": "a", "r_at_1": "r", "frechet_distance": "f"},
        "num_prompts": {"train": num_prompts},
        "images_per_prompt": each,
        "prompts_sha256": {"train": "p"},
        "num_reference_images": {"train": 4},
        "reference": {"train": None},
        "reconstruction": {"train": None},
        "num_captions_ranked": 9,
        "captions_ranked_sha256": "c",
        "image_size": [16, 16],
        "resize": {"images": "none"},
        "features": "f",
        "intervals": "i",
        "seeds": {"sampling": 0},
        "sampling": {},
        "dtype": {},
        "device": "cpu",
        "versions": {"torch": "2"},
    }


def arm_of(name: str, alignment: float, **more: Any) -> ArmEntry:
    """An arm with three scores."""
    scores = {
        "alignment": {"value": alignment, "low": alignment - 1, "high": alignment + 1},
        "r_at_1": {"value": 0.5},
        "frechet_distance": {"value": 2.0},
    }
    source, _, guided = name.partition("+cfg")
    arm: dict[str, Any] = {
        "name": name,
        "source": source,
        "guidance_scale": float(guided or 1),
        "negative_prompt": None,
        "dial": None,
        "num_images": 4,
        "forwards_per_image": 32 if guided else 16,
        "seconds_per_image": 0.1,
        "scores": {JUDGE: {"train": scores}},
    }
    return {**arm, **more}  # type: ignore[typeddict-item,return-value]


def scored_run(
    name: str,
    captions: Sequence[str],
    alignment: Sequence[float],
    ranks: Sequence[float] | None = None,
    *,
    each: int = 1,
    arms: Sequence[str] = ("cca",),
) -> ScoredRun:
    """All arms have the same numbers."""
    mean = sum(alignment) / len(alignment)
    summary: Summary = {
        "judges": [
            {
                "name": JUDGE,
                "sha256": "aa",
                "may_judge": True,
                "reasons": [],
                "examination": None,
                "examined_in": None,
            }
        ],
        "headline": [],
        "arms": [arm_of(arm, mean) for arm in arms],
        "floors": {},
        "verdicts": {JUDGE: []},
        "warnings": [],
        "protocol": protocol_of(len(captions) // each, each),
    }
    of_arm = {"alignment": list(alignment), "rank": list(ranks or [0.0] * len(captions))}
    numbers: SplitNumbers = {
        "indices": list(range(len(captions))),
        "captions": list(captions),
        "judges": {JUDGE: dict.fromkeys(arms, of_arm)},  # type: ignore[typeddict-item]
    }
    return ScoredRun(name, summary, {"train": numbers})


def scored_folder(folder: Path, run: ScoredRun) -> Path:
    """A run folder with a recipe, scores and pictures."""
    values = runs.tiny_recipe(folder, folder / "model", folder / "data.parquet")
    values["run"]["dir"] = str(folder)
    write_text(folder / "recipe.yaml", yaml.safe_dump(values))
    place = folder / "eval"
    write_json(place / "summary.json", run.summary)
    write_json(place / "per_prompt.json", run.numbers)
    files = {name: file_digest(place / name) for name in ("summary.json", "per_prompt.json")}
    write_json(place / "stage.json", {"done": True, "settings": {}, "files": files})
    for number, arm in enumerate(run.arms):
        samples = folder / "samples" / arm
        samples.mkdir(parents=True)
        lines = []
        for index, caption in enumerate(run.numbers["train"]["captions"]):
            file = picture_file(samples, index)
            runs.picture(100 * number + index).save(file)
            line = {"index": index, "split": "train", "row": index, "prompt": caption}
            lines.append(line | {"sha256": file_digest(file), "forward_passes": 16, "seconds": 0.1})
        (samples / "manifest.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        write_json(samples / "stage.json", {"done": True, "settings": {}})
    return folder
