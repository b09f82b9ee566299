"""What a check is, and the plain kinds of them: pure functions of a key and its value."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Check = tuple[str, Any, bool, str]
"""Key, value, whether it is right, what is allowed."""


def one_of(key: str, value: str, allowed: Iterable[str]) -> Check:
    """One of these words."""
    return key, value, value in tuple(allowed), ", ".join(allowed)


def at_least(key: str, value: float, low: float) -> Check:
    """``low`` or more, and finite."""
    return key, value, low <= value < math.inf, f"{low} or more"


def above(key: str, value: float, low: float) -> Check:
    """More than ``low``, and finite."""
    return key, value, low < value < math.inf, f"more than {low}"


def fraction(key: str, value: float) -> Check:
    """0 up to, but not, 1."""
    return key, value, 0 <= value < 1, "0 up to, but not, 1"


def no_two_alike(key: str, values: Sequence[float | str]) -> Check:
    """Values that become names of arms."""
    # Numbers become names of arms with six digits.
    names = [value if isinstance(value, str) else f"{value:g}" for value in values]
    return key, values, len(set(names)) == len(names), "no two alike"


def when(condition: bool, check: Callable[[], Check]) -> list[Check]:
    """The check, where it applies."""
    return [check()] if condition else []
