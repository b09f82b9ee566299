"""The words that ``edit`` swaps: the shipped lists, and what a recipe's own file adds to them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mm_cca.errors import UserError
from mm_cca.negatives.captions import WORD, normalise

# Captions are looked through word by word, so a phrase can be made of nothing else.
_PHRASE = re.compile(rf"{WORD.pattern}(?:\s+{WORD.pattern})*")


@dataclass(frozen=True)
class Spelling:
    """One way to write a value: its words, and where in ``WordLists.groups`` the value stands."""

    words: tuple[str, ...]
    group: int
    value: int


@dataclass(frozen=True)
class Group:
    """Values of one kind that can stand for one another; the first spelling is the written one."""

    kind: str
    name: str
    values: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class WordLists:
    """groups, and ``starts``: the spellings that begin with a word, longest first."""

    groups: tuple[Group, ...]
    starts: dict[str, tuple[Spelling, ...]]

    @property
    def kinds(self) -> list[str]:
        """Names of the kinds, sorted."""
        return sorted({group.kind for group in self.groups})


Groups = dict[tuple[str, str], list[list[str]]]
"""(kind, name of the list) -> values -> spellings; the name is "" for a kind of one list."""


def load_words(path: str | None = None) -> WordLists:
    """The shipped lists, extended by the file at ``path``.

    Raises:
        UserError: the file can't be read, or an entry of it can't be used.
    """
    groups: Groups = {}
    shipped = resources.files("mm_cca.negatives").joinpath("words.yaml")
    _extend(groups, yaml.safe_load(shipped.read_text(encoding="utf-8")), "words.yaml")
    if path is not None:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"data.attribute_words {path} can't be read: {error}") from error
        _extend(groups, content, path)
    return _index(groups)


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
            word: tuple(sorted(found, key=lambda s: (-len(s.words), s.words)))
            for word, found in starts.items()
        },
    )


def _extend(groups: Groups, content: Any, path: str) -> None:
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds {type(content).__name__}, not a mapping of kinds to lists of words; "
            "write as in mm_cca/negatives/words.yaml: colour: [red, [grey, gray]]."
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
                    f"{path}: {_title(key)} has {len(values)} value; allowed: two or more, so "
                    "that one can be swapped for another."
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
            f"{path}: {kind} is made of the lists {', '.join(known)}; name the one to extend or a "
            f"new one, as in {kind}: {{{known[0]}: [...]}}."
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
                f"{where} is {entry!r}; allowed: a word or phrase of letters, digits and "
                "hyphens, or a list of spellings of one value. Put quotes around yes, no, on, "
                "off and numbers."
            )
    return [normalise(text) for text in spellings]


def _add(
    values: list[list[str]],
    spellings: list[str],
    key: tuple[str, str],
    places: dict[str, tuple[tuple[str, str], int]],
    where: str,
) -> None:
    """A new value, or more spellings of the one that has one of them already."""
    known = {places[text] for text in spellings if text in places}
    if len(known) > 1 or any(place[0] != key for place in known):
        there = ", ".join(
            f"{text!r} in {_title(places[text][0])}" for text in spellings if text in places
        )
        raise UserError(
            f"{where} is {', '.join(spellings)}, but there is already {there}; a word can stand "
            "for one value only."
        )
    value = known.pop()[1] if known else len(values)
    if value == len(values):
        values.append([])
    for text in spellings:
        if text not in values[value]:
            values[value].append(text)
            places[text] = (key, value)
