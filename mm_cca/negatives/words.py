"""The attribute words that ``edit`` swaps: the built-in lists, extended by a recipe's own file."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mm_cca.errors import UserError
from mm_cca.negatives.captions import WORD, normalise

MAX_BYTES = 1_000_000
"""The largest file of words that is read."""
# Captions are searched word by word, so a phrase must consist of words only.
_PHRASE = re.compile(rf"{WORD.pattern}(?:\s+{WORD.pattern})*")


@dataclass(frozen=True)
class Spelling:
    """One spelling of a value: its words, and the value's position in ``WordLists.groups``."""

    words: tuple[str, ...]
    group: int
    value: int


@dataclass(frozen=True)
class Group:
    """Values of one kind that can replace one another; edits write the first spelling of each."""

    kind: str
    name: str
    values: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class WordLists:
    """Attribute words.

    Attributes:
        groups: all groups of values.
        starts: first word -> the spellings that begin with it, longest first.
    """

    groups: tuple[Group, ...]
    starts: dict[str, tuple[Spelling, ...]]

    @property
    def kinds(self) -> list[str]:
        """Names of the kinds, sorted."""
        return sorted({group.kind for group in self.groups})


Groups = dict[tuple[str, str], list[list[str]]]
"""(kind, name of the list) -> values -> spellings; the name is "" for a kind of one list."""


def load_words(path: str | None = None) -> WordLists:
    """The built-in lists, extended by the file at ``path``.

    Raises:
        UserError: the file can't be read, or has an invalid entry.
    """
    groups: Groups = {}
    built_in = resources.files("mm_cca.negatives").joinpath("words.yaml")
    _extend(groups, yaml.safe_load(built_in.read_text(encoding="utf-8")), "words.yaml")
    if path is not None:
        try:
            content = yaml.safe_load(_text_of(Path(path)))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            name = path if len(path) <= 500 else f"{path[:500]}..."
            raise UserError(f"data.attribute_words {name} can't be read: {why}") from error
        _extend(groups, content, path)
    return _index(groups)


def _text_of(path: Path) -> str:
    """Raises ValueError for what never ends, such as a device or a pipe."""
    if not path.is_file():
        raise ValueError("it is not a file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return path.read_text(encoding="utf-8")


def _index(groups: Groups) -> WordLists:
    starts: dict[str, list[Spelling]] = {}
    for g, values in enumerate(groups.values()):
        for v, spellings in enumerate(values):
            for text in spellings:
                words = tuple(WORD.findall(text))
                starts.setdefault(words[0], []).append(Spelling(words, g, v))
    return WordLists(
        tuple(
            Group(kind, name, tuple(map(tuple, values))) for (kind, name), values in groups.items()
        ),
        {
            word: tuple(sorted(spellings, key=lambda s: (-len(s.words), s.words)))
            for word, spellings in starts.items()
        },
    )


def _extend(groups: Groups, content: Any, path: str) -> None:
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds {type(content).__name__}, not a mapping of kinds to lists of words; "
            "use the form of mm_cca/negatives/words.yaml: colour: [red, [grey, gray]]."
        )
    places = {
        text: (key, v)
        for key, values in groups.items()
        for v, spellings in enumerate(values)
        for text in spellings
    }
    for kind, listing in content.items():
        for key, entries in _listings(groups, kind, listing, path):
            values = groups.setdefault(key, [])
            for place, entry in enumerate(entries, start=1):
                where = f"{path}: {_title(key)}, entry {place}"
                _add(values, _spellings(entry, where), key, places, where)
            if len(values) < 2:
                raise UserError(
                    f"{path}: {_title(key)} has {len(values)} value; allowed: two or more, as one "
                    "is swapped for another."
                )


def _listings(
    groups: Groups, kind: Any, listing: Any, path: str
) -> Iterator[tuple[tuple[str, str], list[Any]]]:
    if not isinstance(kind, str) or not kind.isidentifier():
        raise UserError(f"{path}: the kind {kind!r} must be one word, such as colour or skin_tone.")
    named = listing if isinstance(listing, dict) else {"": listing}
    known = [name for other, name in groups if other == kind and name]
    if "" in named and known:
        raise UserError(
            f"{path}: {kind} has the lists {', '.join(known)}; name the one to extend or a new "
            f"one, as in {kind}: {{{known[0]}: [...]}}."
        )
    for name, entries in named.items():
        key = (kind, str(name))
        if not isinstance(entries, list):
            raise UserError(f"{path}: {_title(key)} is {entries!r}, not a list of words.")
        yield key, entries


def _title(key: tuple[str, str]) -> str:
    return f"{key[0]} ({key[1]})" if key[1] else key[0]


def _spellings(entry: Any, where: str) -> list[str]:
    spellings = entry if isinstance(entry, list) and entry else [entry]
    for text in spellings:
        if not isinstance(text, str) or not _PHRASE.fullmatch(text):
            raise UserError(
                f"{where} is {entry!r}; allowed: a word or phrase of letters, digits and hyphens, "
                "or a list of spellings of one value. Quote yes, no, on, off and numbers."
            )
    return [normalise(text) for text in spellings]


def _add(
    values: list[list[str]],
    spellings: list[str],
    key: tuple[str, str],
    places: dict[str, tuple[tuple[str, str], int]],
    where: str,
) -> None:
    """Add a value, or more spellings to the value that already has one of them."""
    known = {places[text] for text in spellings if text in places}
    if len(known) > 1 or any(place[0] != key for place in known):
        existing = ", ".join(
            f"{text!r} in {_title(places[text][0])}" for text in spellings if text in places
        )
        raise UserError(
            f"{where} is {', '.join(spellings)}, but there is already {existing}; a word can be a "
            "spelling of one value only."
        )
    value = known.pop()[1] if known else len(values)
    if value == len(values):
        values.append([])
    for text in spellings:
        if text not in values[value]:
            values[value].append(text)
            places[text] = (key, value)
