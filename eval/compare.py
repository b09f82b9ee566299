"""Two runs side by side, if they were scored in the same way."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mm_cca.config.keys import COMPARISON
from mm_cca.config.schema import SampleConfig
from mm_cca.config.stage_keys import keys_of
from mm_cca.errors import UserError
from mm_cca.eval.summary_files import read_comparable
from mm_cca.eval.summary_types import (
    OWN_SAMPLER,
    JudgeProtocol,
    Score,
    ScoringProtocol,
    Summary,
    judged,
)

FREE_FIELDS = (
    # Of the sampling's keys, prompts and their number are covered by num_prompts, prompts_sha256.
    *(
        f"sampling.{entry.name}"
        for entry in fields(SampleConfig)
        if f"sample.{entry.name}" not in keys_of(COMPARISON)
    ),
    "versions.mm-cca",
)
"""Fields that may differ between runs, or that another field decides."""
INCEPTION = ("inception_sha256", "resize.inception")
ABSENT = "not recorded"
JUDGES = "judges"

Fields = Mapping[str, object]
"""Dotted field of a protocol -> its value."""
Differences = dict[str, tuple[object, object]]
"""Dotted field -> its two values."""


def compare(first: Path, second: Path, *, allowed: Sequence[str] = ()) -> None:
    """Print the arms of two runs, split by split.

    Args:
        first: a ``report.json`` or ``eval/summary.json``.
        second: another.
        allowed: fields of the protocol that may differ, or groups such as ``versions``.

    Raises:
        UserError: not such files, or protocols that differ in what is not allowed, field by field.
    """
    results = [read_comparable(first), read_comparable(second)]
    differing = differences(results[0]["protocol"], results[1]["protocol"])
    _refuse_unknown(allowed, results)
    refused = {
        key: values
        for key, values in differing.items()
        if not any(key == a or key.startswith(f"{a}.") for a in allowed)
    }
    if refused:
        listed = "\n".join(f"  - {key}: {a!r} against {b!r}" for key, (a, b) in refused.items())
        raise UserError(
            f"{first} and {second} were not scored in the same way:\n{listed}\nRe-run eval "
            "with matching settings, or accept a difference: "
            + " ".join(f"--allow {key}" for key in refused)
        )
    _print(first, second, results, differing)


def differences(first: ScoringProtocol, second: ScoringProtocol) -> Differences:
    """The fields that must agree and don't."""
    without = {"engine": OWN_SAMPLER}  # also in protocols that are older than the field
    ours, theirs = (without | dict(_leaves(protocol)) for protocol in (first, second))
    return {
        key: (ours.get(key, ABSENT), theirs.get(key, ABSENT))
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key, ABSENT) != theirs.get(key, ABSENT)
        and not _is_free(key)
        and not _is_newer_key(key, ours, theirs)
        and not _is_of_one_metric(key, ours, theirs)
        and not _is_of_one_judge(key, ours, theirs)
    } | _no_judge_in_common(first, second)


def _is_free(key: str) -> bool:
    # The sha256 of a reference identifies its images, that of a judge its weights; the names are
    # only paths.
    group, _, field = key.partition(".")
    return (
        key in FREE_FIELDS
        or (group in ("reference", "reconstruction") and field.endswith(".images"))
        or (group == "judges" and field.endswith(".name"))
    )


def _is_newer_key(key: str, ours: Fields, theirs: Fields) -> bool:
    """Whether it is a key of the sampling that one of the two did not know yet, and null in the
    other: without effect in both."""
    values = ours.get(key, ABSENT), theirs.get(key, ABSENT)
    return key.startswith("sampling.") and None in values and ABSENT in values


def _is_of_one_metric(key: str, ours: Fields, theirs: Fields) -> bool:
    """Whether a field is about a metric that only one of the two has, and so isn't compared."""
    if key.startswith(("metrics.", "reconstruction.")):
        return not (key in ours and key in theirs and None not in (ours[key], theirs[key]))
    return key in INCEPTION and None in (ours.get(key, ABSENT), theirs.get(key, ABSENT))


def _is_of_one_judge(key: str, ours: Fields, theirs: Fields) -> bool:
    """Whether a field is about a judge that only one of the two has."""
    return key.startswith("judges.") and (key not in ours or key not in theirs)


def _no_judge_in_common(first: ScoringProtocol, second: ScoringProtocol) -> Differences:
    """Runs compare by the judges that both have, which are known by their weights."""
    ours, theirs = first["judges"], second["judges"]
    if ours.keys() & theirs.keys():
        return {}
    return {JUDGES: (_named(ours), _named(theirs))}


def _named(judges: Mapping[str, JudgeProtocol]) -> str:
    return ", ".join(f"{judge['name']} (sha256 {key[:12]})" for key, judge in judges.items())


def _leaves(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(node, dict):
        yield prefix, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else key)


def _refuse_unknown(allowed: Sequence[str], results: list[Summary]) -> None:
    known = {key for result in results for key, _ in _leaves(result["protocol"])}
    for key in allowed:
        if key not in known and not any(other.startswith(f"{key}.") for other in known):
            raise UserError(f"--allow {key}: no such field; the protocol has {', '.join(known)}.")


def _print(
    first: Path,
    second: Path,
    results: list[Summary],
    differing: Differences,
) -> None:
    console = Console()
    shared = set.intersection(*(set(r["protocol"]["num_prompts"]) for r in results))
    for split in sorted(shared):
        for title, judges in _judges_in_common(results):
            # Not the table's own title, which would be broken into lines of the table's width.
            console.print(f"{split}{title}: A is {first}, B is {second}", soft_wrap=True)
            console.print(_table(split, results, judges))
    for key, (a, b) in differing.items():
        console.print(f"allowed: {key} is {a!r} in A and {b!r} in B", soft_wrap=True)


def _judges_in_common(results: list[Summary]) -> Iterator[tuple[str, list[str]]]:
    """Part of a title, and each result's name of a judge that both have.

    Without one in common, which was then allowed, the first of each.
    """
    ours, theirs = (result["protocol"]["judges"] for result in results)
    common = [key for key in ours if key in theirs]
    pairs = [(key, key) for key in common] or [(next(iter(ours)), next(iter(theirs)))]
    for one, other in pairs:
        names = [ours[one]["name"], theirs[other]["name"]]
        yield f", scored by {' and '.join(dict.fromkeys(names))}", names


def _table(split: str, results: list[Summary], judges: list[str]) -> Table:
    """The arms of both by one judge, in the scores that both have."""
    table = Table()
    table.add_column("arm", no_wrap=True)
    views = [judged(r["arms"], judge) for r, judge in zip(results, judges, strict=True)]
    ours, theirs = (view[0]["scores"][split] for view in views)
    names = [name for name in ours if name in theirs]
    for name in names:
        table.add_column(name, justify="right")
    for letter, view in zip("AB", views, strict=True):
        for arm in view:
            cells = [_cell(arm["scores"][split][name]) for name in names]
            table.add_row(f"{letter}: {arm['name']}", *cells)
    return table


def _cell(score: Score) -> str:
    if "low" not in score or "high" not in score:
        return f"{score['value']:.4g}"
    return f"{score['value']:.4g} [{score['low']:.4g}, {score['high']:.4g}]"
