"""``report``: write the report, and serve it with ``--serve``."""

import argparse

from mm_cca.cli.commands.stages import stages, where_it_lies
from mm_cca.errors import UserError


def report(args: argparse.Namespace) -> int:
    """Run ``mm-cca report``."""
    if args.port and not args.serve:
        raise UserError(f"--port is {args.port}, but nothing is served; add --serve.")
    stages(args)
    from accelerate import PartialState

    if args.serve and PartialState().is_main_process:
        from mm_cca.cli.commands.report_server import serve
        from mm_cca.config.load import load_config
        from mm_cca.runs.folder import RunFolder

        recipe = load_config(args.recipe, args.overrides)
        report = RunFolder.of(where_it_lies(recipe, args.recipe, args.overrides)).report
        serve(report.parent, report.name, args.port)
    return 0
