"""The examples of docs/python.md run as they stand, in one process, on a tiny run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mm_cca
from mm_cca import cli
from mm_cca.modeling.sampler import SamplingSettings, sample_codes
from tests.support import runs

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
PYTHON = re.compile(r"^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tiny8_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, its export, and pictures."""
    folder = tmp_path_factory.mktemp("page")
    values = runs.tiny_recipe(folder, tiny8_folder, runs.two_splits(folder / "data.parquet"))
    values["run"]["dir"] = str(folder / "runs" / "my_run")
    values["data"]["image_size"] = [32, 32]
    values["train"].update(max_steps=2, tuning="lora", reference="lora", lora_rank=2)
    values["sample"] |= {"num_images": 4, "guidance_scales": []}
    stages = ["prepare", "train", "sample"]
    runs.do(runs.write_recipe(folder / "recipe.yaml", values), stages=stages)
    (folder / "my_images").mkdir()
    for number in range(2):
        runs.picture(number, 32).save(folder / "my_images" / f"000{number}.png")
    export = ["export", str(folder / "runs" / "my_run"), str(folder / "my_model"), "--merge"]
    assert cli.main(export) == 0
    return folder


def run(code: str, folder: Path) -> str:
    (folder / "page.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "page.py"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_examples_with_mm_cca(place: Path):
    text = PAGE.read_text(encoding="utf-8")
    before, stock = text.split("## Without mm_cca\n")
    after = stock.split("## What can go wrong\n")[1]
    examples = PYTHON.findall(before) + PYTHON.findall(after)
    assert len(examples) == 8
    printed = run("\n".join(examples), place)
    assert "emu3 (32, 32)" in printed
    assert "torch.Size([2, 16]) torch.int64" in printed
    assert "guidance_scale is 0.5; allowed: 1" in printed
    stored = place / "runs" / "my_run" / "samples" / "cca" / "000000.png"
    assert Image.open(place / "again.png").tobytes() == Image.open(stored).tobytes()


def test_the_example_of_a_stock_pipeline(place: Path):
    """Where mm_cca can't be imported; then with the best code, where ours is the same."""
    page = PAGE.read_text(encoding="utf-8").split("## Without mm_cca\n")[1]
    (code,) = PYTHON.findall(page.split("## What can go wrong\n")[0])
    alone = "import sys\nsys.modules['mm_cca'] = None\n"
    greedy = code.replace('"do_sample": True', '"do_sample": False')
    told = "print([words.bpe2img[t] for t in tokens[0].tolist() if t in words.bpe2img])\n"
    printed = run(alone + code + greedy + told, place)
    opened = mm_cca.load_run(place / "my_model")
    codes, _ = sample_codes(
        opened.at(),
        ["a red owl"],
        (4, 4),
        np.zeros((1, 16)),
        SamplingSettings(),
        pick=lambda logits, _: logits.argmax(dim=-1),
    )
    assert json.loads(printed.splitlines()[-1]) == codes[0].tolist()
    assert Image.open(place / "stock.png").size == (32, 32)
