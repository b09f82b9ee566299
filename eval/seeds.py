"""Points of a sweep that differ in nothing but ``train.seed``, as one row: mean and extremes."""

from typing import Any

import numpy as np

SEED = "train.seed"


def over_seeds(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for every group of trained arms of several seeds, in the order of the arms.

    Returns:
        ``name`` without the seed, ``seeds``, ``forwards_per_image``, and ``scores`` and ``signals``
        as means, scores with ``low`` and ``high``, the lowest and highest seed.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for arm in arms:
        if SEED in arm.get("values", {}):
            groups.setdefault(_name_without_seed(arm), []).append(arm)
    return [_summed_up(name, mine) for name, mine in groups.items() if len(mine) > 1]


def _name_without_seed(arm: dict[str, Any]) -> str:
    seed = f"seed={arm['values'][SEED]}"
    return str(arm["name"].replace(f",{seed}", "").replace(f"{seed},", "").replace(seed, "cca"))


def _summed_up(name: str, arms: list[dict[str, Any]]) -> dict[str, Any]:
    scores = {
        split: {
            key: _spread([arm["scores"][split][key]["value"] for arm in arms]) for key in by_name
        }
        for split, by_name in arms[0]["scores"].items()
    }
    signals = {
        key: float(np.mean([arm["signals"][key] for arm in arms])) for key in arms[0]["signals"]
    }
    return {
        "name": name,
        "seeds": [arm["values"][SEED] for arm in arms],
        "forwards_per_image": arms[0]["forwards_per_image"],
        "scores": scores,
        "signals": signals,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"value": float(np.mean(values)), "low": min(values), "high": max(values)}
