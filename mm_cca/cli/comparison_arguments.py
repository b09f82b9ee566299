"""Arguments of the verbs that compare runs or arms."""

import argparse
from pathlib import Path

from mm_cca.cli.arguments import Verbs, usable_path


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """``mm-cca eval --compare A.json B.json --allow KEY``."""
    parser.add_argument(
        "--compare",
        nargs=2,
        type=usable_path,
        metavar=("A.json", "B.json"),
        help="instead of scoring: print two runs' report.json or eval/summary.json side by side; "
        "refused, with the fields that differ, if they were not scored in the same way",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KEY",
        help="a field of the protocol that may differ, such as device or versions.torch; may be "
        "repeated",
    )


def add_compare(verbs: Verbs) -> None:
    """``mm-cca compare RUN RUN``."""
    compare = verbs.add_parser(
        "compare",
        help="two scored runs: paired differences with intervals, pictures side by side",
        description="Compare two scored runs, A and B, prompt by prompt: B minus A with 95 %% "
        "intervals, in the terminal and as a page with both runs' pictures side by side. Fields "
        "of the protocol that differ are named, and what can still be compared is.",
    )
    for name, letter in (("first", "A"), ("second", "B")):
        compare.add_argument(
            name, type=usable_path, metavar=letter, help="a run folder, or a recipe that was run"
        )
    compare.add_argument(
        "--arms",
        nargs=2,
        metavar=("ARM_OF_A", "ARM_OF_B"),
        help="compare these two arms (default: every arm that both have)",
    )
    compare.add_argument(
        "--into",
        type=usable_path,
        metavar="FILE",
        help="the page (default: compare-A.html in the folder of B)",
    )
    compare.add_argument("--open", action="store_true", help="open the page in a browser")


def add_runs(verbs: Verbs) -> None:
    """``mm-cca runs [FOLDER]``."""
    runs = verbs.add_parser(
        "runs",
        help="a leaderboard of run folders",
        description="List the scored runs below a folder, best first; those with the same judge "
        "and prompts stand in one table.",
    )
    runs.add_argument(
        "folder",
        nargs="?",
        type=usable_path,
        default=Path("runs"),
        help="the folder that holds them (default: %(default)s)",
    )


def add_vote(verbs: Verbs) -> None:
    """``mm-cca vote RUN ARM ARM``."""
    vote = verbs.add_parser(
        "vote",
        help="a blind page on which you prefer one of two arms, left or right",
        description="Serve a page on this machine that shows two arms' images of one prompt side "
        "by side without their names: 1 prefers the left one, 2 the right one, 0 neither. Order "
        "and sides are shuffled by a seed. It ends in a preference with its 95 %% interval; the "
        "votes are kept in the run folder, and the same command goes on.",
    )
    vote.add_argument("run", type=usable_path, help="a run folder, or a recipe that was run")
    vote.add_argument("first", metavar="ARM", help="such as cca")
    vote.add_argument("second", metavar="ARM", help="such as base+cfg3")
    vote.add_argument(
        "--other-run",
        type=usable_path,
        metavar="RUN",
        help="the second arm is of this run (default: of the same)",
    )
    vote.add_argument("--split", help="only prompts of this split (default: all)")
    vote.add_argument("--votes", type=int, default=50, help="how many pairs (default: %(default)s)")
    vote.add_argument("--seed", type=int, default=0, help="of order and sides (default: 0)")
    vote.add_argument(
        "--into",
        type=usable_path,
        metavar="FILE",
        help="the file of votes (default: votes/ARM-ARM.json in the run folder, with "
        "a name of its own for every --split and --seed)",
    )
    vote.add_argument("--port", type=int, default=0, help="the port (default: any free one)")
