"""What the documents tell a user to type is well-formed; the files and sections they name exist."""

import re
import shlex
from pathlib import Path

import pytest

from mm_cca import cli, load_config
from mm_cca.config.sweep_grid import plan_sweep

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "RESULTS.md",
    "CONTRIBUTING.md",
    "recipes/README.md",
    "eval/README.md",
    "mm_cca/demo/README.md",
    "docs/python.md",
    "docs/free-gpu.md",
)
TEXTS = {name: (ROOT / name).read_text() for name in DOCUMENTS}
README = TEXTS["README.md"]
RESULTS = TEXTS["RESULTS.md"]
CONTRIBUTING = TEXTS["CONTRIBUTING.md"]
TREES = {"README.md": "## Files", "CONTRIBUTING.md": "## How the code is organised"}
FENCED = re.compile(r"^ *```\w*\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)


def _commands() -> list[list[str]]:
    """Every ``mm-cca ...`` of the fenced blocks, as the words after the program's name."""
    blocks = FENCED.findall("\n".join(TEXTS.values()))
    lines = [
        part.strip() for block in blocks for line in block.splitlines() for part in line.split("&&")
    ]
    found = []
    for line in lines:
        program, _, rest = line.partition(" ")
        if program == "mm-cca":
            found.append(shlex.split(rest))
        elif line.startswith("accelerate launch -m mm_cca.cli "):
            found.append(shlex.split(line)[4:])
    return list({" ".join(words): words for words in found}.values())


def test_there_are_commands():
    assert ["run", "emoji"] in _commands()
    assert len(_commands()) >= 6


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "CONTRIBUTING.md"])
def test_every_document_has_commands_that_are_read(name: str):
    """CONTRIBUTING's are not ours: pip, pytest, ruff, mypy."""
    assert re.search(r"^mm-cca \w+", "\n".join(FENCED.findall(TEXTS[name])), flags=re.MULTILINE)


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_a_command_is_well_formed(words: list[str], tmp_path: Path):
    args = cli.parser().parse_args(words)
    if args.verb in ("ls", "explain"):
        assert cli.main(words) == 0
        return
    if args.verb == "cp":
        assert cli.main(["cp", args.recipe, str(tmp_path / "my.yaml")]) == 0
        return
    if args.verb == "tiny":
        assert cli.main([*words[:2], str(tmp_path / "tiny"), "--side", "2"]) == 0
        return
    needs_run = (
        "average",
        "bench",
        "compare",
        "export",
        "export-samples",
        "demo",
        "gaps",
        "push",
        "runs",
        "serve",
        "vote",
        "watch",
    )
    if args.verb in needs_run:
        return  # needs a finished run: test_average.py, test_export.py, test_gaps.py ...
    if args.verb == "eval" and args.compare:
        return  # test_compare.py
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


@pytest.mark.parametrize("name", TREES)
def test_listed_files_exist(name: str):
    listed = _tree(name)
    assert len(listed) > 15
    missing = [path for path in listed if not (ROOT / path).exists()]
    assert not missing, f"listed, but not there: {missing}"


@pytest.mark.parametrize("name", TREES)
def test_every_package_is_listed(name: str):
    listed = _tree(name)
    packages = {path.parent for path in ROOT.glob("*/__init__.py")}
    packages |= {path.parent for path in (ROOT / "mm_cca").glob("*/__init__.py")}
    modules = {p for p in (ROOT / "mm_cca").glob("*.py") if p.name != "__init__.py"}
    unlisted = sorted(
        str(path.relative_to(ROOT))
        for path in packages | modules
        if path.relative_to(ROOT) not in listed
    )
    assert not unlisted, f"there, but not listed: {unlisted}"


def _tree(name: str) -> list[Path]:
    """The paths of a document's file tree, relative to the repository; two spaces are a level."""
    block = FENCED.search(TEXTS[name].split(TREES[name] + "\n")[1])
    assert block is not None
    found: list[Path] = []
    for indent, entry in re.findall(r"^( *)([\w.]+)/?(?: |$)", block[1], flags=re.MULTILINE):
        parent = next((path for path in reversed(found) if len(path.parts) == 1), Path())
        found.append(parent / entry if indent else Path(entry))
    return found


def test_files_named_for_developers_exist():
    """CONTRIBUTING names files from the repository's root or from inside ``mm_cca``."""
    names = set(re.findall(r"`([\w-]+/(?:[\w-]+/)*(?:\w+\.py)?)`", CONTRIBUTING))
    assert len(names) > 15
    places = (ROOT, ROOT / "mm_cca")
    missing = [name for name in names if not any((place / name).exists() for place in places)]
    assert not missing, f"named, but not there: {sorted(missing)}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_linked_files_exist(name: str):
    missing = [link for link, file, _ in _links(name) if not file.exists()]
    assert missing == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_linked_sections_exist(name: str):
    missing = [
        link
        for link, file, section in _links(name)
        if section and section not in _sections(file.read_text())
    ]
    assert missing == []


def test_links_are_found():
    """Or the two tests above would look at nothing."""
    assert sum(len(_links(name)) for name in DOCUMENTS) > 20
    assert sum(bool(section) for name in DOCUMENTS for _, _, section in _links(name)) > 8
    assert any(file.name == "grid.png" for _, file, _ in _links("README.md"))


def _links(name: str) -> list[tuple[str, Path, str]]:
    """Every relative link of a document: as written, its file, its section or ""."""
    text = FENCED.sub("", TEXTS[name])
    found = []
    for link in re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        path, _, section = link.partition("#")
        if "://" not in link:
            file = (ROOT / name).parent / path if path else ROOT / name
            found.append((link, file, section))
    return found


def _sections(text: str) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_anchors_are_made_as_github_makes_them():
    text = "# Is it healthy?\n```\n# a comment\n```\n## COCO-30k, `run.dir`\n"
    assert _sections(text) == {"is-it-healthy", "coco-30k-rundir"}


def test_figures_of_the_readme_are_those_of_results():
    section = README.split("## Result\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4, "head, rule, four arms"
    assert [row for row in rows if row not in RESULTS.splitlines()] == []
