"""What a user sees where an error was not foreseen: one sentence and the file of the traceback."""

import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from signal import SIGTERM, signal
from threading import current_thread, main_thread
from types import FrameType

from mm_cca.errors import is_out_of_memory


class Terminated(BaseException):
    """SIGTERM, as a scheduler sends it before the time of a job ends."""


def report_of(error: BaseException) -> str:
    """Write the traceback of an error to a file, and return the sentence that names it."""
    first = (str(error).strip().splitlines() or [""])[0][:300]
    name = type(error).__name__
    if is_out_of_memory(error):
        return (
            f"out of memory ({name}: {first}). Finished work is kept. Lower the batch size of this "
            "stage (data.encode_batch_size, train.micro_batch_size, sample.batch_size or "
            "eval.batch_size) and run the same command again."
        )
    text = "".join([f"{' '.join(sys.argv)}\n\n", *traceback.format_exception(error)])
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix="mm-cca-", suffix=".log", delete=False
        ) as file:
            file.write(text.encode("utf-8", "backslashreplace").decode("utf-8"))
    except OSError:  # no room for it
        where = "there was no room for its traceback"
    else:
        where = f"its traceback is in {file.name}"
    return (
        f"unexpected {name}: {first}\nThis is a fault of mm-cca or of a library, not foreseen; "
        f"{where}, and --debug shows it here. Finished work is kept."
    )


@contextmanager
def termination() -> Iterator[None]:
    """Raise ``Terminated`` on SIGTERM, so that files are closed and the user is told."""
    if current_thread() is not main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal(SIGTERM, stop)
    try:
        yield
    finally:
        signal(SIGTERM, before)


def print_anything() -> None:
    """Let the terminal's encoding replace what it can't show, rather than end the command."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # not a terminal or a file: a test's or a notebook's
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
