"""Weighted sums as a recipe spells them."""

import pytest

from mm_cca.config.mixtures import parse_sum

NAMES = ("cca", "nll", "distill")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cca", {"cca": 1.0}),
        ("cca + 0.1 nll", {"cca": 1.0, "nll": 0.1}),
        ("0.5*cca+ 2 distill", {"cca": 0.5, "distill": 2.0}),
        ("1e-2 nll", {"nll": 0.01}),
    ],
)
def test_sums(text: str, expected: dict[str, float]):
    assert parse_sum(text, NAMES) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not a valid term"),
        ("cca +", "is not a valid term"),
        ("cca - nll", "is not a valid term"),
        ("nl", "did you mean nll"),
        ("cca + cca", "appears twice"),
        ("0 cca", "above 0"),
        ("1.2.3 cca", "is not a number"),
        ("1e999 cca", "above 0 and finite"),
    ],
)
def test_invalid_sums(text: str, problem: str):
    with pytest.raises(ValueError, match=problem):
        parse_sum(text, NAMES)
