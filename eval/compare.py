"""Two runs side by side, if they were scored in the same way."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mm_cca.config.keys import COMPARISON
from mm_cca.config.schema import SampleConfig
from mm_cca.config.stage_keys import keys_of
from mm_cca.errors import UserError
from mm_cca.eval.summary_types import Score, ScoringProtocol, Summary

FREE_FIELDS = (
    "scorer",  # scorer_sha256 decides; the same weights may be in two folders
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
    results = [_read(first), _read(second)]
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
    ours, theirs = dict(_leaves(first)), dict(_leaves(second))
    return {
        key: (ours.get(key, ABSENT), theirs.get(key, ABSENT))
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key, ABSENT) != theirs.get(key, ABSENT)
        and not _is_free(key)
        and not _is_of_one_metric(key, ours, theirs)
    }


def _is_free(key: str) -> bool:
    # The sha256 of a reference identifies its images; the name is only a path.
    return key in FREE_FIELDS or (key.startswith("reference.") and key.endswith(".images"))


def _is_of_one_metric(key: str, ours: Fields, theirs: Fields) -> bool:
    """Whether a field is about a metric that only one of the two has, and so isn't compared."""
    if key.startswith("metrics."):
        return key not in ours or key not in theirs
    return key in INCEPTION and None in (ours.get(key, ABSENT), theirs.get(key, ABSENT))


def _leaves(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(node, dict):
        yield prefix, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else key)


def _read(path: Path) -> Summary:
    try:
        summary: Summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    if not isinstance(summary, dict) or not {"arms", "protocol"} <= summary.keys():
        raise UserError(f"{path} has no scores; use a run's report.json or eval/summary.json.")
    return summary


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
        table = Table(title=f"{split}: A is {first}, B is {second}")
        table.add_column("arm", no_wrap=True)
        names = _shared_scores(results, split)
        for name in names:
            table.add_column(name, justify="right")
        for letter, result in zip("AB", results, strict=True):
            for arm in result["arms"]:
                scores = arm["scores"][split]
                cells = [_cell(scores[name]) for name in names]
                table.add_row(f"{letter}: {arm['name']}", *cells)
        console.print(table)
    for key, (a, b) in differing.items():
        console.print(f"allowed: {key} is {a!r} in A and {b!r} in B", soft_wrap=True)


def _shared_scores(results: list[Summary], split: str) -> list[str]:
    ours, theirs = (result["arms"][0]["scores"][split] for result in results)
    return [name for name in ours if name in theirs]


def _cell(score: Score) -> str:
    if "low" not in score or "high" not in score:
        return f"{score['value']:.4g}"
    return f"{score['value']:.4g} [{score['low']:.4g}, {score['high']:.4g}]"
