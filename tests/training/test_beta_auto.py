"""``loss.beta: auto``: the rule by hand, what it does not depend on, and resumed training."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mm_cca.config.keys import TRAIN
from mm_cca.config.schema import LossConfig
from mm_cca.config.stage_keys import settings_of
from mm_cca.errors import UserError
from mm_cca.training.beta_rule import BaseMeasurement, Spread, beta_by_rule, beta_of
from tests.support import runs


def _measured(own_none: float, own_wrong: float, num_codes: int = 64) -> BaseMeasurement:
    spreads = [Spread(mean, 1.0, 0.0, 0.0) for mean in (own_none, own_wrong)]
    return BaseMeasurement(spreads[0], spreads[1], 64, num_codes, 3.0)


def test_the_rule_by_hand():
    assert beta_by_rule(_measured(43.0, 150.0)) == pytest.approx(0.01)  # the demo's, 1.5 / 150
    assert beta_by_rule(_measured(23.0, 75.0)) == pytest.approx(0.02)  # half the nats
    assert beta_by_rule(_measured(43.0, 150.0, 8100)) == pytest.approx(0.01)
    # Few codes: 1 / (1.6 * 16), as 1.5 / 75 would bend only at 3 nats a code.
    assert beta_by_rule(_measured(23.0, 75.0, 16)) == pytest.approx(1 / 25.6)
    # Negatives close to the own caption (edit): the own half must not saturate either.
    assert beta_by_rule(_measured(50.0, 5.0)) == pytest.approx(0.03)


@pytest.mark.parametrize("nats", [0.0, -3.0, 0.5])
def test_a_base_that_ignores_its_prompts(nats: float):
    """One nat at least: beta stays finite."""
    assert beta_by_rule(_measured(nats, nats)) == 1.5


@pytest.mark.parametrize("num_codes", [64, 256, 8100])
def test_equal_information_gives_equal_beta_at_every_length(num_codes: int):
    """The same log-probability of an image, split over more codes; also in what is trained with."""
    per_code = np.random.default_rng(0).normal(2.0, 1.0, (40, 4)).repeat(num_codes // 4, axis=1)
    wrong = (per_code * (64 / num_codes)).sum(axis=1)
    spread = Spread.of(wrong)
    measured = BaseMeasurement(Spread.of(wrong / 3), spread, 40, num_codes, 3.0)
    beta = beta_by_rule(measured)
    assert beta == pytest.approx(beta_by_rule(_measured(0.0, float(wrong.mean()), 64)))
    assert beta_of(LossConfig(beta=beta, beta_codes=None), num_codes) == beta


def test_a_number_is_still_rescaled():
    assert beta_of(LossConfig(beta=0.02, beta_codes=576), 64) == pytest.approx(0.18)


def test_the_spread_by_hand():
    """Two negatives of each of two images: errors are between images, 0.5 * sqrt(2) / sqrt(2)."""
    found = Spread.of(np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert (found.mean, found.error) == (2.5, pytest.approx(0.5))
    assert (found.low, found.high) == (pytest.approx(1.3), pytest.approx(3.7))


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    data = runs.two_splits(tmp_path / "data.parquet", train=36, heldout=4)
    values = runs.tiny_recipe(tmp_path, tiny_folder, data)
    values["loss"] |= {"beta": "auto", "uncond_ratio": 0.0}
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


def _recorded(tmp_path: Path, run: str = "run") -> dict:
    return json.loads((tmp_path / run / "train" / "beta.json").read_text())


@pytest.mark.parametrize("objective", ["cca", "dpo"])
def test_training_uses_what_is_measured(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], objective: str
):
    """Bit for bit the training with that number; measuring leaves no trace."""
    words = [f"loss.objective={objective}", "train.learning_rate=0.01"]
    runs.do(recipe, *words)
    found = _recorded(tmp_path)
    means = [found["measured"][name]["mean"] for name in ("unconditional", "negative")]
    assert found["beta"] == pytest.approx(max(1.5 / max(1.0, *means), 1 / 25.6))
    assert found["measured"]["num_pairs"] == 36
    assert f"{found['beta']:.2g}" in capsys.readouterr().err
    given = [f"loss.beta={found['beta']!r}", "loss.beta_codes=null"]
    runs.do(recipe, *words, *given, f"run.dir={tmp_path / 'given'}")
    assert runs.metrics(tmp_path / "run" / "train") == runs.metrics(tmp_path / "given" / "train")
    assert not (tmp_path / "given" / "train" / "beta.json").exists()


def test_a_lora_is_measured_as_its_base(recipe: Path, tmp_path: Path):
    runs.do(recipe, "train.max_steps=1")
    words = ["train.tuning=lora", "train.reference=lora", f"run.dir={tmp_path / 'lora'}"]
    runs.do(recipe, "train.max_steps=1", *words)
    assert _recorded(tmp_path, "lora")["beta"] == pytest.approx(_recorded(tmp_path)["beta"])


def test_a_resumed_training_keeps_its_number(recipe: Path, tmp_path: Path):
    """The recorded number is read, not measured again: a changed record shows in the loss."""
    words = ["train.schedule=constant", "train.learning_rate=0.01"]
    runs.do(recipe, *words, "train.stop_after=2")
    path = tmp_path / "run" / "train" / "beta.json"
    first = path.read_text()
    runs.do(recipe, *words)
    assert path.read_text() == first
    whole = runs.metrics(tmp_path / "run" / "train")
    runs.do(recipe, *words, "train.stop_after=2", f"run.dir={tmp_path / 'other'}")
    other = tmp_path / "other" / "train" / "beta.json"
    other.write_text(json.dumps(json.loads(first) | {"beta": 5.0}))
    runs.do(recipe, *words, f"run.dir={tmp_path / 'other'}")
    changed = runs.metrics(tmp_path / "other" / "train")
    assert changed[:2] == whole[:2]
    assert changed[2]["loss"] != whole[2]["loss"]


def test_an_unreadable_record(recipe: Path, tmp_path: Path):
    runs.do(recipe, "train.stop_after=1")
    (tmp_path / "run" / "train" / "beta.json").write_text("{")
    with pytest.raises(UserError, match=r"beta\.json can't be read: .*Delete .* to start over"):
        runs.do(recipe)


def test_fewer_than_32_images(tmp_path: Path, tiny_folder: Path):
    values = runs.tiny_recipe(tmp_path, tiny_folder, runs.two_splits(tmp_path / "d.parquet", 31, 4))
    values["loss"]["beta"] = "auto"
    path = runs.write_recipe(tmp_path / "recipe.yaml", values)
    with pytest.raises(UserError) as caught:
        runs.do(path)
    assert "data.train_split=train has 31 usable images" in str(caught.value)
    assert "allowed: auto with 32 or more" in str(caught.value)
    runs.do(path, "loss.objective=cca_code", "train.max_steps=1", f"run.dir={tmp_path / 'code'}")


def test_the_control_does_not_measure(recipe: Path, tmp_path: Path):
    runs.do(recipe, "run.sources=[base,control]", "train.control=true", "train.max_steps=1")
    assert (tmp_path / "run" / "control").is_dir()
    assert not (tmp_path / "run" / "control" / "beta.json").exists()


def test_what_decides_training(recipe: Path):
    """With auto, the length at which a number was tuned decides nothing."""
    auto = settings_of(TRAIN, runs.load_recipe(recipe))
    assert auto["loss.beta"] == "auto"
    assert "loss.beta_codes" not in auto
    assert settings_of(TRAIN, runs.load_recipe(recipe, "loss.beta=1"))["loss.beta_codes"] == 576
    no_cca = settings_of(TRAIN, runs.load_recipe(recipe, "loss.objective=nll"))
    assert no_cca.keys().isdisjoint(("loss.beta", "loss.beta_codes"))


@pytest.mark.parametrize(("text", "value"), [("1", 1.0), ("1e-3", 0.001), ("auto", "auto")])
def test_numbers_and_the_word(recipe: Path, text: str, value: object):
    found = runs.load_recipe(recipe, f"loss.beta={text}").loss.beta
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["0", "-1", ".inf", ".nan", "much", "true", "null", "[0.1]"])
def test_bad_values(recipe: Path, text: str):
    message = runs.message_of(recipe, f"loss.beta={text}")
    assert "loss.beta is " in message
    if text not in ("true", "null", "[0.1]"):
        assert "allowed: above 0 and at most 1,000,000, or auto" in message
    assert math.isfinite(runs.load_recipe(recipe, "loss.beta=0.5").loss.beta)
