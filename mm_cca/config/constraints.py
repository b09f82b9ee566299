"""The type of a check, and the checks derived from the declarations of keys."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from mm_cca.config.declarations import Declared
from mm_cca.config.raw_values import shown

Check = tuple[str, Any, bool, str]
"""Key, value, whether it is valid, what is allowed."""


def failures(checks: Iterable[Check]) -> list[str]:
    """One sentence for every check that fails."""
    return [
        f"{key} is {shown(value)}; allowed: {allowed}"
        for key, value, valid, allowed in checks
        if not valid
    ]


def declared_checks(keys: Mapping[str, Declared], values: Mapping[str, Any]) -> Iterator[Check]:
    """Checks of range, choices and number of items, as declared, of every key in ``values``."""
    for name, value in values.items():
        entry = keys[name]
        if value is None:
            continue
        if not entry.is_list:
            yield name, value, _fits(entry, value), entry.allowed
            continue
        if entry.rules.items is not None:
            low, high = entry.rules.items
            valid = low <= len(value) and (high is None or len(value) <= high)
            if high is not None:  # such as [height, width]: the items are one value
                valid = valid and all(_fits(entry, item) for item in value)
            yield name, value, valid, entry.allowed
        if entry.rules.items is None or entry.rules.items[1] is None:
            yield from ((name, item, _fits(entry, item), entry.allowed) for item in value)
        if entry.rules.distinct:
            yield name, value, _all_different(value), "all values different"


def _fits(entry: Declared, value: object) -> bool:
    if isinstance(value, bool):
        return True
    if isinstance(value, str):
        allowed = entry.choices or entry.rules.words
        return not allowed or value in allowed
    return not isinstance(value, int | float) or entry.rules.has(value)


def _all_different(values: list[Any]) -> bool:
    # The names of arms show numbers with six digits.
    names = [value if isinstance(value, str) else f"{value:g}" for value in values]
    return len(set(names)) == len(names)


def invalid_choices(entry: Declared, value: Any) -> list[Any]:
    """The values (of a list: its items) that are not among the choices of a ``Literal``."""
    if get_origin(entry.item) is not Literal or value is None:
        return []
    items = value if isinstance(value, list) else [value]
    return [item for item in items if item not in get_args(entry.item)]
