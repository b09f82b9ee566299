"""``watch``: the curves and previews of a training, only on this machine, while it runs."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mm_cca import cli
from mm_cca.errors import Interrupted
from mm_cca.eval.report.preview_strip import MOST, strip_of
from mm_cca.eval.report.watch_page import codes_per_image, watch_page
from mm_cca.runs.folder import open_run
from mm_cca.runs.preview_record import PreviewRecord, picture_of
from mm_cca.training import train as training
from tests.support import runs
from tests.support.training import at


@pytest.fixture(scope="module")
def half_way(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a training that stopped after two of four steps."""
    folder = tmp_path_factory.mktemp("half_way")
    seen: list[int] = []
    real = training._step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_step", lambda *args: seen.append(1) or real(*args))
        patch.setattr(training, "on_any_rank", lambda *_: len(seen) == 2)
        with pytest.raises(Interrupted):
            runs.do(at(prepared, folder), "sample.every=1", "sample.num_previews=2")
    return folder / "run"


def test_the_page_shows_curves_and_previews_so_far(half_way: Path):
    recipe, run = open_run(half_way)
    num_codes = codes_per_image(recipe, run)
    assert num_codes == 16
    page = watch_page(recipe, run, num_codes)
    assert "2 of 4 steps" in page
    assert 'http-equiv="refresh"' in page
    assert re.findall(r"<th scope=\"col\">([^<]*)</th>", page) == ["prompt", "base", "step 1"]
    assert page.count("data:image/webp;base64,") == 2 * 2 * 2
    assert page.count("<svg") == len(re.findall("Training curve: ", page)) > 2


def test_before_the_first_step_and_without_previews(half_way: Path, tmp_path: Path):
    shutil.copytree(half_way, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "train" / "previews")
    (tmp_path / "run" / "train" / "metrics.jsonl").write_text("")
    recipe, run = open_run(tmp_path / "run")
    recipe.sample.every = None
    page = watch_page(recipe, run, 16)
    assert "0 of 4 steps" in page
    assert "No step is done yet" in page
    assert "None so far: sample.every is null" in page


def test_many_previews_are_spread_and_a_missing_picture_is_left_out(half_way: Path, tmp_path: Path):
    folder = tmp_path / "train"
    shutil.copytree(half_way / "train" / "previews", folder / "previews")
    drawn = dict.fromkeys(range(0, 101, 5), 1.0)
    PreviewRecord(["owl"], 2.0, {}, drawn).write(folder)
    strip = strip_of(folder)
    assert strip is not None
    assert strip["count"] == 21
    assert len(strip["steps"]) == MOST
    assert (strip["steps"][0], strip["steps"][-1]) == (0, 100)
    assert [row["guided"] for row in strip["rows"]] == [False, True]
    first, *others = strip["rows"][0]["thumbs"]
    assert first is not None
    assert others == [None] * (MOST - 1)  # only steps 0 and 1 are there
    assert picture_of(folder, 0, 0, guided=False).exists()


def test_it_is_served_here_only_and_ends_without_errors(
    half_way: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BROWSER", "true")
    words = [sys.executable, "-m", "mm_cca.cli", "watch", str(half_way)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout
    line = next(line for line in server.stdout if line.startswith("serving"))
    address = line.split()[1]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    with urllib.request.urlopen(address, timeout=60) as reply:
        assert "2 of 4 steps" in reply.read().decode()
    for other in ("recipe.yaml", "train/metrics.jsonl"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + other, timeout=60)
    record = half_way / "train" / "previews" / "previews.json"
    whole = record.read_text()
    record.write_text("{")
    try:
        with pytest.raises(urllib.error.HTTPError, match="500") as caught:
            urllib.request.urlopen(address, timeout=60)
        assert "previews.json can" in caught.value.read().decode()
    finally:
        record.write_text(whole)
    server.send_signal(signal.SIGINT)
    _, said = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "Traceback" not in said


def test_bad_input_is_one_sentence(
    half_way: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["watch", str(half_way), "--port", port]) == 2
    assert f"--port is {port}, which another program uses" in capsys.readouterr().err
    assert cli.main(["watch", str(tmp_path)]) == 2
    assert f"{tmp_path} is not a run folder" in capsys.readouterr().err
    untrained = tmp_path / "untrained"
    untrained.mkdir()
    shutil.copy(half_way / "recipe.yaml", untrained)
    assert cli.main(["watch", str(untrained)]) == 2
    assert f"{untrained} has no training to watch" in capsys.readouterr().err
    runs.write_recipe(untrained / "recipe.yaml", _sampling_only(half_way))
    assert cli.main(["watch", str(untrained)]) == 2
    assert f"has no training of its own (run.trained); watch {half_way}" in capsys.readouterr().err


def _sampling_only(trained: Path) -> dict:
    import yaml

    values = yaml.safe_load((trained / "recipe.yaml").read_text())
    values["run"]["trained"] = str(trained)
    return values
