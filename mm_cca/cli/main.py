"""``mm-cca VERB``: runs the verb's command, and reports a user's mistake as one message."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from mm_cca.cli.parser import WELCOME, parser
from mm_cca.errors import Interrupted, UserError

COMMANDS = {
    "ls": "recipes:ls",
    "cp": "recipes:cp",
    "validate": "recipes:validate",
    "explain": "explain:explain",
    "env": "env:env",
    "tiny": "tiny:tiny",
    "average": "average:average",
    "bench": "bench:bench",
    "export": "export:export",
    "report": "report:report",
    "demo": "demo:demo",
    "export-samples": "export_samples:export_images",
    "coco-prompts": "coco_prompts:coco_prompts",
    "suggest": "suggest:suggest",
    "gaps": "gaps:gaps",
    "sweep": "sweep:sweep",
}
"""Verb -> file in ``commands/`` and its function; any other verb is a stage."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status (2 for a user's mistake, 130 when
    interrupted, 141 when the reader of its output has ended)."""
    args = parser().parse_args(argv)
    if args.verb is None:
        print(WELCOME, end="")
        return 0
    try:
        status = _command(args.verb)(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader of a pipe, such as head, has ended; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"{stop}; run the same command again to resume", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        if args.debug:
            raise
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130


def _command(verb: str) -> Callable[[argparse.Namespace], int]:
    file, _, function = COMMANDS.get(verb, "stages:stages").partition(":")
    command: Callable[[argparse.Namespace], int] = getattr(
        import_module(f"mm_cca.cli.commands.{file}"), function
    )
    return command
