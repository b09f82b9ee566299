"""What the report's plots show: every arm as a point, and which points a line joins."""

from typing import Any

from mm_cca.eval.report.scatter import PlotPoint, scatter
from mm_cca.eval.report.tables import scores_of
from mm_cca.eval.report.wording import prompts_in_words


def cost_plot(summary: dict[str, Any], split: str) -> str:
    """Alignment against forward passes."""
    return scatter(
        _points(summary, split, "forwards", "alignment"),
        "forward passes per image",
        "alignment ×100",
        about=prompts_in_words(split),
        lines=[],
        x_ticks=sorted({arm["forwards_per_image"] for arm in summary["arms"]}),
    )


def trade_plot(summary: dict[str, Any], split: str) -> str | None:
    """A Frechet distance against recall or coverage, along every sweep; None where one lacks."""
    present = scores_of(summary)
    diversity = next((name for name in ("recall", "coverage") if name in present), None)
    fidelity = next((name for name in ("frechet_distance", "fid") if name in present), None)
    if diversity is None or fidelity is None:
        return None
    return scatter(
        _points(summary, split, diversity, fidelity),
        f"{present[diversity][0]} (diversity)",
        f"{present[fidelity][0]} (fidelity, lower is better)",
        about=prompts_in_words(split),
        lines=sweeps(summary["arms"]),
    )


def told_of(summary: dict[str, Any], arm: dict[str, Any], split: str) -> str:
    """What a point says of its arm."""
    scores = scores_of(summary)
    said = [
        f"{scores[key][0]} {score['value']:.{scores[key][2]}f}"
        for key, score in arm["scores"][split].items()
    ]
    return f"{arm['name']}: {', '.join(said)}, {arm['forwards_per_image']} forward passes per image"


def _points(summary: dict[str, Any], split: str, x: str, y: str) -> list[PlotPoint]:
    points = []
    for arm in summary["arms"]:
        values = {name: s["value"] for name, s in arm["scores"][split].items()}
        values["forwards"] = arm["forwards_per_image"]
        label = _label(arm["name"])
        series = _series(arm["source"], label)
        told = told_of(summary, arm, split)
        main = label == "cca"
        points.append(PlotPoint(arm["source"], series, label, values[x], values[y], told, main))
    return points


def _series(source: str, label: str) -> str:
    if source != "cca":
        return f"{source} (number: CFG scale)"
    return "CCA, no guidance" if label == "cca" else "CCA with another dial, or guided"


def _label(name: str) -> str:
    """``base``, ``3``, ``3 neg1``, ``dial 0.5``, ``CFG 3``: the colour says which source."""
    source, *parts = name.split("+")
    scale = "CFG " if source == "cca" else ""
    words = [part.replace("cfg", scale).replace("dial", "dial ") for part in parts]
    return " ".join(words) if words else source


def sweeps(arms: list[dict[str, Any]]) -> list[list[int]]:
    """Places of the arms that a line joins, in its order.

    One line for every model and negative prompt, from no guidance to the most; one along each
    model's dial, on which the base is 0 and the trained model 1. Points of a sweep are models.
    """
    guided: dict[tuple[str, str], list[int]] = {}
    dialled: dict[str, list[int]] = {}
    base = [number for number, arm in enumerate(arms) if arm["name"] == "base"]
    plain = {_model(arm): number for number, arm in enumerate(arms) if _is_plain(arm)}
    for number, arm in enumerate(arms):
        model = _model(arm)
        start = [plain[model]] if model in plain else []
        if arm["guidance_scale"] != 1.0:
            prompt = arm["name"].partition("+neg")[2]
            guided.setdefault((model, prompt), start).append(number)
        elif not _is_plain(arm):
            dialled.setdefault(model, [*base, *start]).append(number)
    lines = [sorted(line, key=lambda n: arms[n]["guidance_scale"]) for line in guided.values()]
    return lines + [sorted(line, key=lambda n: arms[n]["dial"] or 0.0) for line in dialled.values()]


def _model(arm: dict[str, Any]) -> str:
    return f"{arm['source']} {arm.get('values')}"


def _is_plain(arm: dict[str, Any]) -> bool:
    return arm["guidance_scale"] == 1.0 and arm["dial"] in (None, 1.0)
