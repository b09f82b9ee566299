"""What is inside a wheel, and that this install imports the folders beside the package."""

import os
import shutil
import subprocess
import sys
import tomllib
import types
import zipfile
from importlib import import_module, metadata, resources
from pathlib import Path

import pytest

from mm_cca.adapters.janus_engine import ARCHITECTURE
from mm_cca.config.shipped import SHIPPED

ROOT = Path(__file__).parent.parent
SOURCES = ("mm_cca", "eval", "recipes", "pyproject.toml", "LICENSE", "NOTICE", "README.md")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built offline from a copy of the tree, by the build backend that pyproject.toml names."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, tree / name)
    code = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tree / "dist")],
        cwd=tree,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tree / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def names_of(folder: str, pattern: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)}


def test_wheel_holds_every_module(wheel: zipfile.ZipFile):
    inside = set(wheel.namelist())
    assert names_of("mm_cca", "*.py") <= inside
    assert {f"mm_cca/{name}" for name in names_of("eval", "*.py")} <= inside
    assert {f"mm_cca/{name}" for name in names_of("recipes", "*.py")} <= inside


def test_wheel_holds_what_is_no_code(wheel: zipfile.ZipFile):
    inside = set(wheel.namelist())
    recipes = {f"mm_cca/{name}" for name in names_of("recipes", "*.yaml")}
    assert "mm_cca/recipes/emoji.yaml" in recipes
    assert recipes <= inside
    assert {
        "mm_cca/recipes/schema.json",
        "mm_cca/eval/report/templates/report.html.j2",
        "mm_cca/eval/report/templates/style.css",
        "mm_cca/eval/report/templates/grid.js",
        "mm_cca/demo/emoji.parquet",
        "mm_cca/demo/NOTICE.md",
        "mm_cca/py.typed",
        "mm_cca/negatives/words.yaml",
        "mm_cca/vllm_plugin/pyproject.toml",  # pip installs it in an engine's environment
    } <= inside
    shipped = (ROOT / "mm_cca" / "demo" / "emoji.parquet").read_bytes()
    assert wheel.read("mm_cca/demo/emoji.parquet") == shipped


@pytest.mark.parametrize("model", sorted(set(SHIPPED) - {"emoji"}))
def test_wheel_holds_the_shipped_models(wheel: zipfile.ZipFile, model: str):
    files = {p.relative_to(ROOT).as_posix(): p for p in SHIPPED[model].iterdir()}
    assert any(name.endswith(".safetensors") for name in files)
    assert any(name.endswith("config.json") for name in files)
    assert {name: wheel.read(name) for name in files} == {
        name: path.read_bytes() for name, path in files.items()
    }


def test_wheel_holds_the_licences(wheel: zipfile.ZipFile):
    for name in ("LICENSE", "NOTICE"):
        (found,) = [n for n in wheel.namelist() if n.endswith(f".dist-info/licenses/{name}")]
        assert wheel.read(found) == (ROOT / name).read_bytes()


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert len(tops) == 2, tops
    assert "mm_cca" in tops
    assert not [name for name in wheel.namelist() if "tests" in name or name.startswith("runs/")]


def test_the_plugin_of_vllm_declares_one_entry_point():
    """One in ``vllm.logits_processors`` would stop other servers from starting."""
    folder = ROOT / "mm_cca" / "vllm_plugin"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {
        "vllm.general_plugins": {"mm_cca_janus": "mm_cca_vllm:register"}
    }
    assert project["dependencies"] == []
    registered: dict[str, str] = {}
    registry = types.SimpleNamespace(register_model=registered.__setitem__)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setitem(sys.modules, "vllm", types.SimpleNamespace(ModelRegistry=registry))
        import_module("mm_cca_vllm").register()
    (place,) = registered.values()
    module, _, name = place.partition(":")
    assert list(registered) == [name] == [ARCHITECTURE]
    source = (folder / f"{module.replace('.', '/')}.py").read_text()
    assert f"class {name}(" in source


def test_wheel_has_the_command(wheel: zipfile.ZipFile):
    (name,) = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    assert "mm-cca = mm_cca.cli:main" in wheel.read(name).decode()


@pytest.mark.parametrize(
    "name", ["mm_cca.eval.metrics.distances", "mm_cca.eval.report.run_report", "mm_cca.recipes"]
)
def test_folders_beside_the_package_import(name: str):
    assert import_module(name).__name__ == name


def test_installed_data_is_found():
    assert resources.files("mm_cca.recipes").joinpath("emoji.yaml").is_file()
    assert resources.files("mm_cca.eval.report").joinpath("templates/report.html.j2").is_file()
    assert metadata.version("mm-cca")
    (command,) = [
        e for e in metadata.distribution("mm-cca").entry_points if e.group == "console_scripts"
    ]
    assert command.load() is import_module("mm_cca.cli").main
