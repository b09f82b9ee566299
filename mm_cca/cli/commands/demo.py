"""``demo``: a web page to try prompts with a finished run."""

import argparse
from importlib.util import find_spec

from mm_cca.cli.commands.demo_session import DemoSession
from mm_cca.errors import UserError


def demo(args: argparse.Namespace) -> int:
    """Run ``mm-cca demo``."""
    if find_spec("gradio") is None:
        raise UserError(
            'mm-cca demo needs gradio, which is not installed: pip install "mm-cca[demo]".'
        )
    session = DemoSession(args.run)  # reports a bad run folder before gradio is imported
    from mm_cca.cli.commands.demo_page import launch

    launch(session, args.port)
    return 0
