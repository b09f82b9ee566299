"""Negative captions by edit: one attribute swapped for another of its kind (red to blue)."""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mm_cca.negatives.captions import WORD, normalise
from mm_cca.negatives.words import Group, Spelling, WordLists

_ARTICLE = re.compile(r"(?<![\w'’-])([aA])[nN]?(\s+)$")
_SOUNDS_LIKE_A_CONSONANT = re.compile(r"one\b|once|uni|use|usu|eu|ut[ei]")
_SOUNDS_LIKE_A_VOWEL = re.compile(r"[aeiou]|hour|honest|heir|8|11\b|18\b")


@dataclass(frozen=True)
class Attribute:
    """The position of an attribute in a caption, and which value of which group it is."""

    start: int
    end: int
    group: Group
    value: int

    @property
    def alternatives(self) -> list[str]:
        """The other values of the group, in their first spelling."""
        return [v[0] for i, v in enumerate(self.group.values) if i != self.value]


def attributes_of(caption: str, lists: WordLists) -> list[Attribute]:
    """The attributes in order of position; a phrase takes precedence over the words inside it."""
    words = [(m.start(), m.end(), m.group().casefold()) for m in WORD.finditer(caption)]
    attributes, i = [], 0
    while i < len(words):
        spelling = _spelling_at(caption, words, i, lists)
        if spelling is None:
            i += 1
            continue
        last = i + len(spelling.words)
        group = lists.groups[spelling.group]
        attributes.append(Attribute(words[i][0], words[last - 1][1], group, spelling.value))
        i = last
    return attributes


def _spelling_at(
    caption: str, words: list[tuple[int, int, str]], i: int, lists: WordLists
) -> Spelling | None:
    for spelling in lists.starts.get(words[i][2], ()):
        run = words[i : i + len(spelling.words)]
        if tuple(word for _, _, word in run) != spelling.words:
            continue
        # "light, blue" is not the phrase "light blue".
        if all(caption[left[1] : right[0]].isspace() for left, right in itertools.pairwise(run)):
            return spelling
    return None


def swap(caption: str, attribute: Attribute, value: str) -> str:
    """The caption with another value in place of ``attribute``; a/an and capital are adapted."""
    before, old = caption[: attribute.start], caption[attribute.start : attribute.end]
    if old[0].isupper():
        value = value[0].upper() + value[1:]
    article = _ARTICLE.search(before)
    if article:
        n = "n" if _takes_an(value.casefold()) else ""
        before = before[: article.start()] + article[1] + n + article[2]
    return before + value + caption[attribute.end :]


def _takes_an(word: str) -> bool:
    vowel = _SOUNDS_LIKE_A_VOWEL.match(word) is not None
    return vowel and _SOUNDS_LIKE_A_CONSONANT.match(word) is None


def variants(caption: str, lists: WordLists) -> dict[str, list[str]]:
    """All captions with one attribute swapped, by kind of attribute.

    Of an attribute that occurs twice, each variant changes one occurrence. The caption itself is
    not included; a kind that is not in the caption has no entry.
    """
    by_kind: dict[str, list[str]] = {}
    for attribute in attributes_of(caption, lists):
        edits = by_kind.setdefault(attribute.group.kind, [])
        for value in attribute.alternatives:
            edited = swap(caption, attribute, value)
            if normalise(edited) != normalise(caption) and edited not in edits:
                edits.append(edited)
    return {kind: edits for kind, edits in by_kind.items() if edits}


def edit(
    caption: str,
    lists: WordLists,
    *,
    which: float,
    value: float,
    refused: Callable[[str], bool],
) -> str | None:
    """The caption with one attribute swapped.

    Args:
        caption: as it is in the data.
        lists: attribute words.
        which: at least 0 and below 1, picks the attribute.
        value: at least 0 and below 1, picks its new value.
        refused: edits for which this is true are skipped.

    Returns:
        None if the caption has no attribute, or all edits are refused.
    """
    own = normalise(caption)
    for edited in _edits_from(caption, attributes_of(caption, lists), which, value):
        if normalise(edited) != own and not refused(edited):
            return edited
    return None


def _edits_from(
    caption: str, attributes: list[Attribute], which: float, value: float
) -> Iterator[str]:
    """All edits in cyclic order, starting with the one that ``which`` and ``value`` pick."""
    first = int(which * len(attributes))
    for attribute in attributes[first:] + attributes[:first]:
        values = attribute.alternatives
        start = int(value * len(values))
        for new in values[start:] + values[:start]:
            yield swap(caption, attribute, new)
