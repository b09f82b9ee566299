"""``compare``: two runs prompt by prompt, in the terminal and as a page with pictures."""

import argparse
import webbrowser
from pathlib import Path

from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.eval.compare_runs import ScoredRun, compare_runs
from mm_cca.eval.report.compare_page import PicturesOfRun, compare_page
from mm_cca.eval.report.compare_tables import print_comparison
from mm_cca.runs.files import write_text
from mm_cca.runs.folder import RunFolder, open_run


def compare(args: argparse.Namespace) -> int:
    """Run ``mm-cca compare``."""
    opened = [open_run(args.first), open_run(args.second)]
    roots = [run.root.resolve() for _, run in opened]
    if roots[0] == roots[1]:
        raise UserError(f"{args.first} and {args.second} are the same run; give two runs.")
    names = _names(roots)
    scored = [ScoredRun.read(run.eval, name) for (_, run), name in zip(opened, names, strict=True)]
    found = compare_runs(
        scored[0], scored[1], None if args.arms is None else (args.arms[0], args.arms[1])
    )
    pictures = [_pictures(recipe, run) for recipe, run in opened]
    page = args.into or roots[1] / f"compare-{roots[0].name}.html"
    megabytes = opened[1][0].eval.report_megabytes
    write_text(page, compare_page(found, (pictures[0], pictures[1]), megabytes))
    print_comparison(found)
    print(f"page: {page}")
    if args.open:
        webbrowser.open(Path(page).resolve().as_uri())
    return 0


def _names(roots: list[Path]) -> list[str]:
    """The last parts of two paths, as many as tell them apart."""
    parts = 1
    while roots[0].parts[-parts:] == roots[1].parts[-parts:]:
        parts += 1
    return [str(Path(*root.parts[-parts:])) for root in roots]


def _pictures(recipe: Recipe, run: RunFolder) -> PicturesOfRun:
    return PicturesOfRun(run.samples, max(recipe.data.image_size))
