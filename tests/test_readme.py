"""What README and RESULTS tell a user to type is well-formed, and the files named there exist."""

import re
import shlex
from pathlib import Path

import pytest

from mm_cca.cli import main as cli
from mm_cca.config.load import load_config
from mm_cca.config.sweep_grid import plan_sweep

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "RESULTS.md").read_text()


def _commands() -> list[list[str]]:
    """Every ``mm-cca ...`` of the fenced blocks, as the words after the program's name."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", README + RESULTS, flags=re.MULTILINE | re.DOTALL)
    lines = [
        part.strip() for block in blocks for line in block.splitlines() for part in line.split("&&")
    ]
    found = []
    for line in lines:
        program, _, rest = line.partition(" ")
        if program == "mm-cca":
            found.append(shlex.split(rest))
        elif line.startswith("accelerate launch -m mm_cca.cli.main "):
            found.append(shlex.split(line)[4:])
    return found


def test_there_are_commands():
    assert ["run", "emoji"] in _commands()
    assert len(_commands()) >= 6


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_a_command_is_well_formed(words: list[str], tmp_path: Path):
    args = cli.parser().parse_args(words)
    if args.verb == "cp":
        assert cli.main(["cp", args.recipe, str(tmp_path / "my.yaml")]) == 0
        return
    if args.verb == "tiny":
        assert cli.main([*words[:2], str(tmp_path / "tiny"), "--side", "2"]) == 0
        return
    if args.verb in ("export", "export-samples", "demo") or (args.verb == "eval" and args.compare):
        return  # needs a finished run: test_export.py, test_export_samples.py, test_compare.py
    if args.verb == "coco-prompts":
        return  # needs COCO's annotations: test_coco.py
    recipe = args.recipe
    if recipe in ("my.yaml", "runs/NAME/recipe.yaml"):
        recipe = str(tmp_path / "my.yaml")
        assert cli.main(["cp", "emu3-gen-lora", recipe]) == 0
    if args.verb == "sweep":
        plan_sweep(recipe, args.overrides)
        return
    load_config(recipe, args.overrides)


def test_the_two_commands_name_what_pyproject_promises():
    assert "pip install -e . && mm-cca run emoji" in README
    assert 'pip install -e ".[test]" && pytest' in README


def test_listed_files_exist():
    tree = README.split("## Files")[1]
    names = re.findall(r"^  (\w+\.py) ", tree, flags=re.MULTILINE)
    assert len(names) > 15
    missing = [name for name in names if not (ROOT / "mm_cca" / name).exists()]
    unlisted = [
        p.name
        for p in (ROOT / "mm_cca").glob("*.py")
        if p.name not in names and p.name != "__init__.py"
    ]
    assert not missing, f"listed, but not there: {missing}"
    assert not unlisted, f"there, but not listed: {unlisted}"


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
