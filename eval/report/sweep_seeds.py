"""The arms of a sweep with their seeds pooled."""

from typing import Any, cast

import numpy as np

from mm_cca.eval.summary_types import Interval, JudgedArm, Score, SeedsEntry

SEED = "train.seed"


def name_without_seed(name: str, values: dict[str, Any]) -> str:
    """The name of a point or of one of its arms, without its seed; ``cca`` if nothing is left."""
    if SEED not in values:
        return name
    seed = f"seed={values[SEED]}"
    return name.replace(f",{seed}", "").replace(f"{seed},", "").replace(seed, "cca")


def over_seeds(arms: list[JudgedArm]) -> list[SeedsEntry]:
    """One entry for every group of trained arms that differ only in ``train.seed``.

    Returns:
        in the order of the arms: ``name`` without the seed, ``seeds``, ``forwards_per_image``, and
        ``scores`` and ``signals`` as means, scores with ``low`` and ``high``, the lowest and
        highest seed.
    """
    return [
        _mean_over_seeds(name, group) for name, group in _groups(arms).items() if len(group) > 1
    ]


def pooled_arms(arms: list[JudgedArm]) -> list[JudgedArm]:
    """The arms, in which the seeds of a point are one, with the means over them."""
    pooled = {entry["name"]: entry for entry in over_seeds(arms)}
    shown: dict[str, JudgedArm] = {}
    for arm in arms:
        values = arm.get("values", {})
        name = name_without_seed(arm["name"], values)
        if name in shown or SEED not in values or name not in pooled:
            shown.setdefault(name if SEED in values and name in pooled else arm["name"], arm)
            continue
        scores = {
            split: {key: cast(Score, {**score}) for key, score in of_split.items()}
            for split, of_split in pooled[name]["scores"].items()
        }
        others = {key: value for key, value in values.items() if key != SEED}
        shown[name] = {**arm, "name": name, "scores": scores, "values": others}
    return list(shown.values())


def _groups(arms: list[JudgedArm]) -> dict[str, list[JudgedArm]]:
    groups: dict[str, list[JudgedArm]] = {}
    for arm in arms:
        if SEED in arm.get("values", {}):
            groups.setdefault(name_without_seed(arm["name"], arm["values"]), []).append(arm)
    return groups


def _mean_over_seeds(name: str, arms: list[JudgedArm]) -> SeedsEntry:
    first = arms[0]
    return {
        "name": name,
        "seeds": [arm["values"][SEED] for arm in arms],
        "forwards_per_image": first["forwards_per_image"],
        "scores": {
            split: {
                key: _spread([arm["scores"][split][key]["value"] for arm in arms]) for key in scores
            }
            for split, scores in first["scores"].items()
        },
        "signals": {
            key: float(np.mean([arm["signals"][key] for arm in arms])) for key in first["signals"]
        },
    }


def _spread(values: list[float]) -> Interval:
    return {"value": float(np.mean(values)), "low": min(values), "high": max(values)}
