"""Warnings of training: each at the right values, once, and only after a full window."""

from mm_cca.training.health import Constants, Health, warnings_of

CODES = Constants(num_codes=64, beta=0.18)


def test_a_healthy_run_is_silent():
    assert warnings_of({"positive_gap": -20.0, "negative_gap": -60.0}, CODES) == {}
    assert warnings_of({"positive_gap": None, "negative_gap": None}, CODES) == {}
    assert warnings_of({"loss": 3.0}, CODES) == {}


def test_both_likelihoods_falling():
    found = warnings_of({"positive_gap": -65.0, "negative_gap": -66.0}, CODES)
    assert list(found) == ["collapse"]
    assert "-1.02 nats per code: the likelihood of the training images" in found["collapse"]
    assert "Raise loss.beta, or lower loss.lambda_" in found["collapse"]


def test_saturated_negatives():
    found = warnings_of({"positive_gap": 0.0, "negative_gap": -77.0}, CODES)
    assert list(found) == ["saturated"]
    assert "is -14:" in found["saturated"]


def test_without_cca_nothing_saturates():
    """For dpo only the margin counts: a collapse gives no other warning."""
    numbers = {"positive_gap": -200.0, "negative_gap": -202.0}
    assert list(warnings_of(numbers, Constants(64, None))) == ["collapse"]


def test_with_a_floor_the_floored_gap_saturates():
    numbers = {"positive_gap": 0.0, "negative_gap": -500.0, "floored_gap": -60.0}
    assert warnings_of(numbers, CODES) == {}
    found = warnings_of(numbers | {"floored_gap": -77.0}, CODES)
    assert "beta * floored_gap is -14:" in found["saturated"]


def test_saturated_drawn_pictures():
    of_ddo = Constants(num_codes=64, beta=None, drawn_beta=0.18)
    assert warnings_of({"positive_gap": 0.0, "drawn_gap": -60.0}, of_ddo) == {}
    found = warnings_of({"positive_gap": 0.0, "drawn_gap": -77.0}, of_ddo)
    assert list(found) == ["drawn"]
    assert "beta * drawn_gap is -14:" in found["drawn"]


def test_unlearn_is_watched():
    numbers = {"positive_gap": 0.0, "negative_gap": -70.0}
    assert warnings_of(numbers, Constants(64, None)) == {}
    assert list(warnings_of(numbers, Constants(64, None, unbounded=True))) == ["unbounded"]


def test_means_over_a_full_window_and_each_sentence_once():
    health = Health(CODES, window=4)
    steps = [{"positive_gap": g, "negative_gap": 0.0} for g in (0.0, -100.0, -100.0, None)]
    assert [health.see(step) for step in steps[:3]] == [[], [], []]
    (sentence,) = health.see(steps[3])  # mean of three: -66.7
    assert "-1.04 nats per code" in sentence
    assert health.see(steps[1]) == []
