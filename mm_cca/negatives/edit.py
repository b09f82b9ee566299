"""One attribute of a caption swapped for another of its kind: a red kangaroo, a blue kangaroo."""

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
    """Where in a caption an attribute stands, and which value of which group it is."""

    start: int
    end: int
    group: Group
    value: int

    @property
    def others(self) -> list[str]:
        """The other values of the group, as they are written."""
        return [v[0] for i, v in enumerate(self.group.values) if i != self.value]


def attributes_of(caption: str, lists: WordLists) -> list[Attribute]:
    """The attributes in the order they stand; longer phrases before the words inside them."""
    words = [(m.start(), m.end(), m.group().casefold()) for m in WORD.finditer(caption)]
    found, i = [], 0
    while i < len(words):
        spelling = _spelling_at(caption, words, i, lists)
        if spelling is None:
            i += 1
            continue
        last = i + len(spelling.words)
        group = lists.groups[spelling.group]
        found.append(Attribute(words[i][0], words[last - 1][1], group, spelling.value))
        i = last
    return found


def _spelling_at(
    caption: str, words: list[tuple[int, int, str]], i: int, lists: WordLists
) -> Spelling | None:
    for spelling in lists.starts.get(words[i][2], ()):
        run = words[i : i + len(spelling.words)]
        if tuple(word for _, _, word in run) != spelling.words:
            continue
        # "light, blue" is no light blue.
        if all(caption[left[1] : right[0]].isspace() for left, right in itertools.pairwise(run)):
            return spelling
    return None


def swap(caption: str, attribute: Attribute, value: str) -> str:
    """The caption with another value there; the case of its first letter and a/an follow."""
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
    """For every kind of attribute in the caption the captions with each other value instead.

    An attribute that stands there twice is changed once at a time. The caption itself is not among
    them; a kind that is not in the caption has no entry.
    """
    found: dict[str, list[str]] = {}
    for attribute in attributes_of(caption, lists):
        others = found.setdefault(attribute.group.kind, [])
        for value in attribute.others:
            other = swap(caption, attribute, value)
            if normalise(other) != normalise(caption) and other not in others:
                others.append(other)
    return {kind: others for kind, others in found.items() if others}


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
        caption: as it stands in the data.
        lists: attribute words.
        which: 0 up to 1, picks the attribute.
        value: 0 up to 1, picks its new value.
        refused: edits for which this is true are passed over.

    Returns:
        None if the caption has no attribute, or all edits are refused.
    """
    own = normalise(caption)
    for other in _edits_from(caption, attributes_of(caption, lists), which, value):
        if normalise(other) != own and not refused(other):
            return other
    return None


def _edits_from(
    caption: str, attributes: list[Attribute], which: float, value: float
) -> Iterator[str]:
    """All edits, from the drawn one on and around."""
    first = int(which * len(attributes))
    for attribute in attributes[first:] + attributes[:first]:
        others = attribute.others
        start = int(value * len(others))
        for new in others[start:] + others[:start]:
            yield swap(caption, attribute, new)
