"""The registry of metrics: all of it is computed, shown and described, and nothing else is."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm_cca.config.metrics import (
    AGAINST_RECONSTRUCTIONS,
    DEFAULT,
    LEAD,
    METRICS,
    NEEDED_BY_SWEEP,
    FeatureSource,
    Metric,
    ReferenceNeed,
    Verdict,
    reconstruction_name,
    with_reconstructions,
)
from mm_cca.config.validate_eval import eval_checks
from mm_cca.eval.features.extract import Features
from mm_cca.eval.features.references import ReferenceSet
from mm_cca.eval.ground_truth import SplitTruth
from mm_cca.eval.metrics.prdc import NEIGHBOURS
from mm_cca.eval.report.tables import score_columns
from mm_cca.eval.score_warnings import SMALL_SUBSETS
from mm_cca.eval.scores import OF_SETS, PER_IMAGE, ArmScores, PerImage, scores_of
from mm_cca.eval.verdicts import KERNELS
from mm_cca.sampling.prompts import Prompt
from tests.support import runs

README = Path(__file__).parents[2] / "eval" / "README.md"


def test_every_metric_is_computed_once_and_nothing_else_is():
    assert sorted([*PER_IMAGE, *OF_SETS]) == sorted(METRICS)


def test_every_metric_is_shown():
    arm: Any = {"scores": {"train": {name: {"value": 0.0} for name in reversed(METRICS)}}}
    columns = score_columns([arm])
    assert list(columns) == list(METRICS)
    headings = [column.heading for column in columns.values()]
    assert len(set(headings)) == len(METRICS)
    for column in columns.values():
        assert column.hint.startswith(("higher is better", "lower is better"))


def test_every_metric_is_described_and_nothing_else_is():
    section = README.read_text().split("## Scores")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(METRICS)
    described = {(metric.definition, metric.source) for metric in METRICS.values()}
    assert len(described) == len(METRICS)


def test_directions():
    """Distances are small for good images, everything else is large."""
    falling = [name for name, metric in METRICS.items() if not metric.higher_is_better]
    assert sorted(falling) == [
        "cmmd",
        "fid",
        "frechet_distance",
        "frechet_distance_reconstruction",
        "kernel_distance",
        "kernel_distance_reconstruction",
        "kid",
    ]


def test_lists_of_the_registry():
    assert METRICS[LEAD].verdict is Verdict.SENTENCE
    expected = "alignment r_at_1 r_at_5 frechet_distance kernel_distance precision recall"
    assert expected.split() == DEFAULT
    assert NEEDED_BY_SWEEP == ("alignment", "r_at_1", "r_at_5", "frechet_distance", "recall")
    assert {METRICS[name].axis for name in NEEDED_BY_SWEEP} >= {"fidelity", "diversity"}
    assert METRICS.keys() >= SMALL_SUBSETS.keys()
    least = {name: m.min_reference_images for name, m in METRICS.items() if m.min_reference_images}
    both = ("density", "density_reconstruction", "coverage", "coverage_reconstruction")
    assert least == dict.fromkeys(both, NEIGHBOURS + 1)
    for name, metric in METRICS.items():
        if metric.verdict is not Verdict.NONE:
            has_difference = name in PER_IMAGE or name in KERNELS
            assert has_difference or metric.needs is ReferenceNeed.STATISTICS


def test_metrics_against_reconstructions_follow_their_originals():
    names = list(METRICS)
    for name in AGAINST_RECONSTRUCTIONS:
        twin = reconstruction_name(name)
        assert names[names.index(name) + 1] == twin
        assert METRICS[name].reference == "real"
        assert METRICS[twin].reference == "reconstruction"
        assert METRICS[twin].needs is METRICS[name].needs is not ReferenceNeed.NONE
    assert sum(m.reference == "reconstruction" for m in METRICS.values()) == 6
    found = with_reconstructions(["recall", "alignment", "frechet_distance"])
    assert found == [
        "recall",
        "recall_reconstruction",
        "alignment",
        "frechet_distance",
        "frechet_distance_reconstruction",
    ]
    assert with_reconstructions(found) == found


def test_each_metric_is_compared_with_its_own_reference():
    real, decoded = (ReferenceSet(name, 4, "", None, None) for name in ("real", "decoded"))
    truth = replace(four_images()[1], reference=real, reconstruction=decoded)
    assert truth.compared_with(METRICS["frechet_distance"]) is real
    assert truth.compared_with(METRICS["frechet_distance_reconstruction"]) is decoded


def test_the_registry_does_not_load_torch():
    code = "import sys, mm_cca.config.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def four_images() -> tuple[ArmScores, SplitTruth]:
    """Two prompts with two images each."""
    features = Features(torch.zeros(4, 2), None, None, "")
    measured = ArmScores(np.array([0.1, 0.3, -0.2, 0.4]), np.array([0, 4, 5, 0]), {}, features)
    prompts = [Prompt(n, "prompts", n // 2, "x") for n in range(4)]
    zeros = torch.zeros(4, 2)
    groups = np.array([0, 0, 1, 1])
    return measured, SplitTruth(prompts, groups, zeros, zeros, torch.zeros(4), None, {})


def test_means_over_prompts_by_hand(tmp_path: Path):
    path = runs.unread_recipe(tmp_path)
    recipe = runs.load_recipe(path, "eval.metrics=[alignment,r_at_1,r_at_5]")
    recipe.eval.metrics.append("clip_score")  # which the recipe's checks allow for CLIPs only
    scores = scores_of(recipe, *four_images())
    expected = {"alignment": 15.0, "r_at_1": 0.5, "r_at_5": 0.75, "clip_score": 20.0}
    assert {name: score["value"] for name, score in scores.items()} == pytest.approx(expected)
    # The means of the two prompts are 20 and 10; t with one degree of freedom is 12.7.
    half = 12.7062 * 5
    assert scores["alignment"]["low"] == pytest.approx(15 - half, rel=1e-4)
    assert scores["alignment"]["high"] == pytest.approx(15 + half, rel=1e-4)
    for name in ("r_at_1", "r_at_5"):
        assert 0 <= scores[name]["low"] < scores[name]["value"] < scores[name]["high"] <= 1


def test_a_new_metric_is_an_entry_and_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    entry = Metric("share above 0", "share with cos > 0", 1, FeatureSource.CAPTIONS)
    monkeypatch.setitem(METRICS, "positive", entry)
    monkeypatch.setitem(PER_IMAGE, "positive", PerImage(1, lambda arm: arm.cosine > 0))
    recipe = runs.load_recipe(runs.unread_recipe(tmp_path), "eval.metrics=[alignment]")
    recipe.eval.metrics.append("positive")  # the schema read its choices before
    assert all(right for _, _, right, _ in eval_checks(recipe))
    scores = scores_of(recipe, *four_images())
    assert scores["positive"]["value"] == 0.75
    arm: Any = {"scores": {"train": scores}}
    assert score_columns([arm])["positive"] == ("share above 0", "higher is better", 1)
