"""The declared keys of a recipe: type, default, range, docstring.

Checks, ``mm-cca explain``, the reference table, the JSON schema and the settings that make a stage
stale are all derived from them.
"""

import ast
import inspect
import textwrap
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import lru_cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import MISSING as REQUIRED

from mm_cca.config.keys import Key


@dataclass(frozen=True)
class Declared:
    """A declared key of a recipe.

    Attributes:
        name: dotted, such as ``loss.beta``.
        kind: its type without None.
        optional: whether null is allowed.
        default: ``omegaconf.MISSING`` if it is required.
        rules: see ``Key``.
        doc: its docstring, lines joined.
    """

    name: str
    kind: Any
    optional: bool
    default: Any
    rules: Key
    doc: str

    @property
    def required(self) -> bool:
        """Whether a recipe must set it."""
        return isinstance(self.default, str) and self.default == REQUIRED

    @property
    def is_list(self) -> bool:
        return get_origin(self.kind) is list

    @property
    def item(self) -> Any:
        """The type of a value, or of an item of a list."""
        return get_args(self.kind)[0] if self.is_list else self.kind

    @property
    def choices(self) -> tuple[str, ...]:
        """Allowed values; empty if any text is allowed."""
        literal = get_origin(self.item) is Literal
        return get_args(self.item) if literal else self.rules.choices

    @property
    def allowed(self) -> str:
        """What is allowed, as shown in messages; empty if every value of the type is."""
        if self.rules.allowed:
            return self.rules.allowed
        text = ", ".join(self.choices) or _range(self.rules)
        text = ", or ".join([text, *self.rules.words])
        return f"{text}, or null" if text and self.optional else text


def declared(schema: type) -> dict[str, Declared]:
    """Every key of a recipe's schema by its dotted name, in the order of the schema."""
    return _read(schema, "")


@lru_cache
def _read(schema: type, prefix: str) -> dict[str, Declared]:
    hints, docs = get_type_hints(schema), docstrings(schema)
    keys: dict[str, Declared] = {}
    for entry in fields(schema):
        name, hint = f"{prefix}{entry.name}", hints[entry.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            keys |= _read(hint, f"{name}.")
            continue
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        optional = NoneType in get_args(hint)
        rules = entry.metadata.get("key", Key())
        keys[name] = Declared(
            name,
            # With words in place of a number, the number's type.
            kinds[0] if optional or rules.words else hint,
            optional,
            _default(entry),
            rules,
            docs.get(entry.name, ""),
        )
    return keys


def docstrings(schema: type) -> dict[str, str]:
    """Field -> the string literal under it, on one line; fields without one are left out."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for statement, below in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            docs[statement.target.id] = " ".join(str(below.value.value).split())
    return docs


def _default(entry: "Field[Any]") -> Any:
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    return entry.default


def _range(rules: Key) -> str:
    """``above 0 and at most 1``, ``1 to 100``, ``1 or more``; empty without bounds."""
    if rules.at_least is not None and rules.at_most is not None:
        return f"{_number(rules.at_least)} to {_number(rules.at_most)}"
    low = [
        f"{word} {_number(bound)}"
        for word, bound in (("at least", rules.at_least), ("above", rules.above))
        if bound is not None
    ]
    high = [
        f"{word} {_number(bound)}"
        for word, bound in (("at most", rules.at_most), ("below", rules.below))
        if bound is not None
    ]
    if rules.at_least is not None and not high:
        return f"{_number(rules.at_least)} or more"
    return " and ".join(low + high)


def _number(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"
