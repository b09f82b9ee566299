"""The lines of a model card run as they stand, in processes of their own.

Lines for stock classes run where mm_cca can't be imported.
"""

import ast
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

import mm_cca
from mm_cca.api import ImageModel
from mm_cca.cli.commands.card_snippets import OTHERS, how_to_draw
from mm_cca.cli.commands.card_snippets import PROMPT as CARD_PROMPT
from mm_cca.cli.commands.export import export_model
from mm_cca.modeling.sampler import SamplingSettings, sample_codes
from mm_cca.runs.folder import open_run
from mm_cca.sampling.manifest import manifest_of
from mm_cca.testing.tiny import image_tokenizer_of, tokenizer_of
from tests.support import runs

FAMILIES = ("emu3", "emu3p5", "chameleon", "janus", "lumina-mgpt", "liquid", "simplear")
STOCK = ("emu3", "janus")
PROMPT = 'a red owl, "noto" style'
RUNNER = """
import contextlib, os, sys
for folder in sys.argv[2:]:
    os.chdir(folder)
    if sys.argv[1] == "stock":
        sys.modules["mm_cca"] = None  # as if it were not installed
    with open("printed.txt", "w") as file, contextlib.redirect_stdout(file):
        exec(open("lines.py").read(), {"__name__": "__main__"})
"""
PRINTED = {
    "emu3": "print([words.bpe2img[t] for t in tokens[0].tolist() if t in words.bpe2img])",
    "janus": "print(codes[0].tolist())",
}


def trained(family: str, folders: Path, root: Path, *, objective: str = "cca") -> Path:
    """A LoRA run of a family, of one step."""
    base = folders / family
    values = runs.tiny_recipe(root, base, runs.two_splits(root / "data.parquet"))
    values["model"] |= {
        "adapter": family,
        "image_tokenizer": image_tokenizer_of(family, base),
        "tokenizer": tokenizer_of(family, base),
    }
    values["data"]["image_size"] = [4 * (8 if family == "emu3" else 16)] * 2
    values["loss"]["objective"] = objective
    values["train"].update(max_steps=1, tuning="lora", reference="lora", lora_rank=2)
    values["sample"]["prompt_template"] = '{prompt}, "noto" style'
    runs.do(runs.write_recipe(root / "recipe.yaml", values))
    return root / "run"


@pytest.fixture(scope="module")
def trained_runs(hub_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("cards")
    made = {}
    for family in FAMILIES:
        (root / family).mkdir()
        made[family] = trained(family, hub_folders, root / family)
    return made


def blocks(folder: Path) -> list[str]:
    """The Python of a card, block by block."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run_all(lines: dict[Path, str], kind: str) -> None:
    """Run lines in one new process, each in a folder of its own."""
    for folder, code in lines.items():
        folder.mkdir(parents=True)
        (folder / "lines.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-c", RUNNER, kind, *map(str, lines)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def image_in(folder: Path) -> Image.Image:
    return Image.open(folder / "image.png")


def test_the_lines_with_mm_cca(trained_runs: dict[str, Path], tmp_path: Path):
    """Of an adapter whose base is elsewhere; the image is the run's own."""
    lines = {}
    for family, run in trained_runs.items():
        export_model(run, tmp_path / family)
        lines[tmp_path / "here" / family] = blocks(tmp_path / family)[0]
        assert f'"{tmp_path / family}"' in lines[tmp_path / "here" / family]
    run_all(lines, "any")
    for family, run in trained_runs.items():
        (expected,) = mm_cca.generate(run, "a red owl", seed=0)
        assert image_in(tmp_path / "here" / family).tobytes() == expected.tobytes(), family


def test_the_lines_for_stock_classes(trained_runs: dict[str, Path], tmp_path: Path):
    """They draw; and where the best code is taken, the codes that our sampler draws."""
    lines = {}
    for family in STOCK:
        for kind in ("lora", "merged"):
            out, here = tmp_path / family / kind, tmp_path / "here" / family / kind
            export_model(trained_runs[family], out, merge=kind == "merged")
            _, code = blocks(out)
            assert ("peft" in code) == (kind == "lora")
            assert code.count("do_sample=True") == 1
            greedy = code.replace("do_sample=True", "do_sample=False")
            lines |= {here / "as-it-is": code, here / "greedy": f"{greedy}\n{PRINTED[family]}"}
    run_all(lines, "stock")
    for family in STOCK:
        for kind in ("lora", "merged"):
            here = tmp_path / "here" / family / kind
            opened = mm_cca.load_run(tmp_path / family / kind)
            codes = json.loads((here / "greedy" / "printed.txt").read_text().splitlines()[-1])
            assert codes == greedy_codes(opened), (family, kind)
            assert len(set(codes)) > 3
            (expected,) = mm_cca.decode(opened, torch.tensor([codes]))
            difference = np.abs(np.int16(expected) - np.int16(image_in(here / "greedy")))
            assert difference.max() <= 1, "rounded here, cut off there"
            assert image_in(here / "as-it-is").size == expected.size


def test_a_prompt_template_is_written_as_it_is(trained_runs: dict[str, Path]):
    """With what ends a text of Python, or would mean something else in it."""
    template = 'a "{prompt}" \\n\nsketch'
    recipe, _ = open_run(trained_runs["janus"])
    recipe = replace(recipe, sample=replace(recipe.sample, prompt_template=template))
    code = "\n".join(
        re.findall(r"```python\n(.*?)```", how_to_draw(recipe, "out", is_lora=False), re.S)
    )
    texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert f'a "{CARD_PROMPT}" \\n\nsketch' in texts


def greedy_codes(opened: ImageModel, guidance_scale: float = 1.0) -> list[int]:
    """Of our own sampler."""
    codes, _ = sample_codes(
        opened.at(),
        [PROMPT],
        (4, 4),
        np.zeros((1, 16)),
        SamplingSettings(guidance_scale=guidance_scale),
        pick=lambda logits, _: logits.argmax(dim=-1),
    )
    return codes[0].tolist()


def test_other_families_say_what_reads_them(trained_runs: dict[str, Path], tmp_path: Path):
    for family in set(FAMILIES) - set(STOCK):
        export_model(trained_runs[family], tmp_path / family)
        assert len(blocks(tmp_path / family)) == 1
        assert OTHERS[family] in (tmp_path / family / "README.md").read_text()


def test_janus_is_exported_with_a_scale_that_stock_generate_takes(
    trained_runs: dict[str, Path], tmp_path: Path
):
    export_model(trained_runs["janus"], tmp_path / "out", merge=True)
    config = GenerationConfig.from_pretrained(tmp_path / "out")
    assert config.guidance_scale == 1.000001
    assert "fails at scale 1" in (tmp_path / "out" / "README.md").read_text()


def test_a_plain_fine_tune_keeps_its_guidance(hub_folders: Path, tmp_path: Path):
    """With stock classes, too: the best code of the guided distribution, as our sampler has it."""
    run = trained("emu3", hub_folders, tmp_path, objective="nll")
    out, here = tmp_path / "out", tmp_path / "here"
    export_model(run, out, merge=True)
    assert GenerationConfig.from_pretrained(out).guidance_scale == 3.0
    ours, stock = blocks(out)
    assert "seed=0, guidance_scale=2)" in ours
    assert "guidance_scale=2,\n" in stock
    greedy = stock.replace("do_sample=True", "do_sample=False")
    run_all({here: f"{greedy}\n{PRINTED['emu3']}"}, "stock")
    codes = json.loads((here / "printed.txt").read_text().splitlines()[-1])
    opened = mm_cca.load_run(out)
    assert codes == greedy_codes(opened, 2.0) != greedy_codes(opened)
    assert image_in(here).size == (32, 32)


def test_four_sample_pictures_are_on_the_card(reported: Path, tmp_path: Path):
    out, samples = tmp_path / "out", reported.parent / "run" / "samples" / "cca"
    export_model(reported.parent / "run", out)
    text = (out / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", text)
    assert len(shown) == len({file for _, file in shown}) == 4
    prompts = {f"{line['index']:06d}.png": line["prompt"] for line in manifest_of(samples)}
    for caption, file in shown:
        with Image.open(out / file) as picture, Image.open(samples / Path(file).name) as drawn:
            assert picture.size == (16, 16)
            assert picture.convert("RGB").tobytes() == drawn.convert("RGB").tobytes()
        assert caption == prompts[Path(file).name]
    assert {path.name for path in (out / "samples").iterdir()} == {Path(f).name for _, f in shown}
