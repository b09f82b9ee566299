"""``report --serve``: only the report and its images, only on this machine."""

import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mm_cca import cli


def status_of(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_serve_shows_only_the_report_and_its_images_and_ends_without_errors(
    reported: Path, changed: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BROWSER", "true")  # a program that opens nothing
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mm_cca.cli",
            "report",
            str(reported),
            f"run.dir={changed}",
            "--serve",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    line = next(line for line in server.stdout if line.startswith("serving"))
    address = line.split()[1]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/report\.html", address)
    root = address.removesuffix("report.html")
    assert status_of(address) == 200
    assert status_of(f"{root}samples/base%2Bcfg2/000000.png") == 200
    with urllib.request.urlopen(root, timeout=10) as reply:
        assert reply.read() == (changed / "report.html").read_bytes()
    for other in ("recipe.yaml", "train/model/config.json", "samples/../recipe.yaml", "train/"):
        assert status_of(root + other) == 404
    server.send_signal(signal.SIGINT)
    _, stderr = server.communicate(timeout=30)
    assert server.returncode == 0
    assert "Traceback" not in stderr


def test_a_port_that_is_taken_or_serves_nothing(
    reported: Path, changed: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["report", str(reported), f"run.dir={changed}"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main([*words, "--serve", "--port", port]) == 2
    assert f"--port is {port}, which another program uses" in capsys.readouterr().err
    assert cli.main([*words, "--serve", "--port", "70000"]) == 2
    assert "up to 65535" in capsys.readouterr().err
    assert cli.main([*words, "--port", "8000"]) == 2
    assert "add --serve" in capsys.readouterr().err
