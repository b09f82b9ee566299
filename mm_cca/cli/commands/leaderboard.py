"""``runs``: the run folders below a folder, best first, those that can be compared together."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mm_cca.config.metrics import LEAD, METRICS
from mm_cca.errors import UserError
from mm_cca.eval.compare import differences
from mm_cca.eval.report.tables import best_guided, score_columns
from mm_cca.eval.report.wording import BADGES, prompts_in_words
from mm_cca.eval.summary_files import SUMMARY, read_summary
from mm_cca.eval.summary_types import HeadlineEntry, JudgedArm, Summary, judged, leading_judge
from mm_cca.runs.folder import RECIPE, open_run, terms_of_training

DEPTH = 3
"""How many folders deep runs are looked for; a sweep keeps its points in folders of its own."""
SHOWN = (LEAD, "r_at_5", "frechet_distance")


@dataclass(frozen=True)
class Entry:
    """A scored run.

    Attributes:
        name: its folder, from the one that was looked through.
        objective: of its training.
        summary: its scores.
        judge: who leads.
        split: whose scores are shown: the last one, which is the held-out one if there is one.
    """

    name: str
    objective: str
    summary: Summary
    judge: str
    split: str

    @classmethod
    def of(cls, name: str, folder: Path) -> "Entry":
        """Raises UserError: no run with a model, not scored yet, or a damaged file."""
        recipe, run = open_run(folder)
        summary = read_summary(run.eval / SUMMARY)
        objective = "+".join(terms_of_training(recipe).weights)
        split = list(summary["protocol"]["num_prompts"])[-1]
        return cls(name, objective, summary, leading_judge(summary["judges"]), split)

    @property
    def arms(self) -> list[JudgedArm]:
        return judged(self.summary["arms"], self.judge)

    @property
    def arm(self) -> JudgedArm:
        """The trained model without guidance, else its best arm, else the base."""
        by_name = {arm["name"]: arm for arm in self.arms}
        wanted = ("cca", best_guided(self.arms, self.split, "cca"), "base")
        found = [by_name[name] for name in wanted if name is not None and name in by_name]
        return (found or self.arms)[0]

    @property
    def lead(self) -> float:
        return self.arm["scores"][self.split][LEAD]["value"]

    @property
    def headline(self) -> HeadlineEntry | None:
        """The comparison with the guided base by all judges."""
        for entry in self.summary["headline"]:
            if (entry["split"], entry["rival"]) == (self.split, "guided base"):
                return entry
        return None

    @property
    def group(self) -> tuple[str, ...]:
        """What runs must share to stand in one table."""
        judge = next(j for j in self.summary["judges"] if j["name"] == self.judge)
        return (judge["sha256"], self.split, self.summary["protocol"]["prompts_sha256"][self.split])


def runs(args: argparse.Namespace) -> int:
    """Run ``mm-cca runs``."""
    if not args.folder.is_dir():
        raise UserError(
            f"{args.folder} is not a folder; give the one that holds your runs (default: runs)."
        )
    entries, unscored = [], []
    for folder in _folders(args.folder):
        name = str(folder.relative_to(args.folder)) if folder != args.folder else folder.name
        try:
            entries.append(Entry.of(name, folder))
        except UserError as error:
            unscored.append((name, str(error).partition("\n")[0]))
    if not entries and not unscored:
        raise UserError(
            f"{args.folder} has no run folders: no recipe.yaml up to {DEPTH} folders deep."
        )
    _print(entries, unscored)
    return 0


def _folders(root: Path) -> Iterator[Path]:
    for depth in range(DEPTH + 1):
        yield from sorted(path.parent for path in root.glob("*/" * depth + RECIPE))


def _print(entries: list[Entry], unscored: list[tuple[str, str]]) -> None:
    console = Console()
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.group, []).append(entry)
    for group in groups.values():
        group.sort(key=lambda entry: -entry.lead)
        console.print(_table(group))
        for line in _differing(group):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    if len(groups) > 1:
        console.print("Scores of different tables can't be compared.", soft_wrap=True)
    for name, reason in unscored:
        console.print(f"not scored: {name}: {reason}", soft_wrap=True, markup=False)


def _table(group: list[Entry]) -> Table:
    first = group[0]
    count = first.summary["protocol"]["num_prompts"][first.split]
    title = f"{count} {prompts_in_words(first.split)}, scored by {first.judge}"
    table = Table(title=title, box=SIMPLE_HEAD)
    columns = score_columns([entry.arm for entry in group])
    shown = [name for name in SHOWN if name in columns]
    table.add_column("run", overflow="fold")
    table.add_column("objective", overflow="fold")
    for name in shown:
        table.add_column(METRICS[name].label, justify="right")
    table.add_column("best CFG", justify="right")
    table.add_column("against it")
    for number, entry in enumerate(group):
        scores = entry.arm["scores"][entry.split]
        arm = entry.arm["name"]
        table.add_row(
            escape(entry.name + ("" if arm == "cca" else f" ({arm})")),
            entry.objective,
            *(columns[n].text(scores[n]["value"]) if n in scores else "-" for n in shown),
            _best_guided(entry),
            "-" if entry.headline is None else BADGES[entry.headline["standing"]],
            style="bold" if number == 0 else None,
        )
    return table


def _best_guided(entry: Entry) -> str:
    """Alignment of the guided base."""
    name = best_guided(entry.arms, entry.split)
    scores = {arm["name"]: arm["scores"][entry.split][LEAD]["value"] for arm in entry.arms}
    return "-" if name is None else f"{scores[name]:.{METRICS[LEAD].digits}f}"


def _differing(group: list[Entry]) -> Iterator[str]:
    """A line for every run that was not scored just as the first one."""
    first = group[0]
    for entry in group[1:]:
        found = differences(first.summary["protocol"], entry.summary["protocol"])
        if found:
            fields = ", ".join(found)
            yield f"{entry.name} was not scored just as {first.name}: another {fields}."
