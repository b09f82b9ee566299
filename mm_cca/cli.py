"""The command line: ``mm-cca VERB``. Heavy imports wait until a verb needs them."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from mm_cca import cli_eval
from mm_cca.cli_parser import parser
from mm_cca.errors import Interrupted, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status (2 for a user's mistake, 130 when interrupted)."""
    args = parser().parse_args(argv)
    verbs: dict[str, Callable[[argparse.Namespace], int]] = {
        "ls": _ls,
        "cp": _cp,
        "env": _env,
        "validate": _validate,
        "tiny": _tiny,
        "export": _export,
        "report": _report,
        "demo": _demo,
        "export-samples": cli_eval.export_pictures,
        "coco-prompts": cli_eval.coco_prompts,
        "suggest": _suggest,
        "sweep": _sweep,
    }
    try:
        return verbs.get(args.verb, _stages)(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"{stop}; the same command goes on from here", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _stages(args: argparse.Namespace) -> int:
    from mm_cca.config.load import load_config

    if args.verb == "eval" and args.compare is not None:
        return cli_eval.compare_results(args)
    if args.recipe is None:
        raise UserError("mm-cca eval needs a recipe, or --compare A.json B.json.")
    recipe = load_config(args.recipe, args.overrides)  # before torch is imported
    from mm_cca.jobs import run_job

    run_job(recipe, recipe.run.stages if args.verb == "run" else [args.verb])
    return 0


def _validate(args: argparse.Namespace) -> int:
    from mm_cca.config.load import load_config

    load_config(args.recipe, args.overrides)
    print(f"{args.recipe} is well-formed.")
    return 0


def _ls(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from mm_cca.config.shipped import shipped_recipes

    table = Table("recipe", "what it does", box=None)
    for name, path in shipped_recipes().items():
        table.add_row(name, path.read_text().splitlines()[0].lstrip("# "))
    Console().print(table)
    return 0


def _cp(args: argparse.Namespace) -> int:
    from mm_cca.config.shipped import find_recipe

    source = find_recipe(args.recipe)
    if args.target.exists():
        raise UserError(f"{args.target} exists already; choose another name or delete it.")
    try:
        args.target.write_text(source.read_text())
    except OSError as error:
        raise UserError(f"{args.target} can't be written: {error}") from error
    print(f"{args.recipe} copied to {args.target}")
    return 0


def _tiny(args: argparse.Namespace) -> int:
    from mm_cca.tiny import write_tiny

    write_tiny(args.family, args.folder, side=args.side)
    print(f"a tiny {args.family} checkpoint is in {args.folder}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from mm_cca.export import export_model

    export_model(args.run, args.folder, merge=args.merge, dial=args.dial)
    print(f"the model of {args.run} is in {args.folder}")
    return 0


def _report(args: argparse.Namespace) -> int:
    if args.port and not args.serve:
        raise UserError(f"--port is {args.port}, but nothing is served; add --serve.")
    _stages(args)
    from accelerate import PartialState

    if args.serve and PartialState().is_main_process:
        from mm_cca.config.load import load_config
        from mm_cca.runs.folder import RunFolder
        from mm_cca.serve import serve

        report = RunFolder.of(load_config(args.recipe, args.overrides)).report
        serve(report.parent, report.name, args.port)
    return 0


def _demo(args: argparse.Namespace) -> int:
    if find_spec("gradio") is None:
        raise UserError(
            'mm-cca demo needs gradio, which is not installed: pip install "mm-cca[demo]".'
        )
    from mm_cca.tryout import Tryout

    tryout = Tryout(args.run)  # says what is wrong with the folder before gradio is imported
    from mm_cca.tryout_page import launch

    launch(tryout, args.port)
    return 0


def _suggest(args: argparse.Namespace) -> int:
    from mm_cca.config.load import load_config

    recipe = load_config(args.recipe, args.overrides)
    from mm_cca.jobs import suggest_constants

    print(suggest_constants(recipe, args.pairs, args.scale))
    return 0


def _sweep(args: argparse.Namespace) -> int:
    from mm_cca.jobs import sweep_job

    sweep_job(args.recipe, args.overrides)
    return 0


def _env(args: argparse.Namespace) -> int:
    from mm_cca.runs.environment import environment

    for name, value in environment().items():
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
