"""Which points of a plot a line joins, and which guided arm is the best."""

from typing import Any

from mm_cca.eval.report.charts import guidance_lines
from mm_cca.eval.report.tables import best_guided


def entry(name: str, scale: float = 1.0, dial: float | None = None) -> dict[str, Any]:
    scores = {"alignment": {"value": scale}}
    return {
        "name": name,
        "source": name.partition("+")[0],
        "guidance_scale": scale,
        "dial": dial,
        "scores": {"train": scores},
    }


def test_lines_of_the_plot():
    """The guided sweep of each source and negative prompt; the dial from base through cca."""
    arms = [
        entry("base"),
        entry("base+cfg3", 3.0),
        entry("base+cfg2", 2.0),
        entry("base+cfg2+neg1", 2.0),
        entry("cca", dial=1.0),
        entry("cca+cfg9", 9.0, dial=1.0),
        entry("cca+dial1.5", dial=1.5),
        entry("cca+dial0.5", dial=0.5),
        entry("control"),
    ]
    names = [[arms[number]["name"] for number in line] for line in guidance_lines(arms)]
    assert names == [
        ["base", "base+cfg2", "base+cfg3"],
        ["base", "base+cfg2+neg1"],
        ["cca", "cca+cfg9"],
        ["base", "cca+dial0.5", "cca", "cca+dial1.5"],
    ]
    assert guidance_lines([arms[0], arms[4], arms[8]]) == []
    assert best_guided(arms, "train") == "base+cfg3"
    assert best_guided(arms, "train", "control") is None
