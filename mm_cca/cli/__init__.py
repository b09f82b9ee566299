"""The command line: ``mm-cca VERB``. Heavy imports wait until a verb needs them."""

from mm_cca.cli.main import main
from mm_cca.cli.parser import parser

__all__ = ["main", "parser"]
