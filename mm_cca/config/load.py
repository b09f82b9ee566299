"""Load a YAML file and ``key=value`` overrides as a typed recipe.

Precedence: defaults in ``schema.py`` < the YAML file < overrides. All mistakes are reported
together, before any weights are read.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mm_cca.config.declarations import declared
from mm_cca.config.schema import JOBS, AnyRecipe
from mm_cca.config.shipped import find_recipe
from mm_cca.errors import UserError


def load_config(path_or_name: str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read, merge and validate a recipe.

    Args:
        path_or_name: a YAML file, or the name of a built-in recipe (``mm-cca ls``).
        overrides: ``key=value`` with dotted keys; the value is parsed as YAML.

    Raises:
        UserError: every mistake in one message.
    """
    from mm_cca.config.constraints import declared_checks, failures, invalid_choices
    from mm_cca.config.validate import problems

    path = find_recipe(path_or_name)
    raw = _read_yaml(path)
    for override in overrides:
        _apply_override(raw, override)
    job = raw.get("job", "finetune")
    if job not in JOBS:
        raise UserError(f"{path}: job is {job!r}; allowed: {', '.join(JOBS)}.")
    schema = JOBS[job]
    recipe = OmegaConf.structured(schema)
    errors: list[str] = []
    keys = declared(schema)
    for key, value in _leaves(raw, schema):
        if (unknown := _unknown_key(key, keys)) is not None:
            errors.append(unknown)
            continue
        if isinstance(value, dict):
            errors.append(
                f"{key} is {value!r}, a mapping; a text that begins with a brace needs quotes "
                f"""inside the value: '{key}="{{prompt}} ..."'"""
            )
            continue
        entry = keys[key]
        if invalid := invalid_choices(entry, value):
            errors += [f"{key} is {choice!r}; allowed: {entry.allowed}" for choice in invalid]
            continue
        single = entry.is_list and value is not None and not isinstance(value, list)
        try:
            as_typed = _number_of(value) if entry.rules.words else value
            OmegaConf.update(
                recipe, key, [value] if single else as_typed
            )  # sample.dial=0.5 is [0.5]
        except OmegaConfBaseException as error:
            errors.append(f"{key} is {value!r}: {str(error).splitlines()[0]}")
    given = {key for key, _ in _leaves(raw, schema)}
    missing = OmegaConf.missing_keys(recipe)
    errors += [f"{key} is missing; set it in the YAML file" for key in missing - given]
    if missing:  # then only keys that stand alone can be checked
        values = {key: OmegaConf.select(recipe, key) for key in keys.keys() & given - missing}
        plain = {k: list(v) if OmegaConf.is_list(v) else v for k, v in values.items()}
        errors += failures(declared_checks(keys, plain))
    else:
        typed: AnyRecipe = OmegaConf.to_object(recipe)  # type: ignore[assignment]
        errors += problems(typed)
    if errors:
        listed = "\n".join(f"  - {error}" for error in sorted(errors))
        raise UserError(f"{path} has {len(errors)} mistake(s):\n{listed}")
    return typed


def dump(recipe: AnyRecipe) -> str:
    """The resolved recipe as YAML; loading it gives the same recipe."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def own_copy(recipe: Path) -> str:
    """The text of a built-in recipe for another folder: editors still find its JSON schema."""
    schema = (recipe.parent / "schema.json").resolve()
    return recipe.read_text(encoding="utf-8").replace("$schema=schema.json", f"$schema={schema}", 1)


class _Loader(yaml.SafeLoader):
    """Only true and false are booleans, so that ``mixed_precision: no`` is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own name)
        letter: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:bool"]
        for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} can't be read as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {type(raw).__name__}, not a mapping of keys to values.")
    return raw


def split_override(override: str) -> tuple[str, Any]:
    """``key=value`` -> the key, and the value read as YAML. Raises UserError."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is not an override; use key=value, such as train.seed=1.")
    try:
        return key, yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        hint = (
            "\nA text that begins with a brace or bracket needs quotes inside the value: "
            f"""'{key}="{text}"'."""
            if text.lstrip().startswith(("{", "["))
            else ""
        )
        raise UserError(f"{override!r}: the value can't be read as YAML: {error}{hint}") from error


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, value = split_override(override)
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"{override!r}: {parent} is a value, not a group of keys.")
        node = child
    node[last] = value


def _leaves(node: dict[str, Any], schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, including those in groups that the schema does not have.

    A mapping in the place of a text is a value: YAML reads {prompt} as one.
    """
    hints = get_type_hints(schema) if is_dataclass(schema) else {}
    for name, value in node.items():
        inner = hints.get(str(name), object)
        if isinstance(value, dict) and str not in (get_args(inner) or (inner,)):
            yield from _leaves(value, inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _number_of(value: Any) -> Any:
    """A number or a word. Where text is allowed, OmegaConf takes neither 1 nor 1e-3 for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _unknown_key(key: str, known: Iterable[str]) -> str | None:
    if key in known:
        return None
    near = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown key {key}{hint}"
