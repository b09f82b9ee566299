"""Which package may import which: only downwards, and without a circle inside a package."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGE = {"modeling", "data", "adapters", "runs", "config", "negatives", "objectives", "errors"}
ALLOWED = {
    "cli": {"testing", "eval", "training", "sampling", "demo"} | STAGE,
    "api": {"sampling"} | STAGE,
    "testing": {"demo", "modeling", "adapters", "errors"},
    "eval": {"training", "sampling"} | STAGE - {"objectives"},
    "training": STAGE,
    "sampling": STAGE,
    "demo": STAGE,
    "modeling": {"adapters", "config", "errors"},
    "data": {"adapters", "runs", "config", "errors"},
    "adapters": {"config", "errors"},
    "runs": {"config", "errors"},
    "config": {"negatives", "errors"},
    "negatives": {"errors"},
    "objectives": {"errors"},
    "errors": set(),
    "recipes": set(),
    "vllm_plugin": set(),
}
"""The table of CONTRIBUTING.md."""
EVAL_TRAINING = {"mm_cca.training.health"}
"""All that eval takes from training: the threshold of its warnings."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "mm_cca":
        parts = ("mm_cca", *parts)
    return ".".join(parts).removesuffix(".__init__")


FOLDERS = ("mm_cca", "eval", "recipes")
PATHS = {module_of(p): p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")}


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imports_of(module: str) -> set[str]:
    """Our modules that a module imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(PATHS[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in PATHS else str(node.module) for name in inner}
    return {name for name in found if name in PATHS} - {module}


@pytest.mark.parametrize("module", sorted(set(PATHS) - {"mm_cca"}))
def test_imports_go_down(module: str):
    own = package_of(module)
    for target in imports_of(module) - {"mm_cca"}:
        package = package_of(target)
        assert package == own or package in ALLOWED[own], f"{module} imports {target}"
        if (own, package) == ("eval", "training"):
            assert target in EVAL_TRAINING, f"{module} imports {target}"


EVAL = "mm_cca.eval."
INSIDE_EVAL = {
    "metrics": {"metrics", "summary_types"},
    "features": {"features", "metrics"},
    "report": {"report", "comparison_types", "per_prompt", "summary_files", "summary_types"},
}


@pytest.mark.parametrize("module", sorted(m for m in PATHS if m.startswith(EVAL)))
def test_imports_inside_eval(module: str):
    own = module.removeprefix(EVAL).split(".")[0]
    targets = {t.removeprefix(EVAL).split(".")[0] for t in imports_of(module) if t.startswith(EVAL)}
    assert own == "report" or "report" not in targets
    assert targets <= INSIDE_EVAL.get(own, targets), f"{module} imports {targets}"


def test_only_the_command_line_imports_the_report():
    importers = {
        package_of(module)
        for module in PATHS
        if any(target.startswith(f"{EVAL}report") for target in imports_of(module))
    }
    assert importers == {"cli", "eval"}


def test_vllm_is_only_imported_by_its_plugin():
    """An engine lives in an environment of its own, and its plugin knows nothing of ours."""
    packages = {}
    for module, path in PATHS.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
        names += [str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)]
        packages[module] = {name.split(".")[0] for name in names}
    users = {module for module, names in packages.items() if names & {"vllm", "mm_cca_vllm"}}
    assert users == {module for module in PATHS if package_of(module) == "vllm_plugin"}
    assert all("mm_cca" not in packages[module] for module in users)


def test_every_package_has_its_rules():
    assert {package_of(module) for module in PATHS} - {"mm_cca"} == set(ALLOWED)


def test_packages_and_modules_form_no_circle():
    for source, targets in ALLOWED.items():
        assert source not in targets
    assert list(TopologicalSorter(ALLOWED).static_order())
    graph = {module: imports_of(module) for module in PATHS}
    for name in PATHS:  # a package's own face imports its files, which is no circle
        graph[name] = {t for t in graph[name] if not name.startswith(f"{t}.")}
    assert list(TopologicalSorter(graph).static_order())


def test_no_file_name_twice():
    names = [p.name for p in PATHS.values() if p.name not in ("__init__.py", "__main__.py")]
    twice = {name for name in names if names.count(name) > 1}
    # contract.py is the documented name of what lies in testing.
    assert twice <= {"contract.py"}, twice


def test_no_class_name_twice():
    found: dict[str, str] = {}
    for module, path in PATHS.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert found.setdefault(node.name, module) == module, f"{node.name}: two classes"
