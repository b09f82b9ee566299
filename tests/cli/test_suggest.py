"""A starting beta and lambda: the formula by hand, the measurement against naive scoring."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mm_cca import cli, load_adapter
from mm_cca.cli.commands.suggest import explain, measure, suggestion_of
from mm_cca.config.mixtures import LossTerms
from mm_cca.data.token_cache import open_cache
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.runs.folder import RunFolder
from mm_cca.training.beta_rule import BaseMeasurement, Spread
from mm_cca.training.schedule import training_schedule
from tests.support import runs


def _measured(unconditional: float, negative: float, low: float) -> BaseMeasurement:
    return BaseMeasurement(
        Spread(unconditional, 1.0, low, 2 * unconditional),
        Spread(negative, 1.0, 0.0, 0.0),
        32,
        64,
        3.0,
    )


def test_the_constants_of_both_objectives():
    """1.5 / 150; at each code 1 / (3 - 1); lambda as usual, since exp(16) is far above it."""
    found = suggestion_of(_measured(40.0, 150.0, 16.0), 3.0)
    assert found.beta == pytest.approx(0.01)
    assert found.lambda_ == 10.0
    assert found.code_beta == 0.5
    other = suggestion_of(_measured(40.0, 150.0, 16.0), 2.0)
    assert (other.beta, other.code_beta) == (found.beta, 1.0)


def test_lambda_stays_where_the_optimum_raises_own_pairs():
    assert suggestion_of(_measured(3.0, 9.0, np.log(4.0)), 3.0).lambda_ == pytest.approx(4.0)
    assert suggestion_of(_measured(3.0, 9.0, -5.0), 3.0).lambda_ == 1.0


def test_a_base_that_ignores_its_prompts():
    """Negative captions are as likely as own captions: beta is kept at most 1.5."""
    assert suggestion_of(_measured(0.0, -3.0, 0.0), 3.0).beta == 1.5


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    values = runs.tiny_recipe(tmp_path, tiny_folder, runs.two_splits(tmp_path / "data.parquet"))
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


def test_the_measurement_equals_scoring_one_by_one(recipe: Path, tiny_folder: Path):
    loaded = runs.do(recipe, stages=["prepare"])
    run = RunFolder.of(loaded)
    found = measure(loaded, run, 8)
    cache = open_cache(run.tokens / "train", 1)
    schedule = training_schedule(loaded, cache, LossTerms.of(loaded.loss))
    model = load_adapter("emu3", str(tiny_folder))
    policy = CodeLogProbs(model, model.layout((4, 4)), whole_vocabulary=False).eval()
    unconditional, negative = [], []
    for step in range(2):
        pairs = schedule.step(step)
        for row, (other,) in zip(pairs.rows.tolist(), pairs.negatives.read(), strict=True):
            codes = cache.codes(torch.tensor([row]), torch.tensor([0]))
            own, negative_ids = model.prompt_ids([cache.captions[row], other], (4, 4))
            empty = model.unconditional_ids(own, (4, 4))
            with torch.no_grad():
                scores = [
                    float(policy(*left_pad([ids], model.pad_id), codes).logps)
                    for ids in (own, negative_ids, empty)
                ]
            negative.append(scores[0] - scores[1])
            unconditional.append(scores[0] - scores[2])
    assert found.num_pairs == 8
    assert found.negative.mean == pytest.approx(np.mean(negative), abs=1e-3)
    assert found.unconditional.mean == pytest.approx(np.mean(unconditional), abs=1e-3)
    assert found.negative.high == pytest.approx(np.quantile(negative, 0.9), abs=1e-3)


def test_the_command_proposes_constants_with_reasons(
    recipe: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["suggest", str(recipe), "--pairs", "6", "--scale", "2"]) == 0
    shown = capsys.readouterr().out
    assert "loss.beta=" in shown
    assert "of 16 codes (mean, its standard error" in shown
    assert "guidance of scale 2" in shown.lower()
    assert "loss.objective=cca_code loss.scale=2 " in shown
    assert "Caution: 8 pairs are few; loss.beta=auto measures 32 or more." in shown


def test_what_it_says_about_both_objectives():
    measured = _measured(42.9, 150.0, 16.0)
    shown = explain(measured, suggestion_of(measured, 3.0))
    assert "150.0 +- 1" in shown
    assert "loss.beta=0.01 loss.beta_codes=null loss.lambda_=10" in shown
    assert "beta = 1.5 / 150 nats = 0.01," in shown
    assert "here after 100," in shown
    assert "1 + 1/beta = 101" in shown
    assert "1 / (scale - 1) = 0.5," in shown
    assert "Caution" not in shown


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--pairs", "1"], "--pairs is 1; allowed: 2 or more"),
        (["--scale", "1"], "--scale is 1; it must be above 1"),
    ],
)
def test_bad_options(recipe: Path, capsys, words: list[str], problem: str):
    assert cli.main(["suggest", str(recipe), *words]) == 2
    assert problem in capsys.readouterr().err


def test_another_jobs_recipe(capsys):
    assert cli.main(["suggest", "emoji-tokenizer"]) == 2
    assert "has no beta" in capsys.readouterr().err
