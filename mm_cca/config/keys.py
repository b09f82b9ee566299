"""How a key of a recipe is declared: its range, its choices, and the stages it decides.

In the schema files a field's default is ``key(...)`` and a docstring follows it;
``declarations.py`` reads both.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from omegaconf import MISSING as REQUIRED


@dataclass(frozen=True)
class Condition:
    """When a key decides a stage.

    Attributes:
        text: in a sentence, such as ``train.keep is best``.
        holds: whether it holds for a recipe.
    """

    text: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Decides:
    """A stage whose result a key decides.

    Attributes:
        stage: its name.
        label: its name for users.
        condition: None if it always does.
    """

    stage: str
    label: str
    condition: Condition | None = None

    def given(self, condition: Condition) -> "Decides":
        """The same stage, only under a condition."""
        return replace(self, condition=condition)


TOKENS = Decides("tokens", "token cache")
SHARDS = Decides("shards", "files of the token cache, while it is incomplete")
REFERENCE = Decides("reference", "reference cache")
TRAIN = Decides("train", "training")
STEPS = Decides("steps", "number of training steps (more steps extend a finished run)")
ARMS = Decides("arms", "which arms are trained and sampled")
SAMPLE = Decides("sample", "samples")
ENGINE = Decides(
    "engine",
    "samples of arms without guidance that are not finished; whether two runs can be compared",
)
EVAL = Decides("eval", "scores")
COMPARISON = Decides("comparison", "whether two runs can be compared")
REPORT = Decides("report", "report")
DEMO = Decides("demo", "training of the demo's tokenizer or scorer")

MAX_SEED = 2**32 - 1
"""The largest that every generator of random numbers takes."""


@dataclass(frozen=True)
class Key:
    """The declaration of a key, apart from its type, default and docstring.

    Attributes:
        at_least, above, at_most, below: the range of a number, or of each number of a list.
        items: minimum and maximum (None: no maximum) length of a list.
        distinct: all items of a list must differ; numbers are compared with six digits.
        choices: allowed values, if the type is not a ``Literal``.
        words: texts that are allowed in place of a number; the type is then ``float | str``.
        allowed: what is allowed, if range and choices do not fully describe it.
        decides: the stages whose results depend on it; empty: it may change at any time.
        content: the value is a file that is compared by content, not by path: by its bytes
            (``file``), together with the built-in attribute words (``words``), or by the texts
            read from it (``texts``).
        reason: why a seemingly harmless change is refused.
        free_text: a sentence, not a name or a path: may be empty, long and have line breaks.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    items: tuple[int, int | None] | None = None
    distinct: bool = False
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    allowed: str = ""
    decides: tuple[Decides, ...] = ()
    content: Literal["file", "words", "texts"] | None = None
    reason: str = ""
    free_text: bool = False

    def has(self, value: float) -> bool:
        """Whether a number is finite and in the range."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def key(
    default: Any = REQUIRED,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    items: tuple[int, int | None] | None = None,
    distinct: bool = False,
    choices: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    allowed: str = "",
    decides: tuple[Decides, ...] = (),
    content: Literal["file", "words", "texts"] | None = None,
    reason: str = "",
    free_text: bool = False,
) -> Any:
    """A field of a recipe; see ``Key`` for the arguments. Without ``default`` it is required."""
    rules = Key(
        at_least=at_least,
        above=above,
        at_most=at_most,
        below=below,
        items=items,
        distinct=distinct,
        choices=choices,
        words=words,
        allowed=allowed,
        decides=decides,
        content=content,
        reason=reason,
        free_text=free_text,
    )
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"key": rules})
    return field(default=default, metadata={"key": rules})


def objective_has(*names: str) -> Condition:
    """``loss.objective`` has one of these terms."""
    return Condition(
        f"loss.objective has {_either(names)}",
        lambda recipe: not set(names).isdisjoint(re.findall("[a-z_]+", recipe.loss.objective)),
    )


def is_set_to(name: str, value: str) -> Condition:
    """A dotted key has this value."""
    return Condition(f"{name} is {value}", lambda recipe: value_of(recipe, name) == value)


def is_given(name: str) -> Condition:
    """A dotted key is not null.

    Keys that are null by default decide only where they are set, so that older runs stay valid.
    """
    return Condition(f"{name} is set", lambda recipe: value_of(recipe, name) is not None)


def is_above_zero(name: str) -> Condition:
    """A dotted key is a number above 0."""
    return Condition(f"{name} is above 0", lambda recipe: value_of(recipe, name) > 0)


def _either(names: tuple[str, ...]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def value_of(recipe: Any, name: str) -> Any:
    """The value of a dotted key."""
    value = recipe
    for part in name.split("."):
        value = getattr(value, part)
    return value
