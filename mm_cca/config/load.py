"""Load a YAML file and ``key=value`` overrides as a typed recipe.

Precedence: defaults in ``schema.py`` < the YAML file < overrides. All mistakes are reported
together, before any weights are read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mm_cca.config.declarations import declared
from mm_cca.config.image_sizes import split_sizes
from mm_cca.config.paths import exists
from mm_cca.config.precision import settle_precision
from mm_cca.config.raw_values import shown, wrong_value
from mm_cca.config.read_files import text_of
from mm_cca.config.read_yaml import MAX_BYTES, parse_yaml, read_yaml
from mm_cca.config.schema import JOBS, AnyRecipe, Recipe
from mm_cca.config.shipped import SHIPPED, find_recipe, shipped_recipes
from mm_cca.errors import UserError


def load_config(path_or_name: str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read, merge and validate a recipe, with this machine's precision where it says auto.

    Args:
        path_or_name: a YAML file, or the name of a built-in recipe (``mm-cca ls``).
        overrides: ``key=value`` with dotted keys; the value is parsed as YAML.

    Raises:
        UserError: every mistake in one message.
    """
    recipe = config_as_written(path_or_name, overrides)
    settle_precision(recipe)
    return recipe


def config_as_written(path_or_name: str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """``load_config`` without a look at the machine, for which torch may have to be imported.

    Arguments and errors are those of ``load_config``.
    """
    from mm_cca.config.constraints import declared_checks, failures, invalid_choices
    from mm_cca.config.validate import problems

    path = find_recipe(path_or_name)
    raw = read_yaml(path)
    for override in overrides:
        _apply_override(raw, override)
    if isinstance(raw.get("data"), dict):
        split_sizes(raw["data"])
        _split_captions(raw["data"])
    _refuse_ambiguous(path, raw, overrides)
    job = raw.get("job", "finetune")
    if not isinstance(job, str) or job not in JOBS:
        raise UserError(f"{path}: job is {shown(job)}; allowed: {', '.join(JOBS)}.")
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
                f"{key} is {shown(value)}, a mapping; allowed: a value. A text that begins with a "
                f"""brace needs quotes inside the value: '{key}="{{prompt}} ..."'"""
            )
            continue
        entry = keys[key]
        if (wrong := wrong_value(entry, value)) is not None:
            errors.append(wrong)
            continue
        if invalid := invalid_choices(entry, value):
            errors += [f"{key} is {shown(choice)}; allowed: {entry.allowed}" for choice in invalid]
            continue
        single = entry.is_list and value is not None and not isinstance(value, list)
        try:
            as_typed = _number_of(value, entry.kind) if entry.rules.words else value
            OmegaConf.update(
                recipe, key, [value] if single else as_typed
            )  # sample.dial=0.5 is [0.5]
        except OmegaConfBaseException as error:
            errors.append(f"{key} is {shown(value)}: {str(error).splitlines()[0]}")
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


def _split_captions(data: dict[str, Any]) -> None:
    """``caption_column: [long, short]`` -> the first, and ``more_caption_columns``."""
    columns = data.get("caption_column")
    if isinstance(columns, list) and columns and "more_caption_columns" not in data:
        data["caption_column"], *more = columns
        if more:
            data["more_caption_columns"] = more


def _refuse_ambiguous(recipe: Path, raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Raises UserError if a built-in name is also a file or folder here.

    The built-in recipes mean what is built in.
    """
    given = {override.partition("=")[0] for override in overrides}
    is_built_in = recipe in shipped_recipes().values()
    for key in ("data.path", "model.path"):
        group, _, name = key.partition(".")
        values = raw.get(group)
        value = values.get(name) if isinstance(values, dict) else None
        if (
            isinstance(value, str)
            and value in SHIPPED
            and exists(value)
            and (key in given or not is_built_in)
        ):
            raise UserError(
                f"{key} is {value!r}, which is built in, but there is also {value!r} in this "
                f"folder. For that one, use {key}=./{value}; for the built-in one, run in "
                "another folder or rename it."
            )


def dump(recipe: AnyRecipe) -> str:
    """The resolved recipe as YAML; loading it gives the same recipe."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A copy with other values of dotted keys; unknown keys are ignored."""
    typed = OmegaConf.structured(recipe)
    for name in values.keys() & declared(type(recipe)).keys():
        OmegaConf.update(typed, name, values[name])
    copied: Recipe = OmegaConf.to_object(typed)  # type: ignore[assignment]
    return copied


def own_copy(recipe: Path) -> str:
    """The text of a built-in recipe for another folder: editors still find its JSON schema."""
    schema = (recipe.parent / "schema.json").resolve()
    text = text_of(recipe, "It must be a recipe.", most=MAX_BYTES)
    return text.replace("$schema=schema.json", f"$schema={schema}", 1)


def split_override(override: str) -> tuple[str, Any]:
    """``key=value`` -> the key, and the value read as YAML. Raises UserError."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(
            f"{shown(override)} is not an override; use key=value, such as train.seed=1."
        )
    try:
        value = parse_yaml(text)
        # A plain text on a command line has no comments: data.path="set #1" is the whole name.
        is_plain = isinstance(value, str) and not text.lstrip().startswith(tuple("'\"|>&*!"))
        return key, text.strip() if is_plain and " #" in text else value
    except ValueError as error:
        hint = (
            "\nA text that begins with a brace or bracket needs quotes inside the value: "
            f"""'{key}="{text}"'."""
            if text.lstrip().startswith(("{", "["))
            else ""
        )
        raise UserError(
            f"{shown(override)}: the value can't be read as YAML: {error}{hint}"
        ) from error


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
        may_be_text = str in (get_args(inner) or (inner,))
        is_group = is_dataclass(inner) or (bool(value) and not may_be_text)
        if isinstance(value, dict) and is_group:
            yield from _leaves(value, inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _number_of(value: Any, kind: type) -> Any:
    """A number or a word. Where text is allowed, OmegaConf takes neither 1 nor 1e-3 for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if kind is int and number.is_integer() else number


def _unknown_key(key: str, known: Iterable[str]) -> str | None:
    if key in known:
        return None
    near = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown key {key}{hint}"
