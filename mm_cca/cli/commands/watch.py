"""``watch``: a page with the curves and previews of a training that is going on."""

import argparse
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

from mm_cca.cli.commands.report_server import serve_pages
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.eval.report.watch_page import codes_per_image, watch_page
from mm_cca.runs.folder import RunFolder, open_run


def watch(args: argparse.Namespace) -> int:
    """Run ``mm-cca watch``."""
    recipe, run = open_run(args.run)
    if recipe.run.trained is not None:
        raise UserError(
            f"{args.run} has no training of its own (run.trained); watch {recipe.run.trained}."
        )
    num_codes = codes_per_image(recipe, run)
    serve_pages(partial(_WatchHandler, recipe, run, num_codes), "", args.port)
    return 0


class _WatchHandler(BaseHTTPRequestHandler):
    def __init__(self, recipe: Recipe, run: RunFolder, num_codes: int, *args: Any) -> None:
        self._recipe, self._run, self._num_codes = recipe, run, num_codes
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""

    def do_GET(self) -> None:
        if self.path != "/":
            self.send_error(404)
            return
        try:
            page = watch_page(self._recipe, self._run, self._num_codes)
        except UserError as error:
            self.send_error(500, explain=str(error))
            return
        self.send_response(200)
        content = page.encode()
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
