"""Reads ``eval/summary.json`` and ``report.json``, of this run or of others, checked for shape."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from typing_extensions import TypedDict

from mm_cca.config.read_files import json_of, reading, shaped
from mm_cca.errors import UserError
from mm_cca.eval.summary_types import SplitScores, Summary
from mm_cca.runs.digests import refuse_other_files
from mm_cca.runs.stage import recorded

SUMMARY = "summary.json"


class _Named(TypedDict):
    name: str


class _Arm(_Named):
    scores: dict[str, SplitScores]


class _Protocol(TypedDict):
    judges: dict[str, _Named]
    num_prompts: dict[str, int]


class _Comparable(TypedDict):
    """The least that two results must have to be compared; a result of another version may lack
    the rest."""

    arms: list[_Arm]
    protocol: _Protocol


def read_summary(path: Path) -> Summary:
    """A run's ``eval/summary.json``, as eval wrote it.

    Raises:
        UserError: nothing has been scored yet, or only by an older version; or a file of the
            folder is damaged or was changed.
    """
    folder = path.parent
    again = f"Delete {folder} and run `mm-cca eval RECIPE` again."
    stored = recorded(folder)
    if stored is None or not (stored["done"] or path.exists()):
        raise UserError(f"{path} does not exist: run `mm-cca eval RECIPE` first.")
    refuse_other_files(folder, stored.get("files", {}), again)
    return scored_by_judges(path, again)


def scored_by_judges(path: Path, advice: str) -> Summary:
    """A whole summary. Raises UserError as ``read_summary``."""
    content = json_of(path, dict[str, Any], advice)
    if "judges" not in content:
        raise UserError(
            f"{path} has no judges: this run was scored by an older mm_cca. Delete the folder eval "
            "of that run and run `mm-cca eval RECIPE` again."
        )
    with reading(path, advice):
        summary = shaped(content, Summary)
        names = [judge["name"] for judge in summary["judges"]]
        _refuse_gaps(summary["arms"], names, summary["protocol"]["num_prompts"])
    return summary


def read_comparable(path: Path) -> Summary:
    """A ``report.json`` or ``eval/summary.json`` of any run, with what ``compare`` shows.

    Raises:
        UserError: it can't be read, has no scores, or only those of an older version.
    """
    advice = "Use a run's report.json or eval/summary.json."
    content = json_of(path, dict[str, Any], advice)
    if not {"arms", "protocol"} <= content.keys():
        raise UserError(f"{path} has no scores; use a run's report.json or eval/summary.json.")
    if isinstance(content["protocol"], dict) and "judges" not in content["protocol"]:
        raise UserError(
            f"{path} was scored by an older mm_cca, without scores by judge: delete that run's "
            "folder eval and run `mm-cca eval RECIPE` again."
        )
    with reading(path, advice):
        found = shaped(content, _Comparable)
        judges = found["protocol"]["judges"]
        names = [judge["name"] for judge in judges.values()]
        _refuse_gaps(found["arms"], names, found["protocol"]["num_prompts"])
    return cast(Summary, content)


def _refuse_gaps(
    arms: Iterable[Mapping[str, Any]], judges: list[str], splits: Iterable[str]
) -> None:
    """Raises ValueError unless every arm has the same scores by every judge on every split."""
    listed = list(arms)
    if not listed or not judges:
        raise ValueError(f"it has no {'judges' if listed else 'arms'}")
    for judge in judges:
        for split in splits:
            first = listed[0]["scores"].get(judge, {}).get(split, {}).keys()
            for arm in listed:
                scores = arm["scores"].get(judge, {}).get(split, {})
                if not scores or scores.keys() != first:
                    raise ValueError(
                        f"arm {arm['name']} lacks scores by {judge} on {split}, or has others than "
                        f"{listed[0]['name']}"
                    )
