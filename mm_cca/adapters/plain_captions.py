"""Captions as plain text: a control token that is written in one never becomes that token.

Captions of real data hold "<image>", "</s>" and the like, and a tokenizer that finds its own start
of an image or end of a turn in a caption would train and draw something else without a word.
"""

import json
import re
import secrets
from collections.abc import Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

_WORDS = re.compile(
    r"[\s▁]*|</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub"
    r"|sup|code|a|p|ul|ol|li|br|hr)>"
)
"""Tokens that Gemma adds for its text: white space and HTML. They control nothing, unless the
tokenizer itself calls them special."""


def ids_around(
    tokenizer: Any, before: str, texts: Sequence[str], after: str = ""
) -> list[list[int]]:
    """Token ids of ``before + text + after``, without what the tokenizer adds by itself.

    Control tokens are found in ``before`` and ``after`` only; texts without any get the ids that
    the tokenizer gives to the whole.

    Args:
        tokenizer: of transformers, backed by tokenizers.
        before: part of the family's prompt.
        texts: captions or plain texts of a user.
        after: part of the family's prompt.
    """
    found = _FOUND.get(tokenizer)
    if found is None:
        found = _FOUND[tokenizer] = _ControlTokens(tokenizer)
    whole = [f"{before}{text}{after}" for text in texts]
    rows: list[list[int]] = tokenizer([f"{before}{after}", *whole], add_special_tokens=False)[
        "input_ids"
    ]
    expected = found.count(rows[0])
    return [
        ids if found.count(ids) == expected else found.ids(before, text, after)
        for ids, text in zip(rows[1:], texts, strict=True)
    ]


class _ControlTokens:
    """The control tokens of a tokenizer, and a copy of it that knows them by other names.

    The names can't be guessed, so that no text contains one by accident or on purpose.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._controls = {
            place: str(token.content)
            for place, token in tokenizer.added_tokens_decoder.items()
            if token.special or not _WORDS.fullmatch(token.content)
        }
        number = secrets.randbelow(10**18)
        self._names = {
            content: f"\ue000{number}\ue001{place}\ue002"
            for place, content in self._controls.items()
        }

    def count(self, ids: Sequence[int]) -> int:
        """How many of the ids are control tokens."""
        return sum(place in self._controls for place in ids)

    def ids(self, before: str, text: str, after: str) -> list[int]:
        """The ids with control tokens in ``before`` and ``after`` only."""
        framed = f"{self._renamed(before)}{text}{self._renamed(after)}"
        copy, original = self._copy
        ids = copy.encode(framed, add_special_tokens=False).ids
        return [original.get(place, place) for place in ids]

    @cached_property
    def _copy(self) -> tuple[Tokenizer, dict[int, int]]:
        """The copy, and the original id of every added token of it."""
        settings = json.loads(self._backend.to_str())
        settings |= {"post_processor": None, "truncation": None, "padding": None}
        added = settings["added_tokens"]
        for token in added:
            token["content"] = self._names.get(token["content"], token["content"])
        copy = Tokenizer.from_str(json.dumps(settings))
        places = [(copy.token_to_id(token["content"]), token["id"]) for token in added]
        return copy, {copied: place for copied, place in places if copied is not None}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._names, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _renamed(self, part: str) -> str:
        return self._pattern.sub(lambda match: self._names[match.group()], part)


_FOUND: WeakKeyDictionary[Any, _ControlTokens] = WeakKeyDictionary()
