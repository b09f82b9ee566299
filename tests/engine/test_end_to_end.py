"""Two servers draw the arms of a run; ``mm-cca serve`` answers OpenAI's own client."""

import json
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm_cca.cli.commands.export_engine import export_for_engine
from mm_cca.sampling.manifest import read_manifest
from mm_cca.testing.tiny import write_tiny
from tests.engine.conftest import started
from tests.support import runs

CLIENT = """
import base64, json, sys
from concurrent.futures import ThreadPoolExecutor
from openai import OpenAI, BadRequestError

client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
def images(prompt, seed):
    answer = client.images.generate(
        model="run/cca", prompt=prompt, n=2, size="16x16", extra_body={"seed": seed}
    )
    return [image.b64_json for image in answer.data]
asked = [(f"{colour} owl", seed) for colour in ("red", "green") for seed in range(6)]
one_by_one = [images(*what) for what in asked]
with ThreadPoolExecutor(12) as pool:
    at_once = list(pool.map(lambda what: images(*what), asked))
try:
    client.images.generate(prompt="owl", n=99)
    refused = ""
except BadRequestError as error:
    refused = error.body["message"]
print(json.dumps([one_by_one, at_once, refused, client.models.list().data[0].id]))
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an Emu3 whose arms base and cca are trained and not yet drawn."""
    folder = tmp_path_factory.mktemp("run")
    write_tiny("emu3", folder / "base", side=2, head_size=32)
    values = runs.tiny_recipe(folder, folder / "base", runs.two_splits(folder / "data.parquet"))
    values["train"]["max_steps"] = 2
    values["sample"] |= {"guidance_scales": [], "num_images": 8}
    path = runs.write_recipe(folder / "recipe.yaml", values)
    runs.do(path)
    return path


def test_two_servers_draw_the_arms_of_a_run(recipe: Path, engine_python: Path, tmp_path: Path):
    run = recipe.parent / "run"
    with ExitStack() as stack:
        urls = []
        for name, source in (("a", "base"), ("b", "cca"), ("c", "cca")):
            export = export_for_engine(run, tmp_path / name, source=source)
            urls.append(stack.enter_context(started(engine_python, export)).url)
        runs.do(recipe, f"sample.engine=[{','.join(urls)}]", stages=["sample"])
    for arm in ("base", "cca"):
        lines = read_manifest(run / "samples" / arm)
        assert len(lines) == 8
        assert json.loads((run / "samples" / arm / "stage.json").read_text())["done"]
        assert all(line["engine"]["kind"] == "vllm" for line in lines)
        for path in (run / "samples" / arm).rglob("*.png"):
            assert np.asarray(Image.open(path)).shape == (16, 16, 3)


def test_serve_answers_openais_client(recipe: Path, engine_python: Path):
    command = [sys.executable, "-m", "mm_cca.cli", "serve", str(recipe.parent / "run")]
    command += ["--port", "0", "--python", str(engine_python), "--engine-args", "--enforce-eager"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        line = next((line for line in server.stdout if line.startswith("serving")), "")
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, server.communicate(timeout=60)[1]
        client = subprocess.run(
            [str(engine_python), "-c", CLIENT, found.group()],
            capture_output=True,
            text=True,
            check=False,
        )
        assert client.returncode == 0, client.stderr
        one_by_one, at_once, refused, served = json.loads(client.stdout)
        assert at_once == one_by_one
        assert len({image for images in one_by_one for image in images}) > 20
        assert "n is 99; allowed: a whole number from 1 to 10" in refused
        assert served == "run/cca"
        server.send_signal(signal.SIGINT)
        assert server.wait(120) == 0
    finally:
        server.kill()
        server.communicate()
