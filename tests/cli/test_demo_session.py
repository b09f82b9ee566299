"""Sampling prompts with a finished run: equal to the arms' own sampling, and users' mistakes.

The page itself is tested in test_demo_page.py.
"""

import importlib.util
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from mm_cca import cli
from mm_cca.adapters.base import grid_of
from mm_cca.cli.commands import demo
from mm_cca.cli.commands.demo_session import DemoSession
from mm_cca.errors import UserError
from mm_cca.modeling.sampler import image_stream, sample_codes
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.draw import sampling_settings
from mm_cca.sampling.weights import load_source
from tests.support import runs

PROMPT = "green owl"


def pixels_of_arm(recipe_path: Path, source: str, scale: float, dial: float) -> np.ndarray:
    """The pixels of one arm, from models loaded for it alone."""
    recipe = runs.load_recipe(recipe_path)
    model = load_source(recipe, RunFolder.of(recipe), source, dial=dial)
    grid = grid_of(model, recipe.data.image_size)
    settings = sampling_settings(recipe, Arm(source, scale), model.defaults)
    uniforms = image_stream(5, 0, model.layout(grid).num_codes)[None]
    codes, _ = sample_codes(model, [PROMPT], grid, uniforms, settings)
    return model.decode(codes, grid)[0].permute(1, 2, 0).numpy()


@pytest.fixture(scope="module", params=["full", "lora"])
def trained(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    values = runs.tiny_recipe(folder, tiny_folder, runs.two_splits(folder / "data.parquet"))
    # So far from the base that another model gives another image.
    values["train"].update(max_steps=3, learning_rate=3e-2, tuning=request.param)
    return Path(runs.write_recipe(folder / "recipe.yaml", values))


def test_three_ways_of_one_prompt(trained: Path):
    runs.do(trained)
    session = DemoSession(trained.parent / "run")
    images = {}
    # There and back: the previous dial must not matter.
    for dial in (1.0, 0.5, 1.5, 1.0):
        base, guided, cca = session.draw(PROMPT, seed=5, scale=4.0, dial=dial)
        named = f"cca+dial{dial:g}" if dial != 1 else "cca"
        assert [one.name for one in (base, guided, cca)] == ["base", "base+cfg4", named]
        assert [one.forward_passes for one in (base, guided, cca)] == [16, 32, 16]
        assert min(one.seconds for one in (base, guided, cca)) > 0
        assert np.array_equal(np.array(base.images[0]), pixels_of_arm(trained, "base", 1.0, 1.0))
        assert np.array_equal(np.array(guided.images[0]), pixels_of_arm(trained, "base", 4.0, 1.0))
        assert np.array_equal(np.array(cca.images[0]), pixels_of_arm(trained, "cca", 1.0, dial))
        images[dial] = cca.images[0].tobytes()
        images["base"] = base.images[0].tobytes()
        images["guided"] = guided.images[0].tobytes()
    assert len(set(images.values())) >= 4, "the test needs different images"
    again = next(session.draw(PROMPT, seed=6, scale=4.0, dial=1.0)).images[0].tobytes()
    assert again != images["base"]
    both = next(session.draw(PROMPT, seed=5, scale=4.0, dial=1.0, count=2)).images
    assert [one.tobytes() for one in both] == [images["base"], again]
    assert set(session.examples) <= set(runs.CAPTIONS)
    assert len(session.examples) > 1


@pytest.mark.parametrize(
    ("prompt", "seed", "scale", "dial", "message"),
    [
        ("  ", 0, 2.0, 1.0, "the prompt is empty"),
        ("owl", -1, 2.0, 1.0, "the seed is -1; allowed: 0 or more"),
        ("owl", 0, 0.5, 1.0, r"the guidance scale is 0\.5; allowed: 1 or more"),
        ("owl", 0, 2.0, -0.1, r"the dial is -0\.1; allowed: 0 or more"),
        ("owl", 0, 2.0, float("nan"), "the dial is nan"),
    ],
)
def test_invalid_inputs(
    reported: Path, prompt: str, seed: int, scale: float, dial: float, message: str
):
    with pytest.raises(UserError, match=message):
        DemoSession(reported.parent / "run").draw(prompt, seed, scale, dial)


def test_a_folder_that_is_not_a_run_or_not_trained(reported: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"is not a run folder: it has no recipe\.yaml"):
        DemoSession(tmp_path)
    shutil.copy(reported.parent / "run" / "recipe.yaml", tmp_path)
    incomplete = "train/model does not exist or is incomplete: train the cca model"
    with pytest.raises(UserError, match=incomplete):
        DemoSession(tmp_path)


def test_without_gradio_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    real = importlib.util.find_spec
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "gradio" else real(name))
    assert cli.main(["demo", str(tmp_path)]) == 2
    assert 'pip install "mm-cca[demo]"' in capsys.readouterr().err


def test_a_port_that_is_taken_or_none(reported: Path, capsys: pytest.CaptureFixture[str]):
    words = ["demo", str(reported.parent / "run"), "--port"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main([*words, port]) == 2
    assert f"--port is {port}, which can't be opened" in capsys.readouterr().err
    assert cli.main([*words, "70000"]) == 2
    assert "up to 65535" in capsys.readouterr().err
