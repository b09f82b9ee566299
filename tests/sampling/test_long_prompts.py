"""A prompt that leaves no room for its image is told before anything is drawn."""

from pathlib import Path

import pytest

from mm_cca.errors import UserError
from tests.support import runs


def test_a_prompt_longer_than_the_decoder(recipe: Path, tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_text("red owl\n" + "red owl " * 1000 + "\n" + "blue hand\n" * 6)
    with pytest.raises(UserError, match=r"1 prompts are too long, such as that of row 1 of .*txt"):
        runs.do(
            recipe,
            f"sample.prompts={file}",
            "run.sources=[base]",
            "eval.metrics=[alignment]",
            stages=["sample"],
        )
    assert not list((tmp_path / "run").glob("samples/*/*.png"))
