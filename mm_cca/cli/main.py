"""``mm-cca VERB``: runs the verb's command, and reports a user's mistake as one message."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from mm_cca.cli.parser import WELCOME, parser
from mm_cca.cli.quiet_process import quiet_process
from mm_cca.cli.unexpected import Terminated, print_anything, report_of, termination
from mm_cca.errors import Interrupted, UserError

COMMANDS = {
    "ls": "recipes:ls",
    "cp": "recipes:cp",
    "validate": "recipes:validate",
    "explain": "explain:explain",
    "env": "env:env",
    "tiny": "tiny:tiny",
    "plan": "print_plan:plan",
    "average": "average:average",
    "bench": "bench:bench",
    "export": "export:export",
    "push": "push:push",
    "serve": "serve:serve",
    "report": "report:report",
    "watch": "watch:watch",
    "demo": "demo:demo",
    "export-samples": "export_samples:export_images",
    "coco-prompts": "coco_prompts:coco_prompts",
    "suggest": "suggest:suggest",
    "compare": "pair_of_runs:compare",
    "runs": "leaderboard:runs",
    "vote": "vote:vote",
    "gaps": "gaps:gaps",
    "sweep": "sweep:sweep",
}
"""Verb -> file in ``commands/`` and its function; any other verb is a stage."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 2 for a user's mistake, 1 for an unforeseen error, 130
    when interrupted, 143 when terminated, 141 when the reader of its output has ended."""
    print_anything()
    args = parser().parse_args(argv)
    if argv is None and not args.debug:  # a process of its own, not a call from Python
        quiet_process()
    if args.verb is None:
        print(WELCOME, end="")
        return 0
    try:
        with termination():
            status = _command(args.verb)(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader of a pipe, such as head, has ended; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if args.debug and not isinstance(error, Interrupted):
            raise
        message, status = _told(error)
        print(message, file=sys.stderr)
        return status


def _told(error: BaseException) -> tuple[str, int]:
    """What the user is told, and the exit status."""
    again = "run the same command again to resume"
    match error:
        case UserError():
            return f"error: {error}", 2
        case Interrupted():
            return f"{error}; {again}", 130
        case KeyboardInterrupt():
            return f"interrupted; {again}", 130
        case Terminated():
            return f"terminated; {again}", 143
        case _:
            return f"error: {report_of(error)}", 1


def _command(verb: str) -> Callable[[argparse.Namespace], int]:
    file, _, function = COMMANDS.get(verb, "stages:stages").partition(":")
    command: Callable[[argparse.Namespace], int] = getattr(
        import_module(f"mm_cca.cli.commands.{file}"), function
    )
    return command
