"""The HTML templates of report and sweep."""

from pathlib import Path

import jinja2

from mm_cca.eval.report.panel_text import figures_of, standing_in_words
from mm_cca.eval.report.wording import prompts_in_words


def templates() -> jinja2.Environment:
    """The templates next to this file; values are escaped, a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prompts"] = prompts_in_words
    environment.filters["figures"] = figures_of
    environment.filters["standing"] = standing_in_words
    return environment
