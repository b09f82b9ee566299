"""Points of a sweep against the best guided base, seeds pooled, and the plots over values."""

import numpy as np
import pytest

from mm_cca.eval.compare_runs import ScoredRun
from mm_cca.eval.metrics.intervals import mean_interval
from mm_cca.eval.report.value_plot import value_plots
from mm_cca.eval.summary_types import judged
from mm_cca.eval.sweep_verdicts import sweep_verdicts
from tests.support.scored_runs import JUDGE, arm_of, scored_run

CAPTIONS = ["a", "b", "c", "d"]


def test_seeds_are_pooled_before_they_are_paired():
    base = scored_run("base", CAPTIONS, [1, 1, 2, 2], arms=("base", "base+cfg2", "base+cfg3"))
    better = base.summary["arms"][2]["scores"][JUDGE]["train"]["alignment"]
    better["value"] += 1
    seeds = [scored_run("p", CAPTIONS, [2, 4, 6, 8]), scored_run("p", CAPTIONS, [4, 4, 4, 2])]
    (verdict,) = sweep_verdicts(base, {"beta=1": seeds})
    # Means over seeds 3, 4, 5, 5 against 1, 1, 2, 2.
    assert verdict["difference"] == pytest.approx(mean_interval(np.array([2.0, 3.0, 3.0, 3.0])))
    assert (verdict["point"], verdict["seeds"], verdict["rival"]) == ("beta=1", 2, "base+cfg3")
    assert verdict["standing"] == "ahead"


def with_distances(run: ScoredRun, value: float, left_out: list[float]) -> ScoredRun:
    for arm in run.summary["arms"]:
        scores = arm["scores"][JUDGE]["train"]
        scores["frechet_distance"] = {"value": value, "left_out": left_out}
    return run


def test_distances_have_verdicts_where_every_run_keeps_its_left_out_values():
    arms = ("base", "base+cfg2")
    base = with_distances(scored_run("base", CAPTIONS, [1, 1, 2, 2], arms=arms), 9.0, [9, 9.5, 8.5])
    seeds = [
        with_distances(scored_run("p", CAPTIONS, [2, 4, 6, 8]), value, left_out)
        for value, left_out in ((4.0, [4.0, 4.2, 3.8]), (6.0, [6.0, 6.8, 5.2]))
    ]
    alignment, distance = sweep_verdicts(base, {"beta=1": seeds})
    assert (alignment["metric"], distance["metric"]) == ("alignment", "frechet_distance")
    # Means over seeds 5 and [5, 5.5, 4.5]: each left-out difference is -4, as is the difference.
    assert distance["difference"] == pytest.approx({"value": -4.0, "low": -4.0, "high": -4.0})
    assert (distance["standing"], distance["seeds"]) == ("ahead", 2)
    seeds[1].summary["arms"][0]["scores"][JUDGE]["train"]["frechet_distance"].pop("left_out")
    assert [v["metric"] for v in sweep_verdicts(base, {"beta=1": seeds})] == ["alignment"]


def test_without_a_guided_base_there_is_no_verdict():
    base = scored_run("base", CAPTIONS, [1, 1, 2, 2], arms=("base",))
    assert sweep_verdicts(base, {"beta=1": [scored_run("p", CAPTIONS, [2, 4, 6, 8])]}) == []


def test_values_are_on_the_axis_in_their_order():
    arms = [arm_of("base", 1.0), arm_of("base+cfg2", 2.0)]
    for number, value in enumerate((10, 0.5, 2)):
        values = {"loss.beta": value, "loss.objective": "cca"}
        arms.append(arm_of(f"beta={value}", number, source="cca", values=values))
    (plot,) = value_plots(judged(arms, JUDGE), "train")
    places = [plot.index(f">{tick}</text>") for tick in ("0.5", "2", "10")]
    assert places == sorted(places)
    assert "alignment ×100 over loss.beta" in plot
    assert plot.count('class="point"') == 3
    assert "base+cfg2 (shade: interval)" in plot


def test_switches_are_on_the_axis_as_they_came():
    arms = [arm_of("base", 1.0), arm_of("base+cfg2", 2.0)]
    for value in (True, False):
        values = {"train.lora_dora": value}
        arms.append(arm_of(f"lora_dora={value}", 1.0, source="cca", values=values))
    (plot,) = value_plots(judged(arms, JUDGE), "train")
    assert 0 < plot.index(">True</text>") < plot.index(">False</text>")
