"""A finished run to serve."""

import shutil
from pathlib import Path

import pytest

from mm_cca.adapters.base import UnifiedModel
from mm_cca.runs.folder import open_run
from mm_cca.sampling.weights import load_image_parts
from tests.support import runs
from tests.support.training import at


@pytest.fixture(scope="module")
def run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    runs.do(at(prepared, folder), "train.max_steps=1")
    return folder / "run"


@pytest.fixture
def changed(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, free to be broken."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def model(run: Path) -> UnifiedModel:
    return load_image_parts(open_run(run)[0])
