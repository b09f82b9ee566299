"""A whole run with templates: the model reads them, scores and records go by the plain prompt."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm_cca import cli
from mm_cca.adapters.base import UnifiedModel
from mm_cca.cli.commands.demo_session import DemoSession
from mm_cca.cli.commands.export import export_model
from mm_cca.config.stage_keys import texts_digest
from mm_cca.errors import UserError
from mm_cca.modeling.sampler import image_stream, sample_codes
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.draw import sampling_settings
from mm_cca.sampling.manifest import read_manifest
from mm_cca.sampling.prompts import prompts_of
from tests.support import runs
from tests.support.training import at

TEMPLATE, CAPTIONS = "{prompt}, smiling owl", "waving {prompt}"
NEGATIVE = "small hand"
KEYS = [
    f'sample.prompt_template="{TEMPLATE}"',
    f"data.caption_template={CAPTIONS}",
    f"sample.negative_prompts=[{NEGATIVE}]",
    "data.heldout_split=null",
    "train.max_steps=1",
]
STAGES = ["prepare", "train", "sample", "eval", "report"]
GRID = (4, 4)


@pytest.fixture(scope="module")
def templated(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = at(prepared, tmp_path_factory.mktemp("templated"))
    runs.do(recipe, *KEYS, stages=STAGES)
    return recipe


def _pixels(model: UnifiedModel, recipe: Path, text: str, arm: Arm, index: int) -> np.ndarray:
    loaded = runs.load_recipe(recipe, *KEYS)
    settings = sampling_settings(loaded, arm, model.defaults)
    uniforms = image_stream(loaded.sample.seed, index, 16)[None]
    codes, _ = sample_codes(model, [text], GRID, uniforms, settings)
    return np.array(model.decode(codes, GRID)[0].permute(1, 2, 0).numpy())


def _same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """The same codes: one image alone is decoded with other rounding than in a batch."""
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max()) <= 2


@pytest.mark.parametrize("arm", [Arm("base", 1.0), Arm("base", 2.0, NEGATIVE, negative_number=1)])
def test_every_arm_reads_the_template_and_the_negative_prompt_does_not(
    templated: Path, tiny_model: UnifiedModel, arm: Arm
):
    """Against the same text written out by hand; the plain prompt would give another image."""
    folder = templated.parent / "run" / "samples" / arm.name
    differs = []
    for line in read_manifest(folder):
        drawn = np.array(Image.open(folder / f"{line['index']:06d}.png"))
        asked = f"{line['prompt']}, smiling owl"
        expected = _pixels(tiny_model, templated, asked, arm, line["index"])
        assert _same(drawn, expected)
        plain = _pixels(tiny_model, templated, line["prompt"], arm, line["index"])
        differs.append(not _same(drawn, plain))
    assert any(differs)


def test_records_keep_the_plain_prompt_beside_the_template(templated: Path):
    run = templated.parent / "run"
    loaded = runs.load_recipe(templated, *KEYS)
    captions = [prompt.caption for prompt in prompts_of(loaded, RunFolder.of(loaded))]
    assert not any("smiling owl" in caption or "waving" in caption for caption in captions)
    for arm in ("base", "base+cfg2+neg1", "cca"):
        lines = read_manifest(run / "samples" / arm)
        assert [line["prompt"] for line in lines] == captions
        assert {line["prompt_template"] for line in lines} == {TEMPLATE}
    report = json.loads((run / "report.json").read_text())
    protocol = report["protocol"]
    assert protocol["sampling"]["prompt_template"] == TEMPLATE
    assert protocol["prompts_sha256"]["train"] == texts_digest(captions)
    (grid,) = runs.grids_of(run / "report.html")
    assert grid["captions"] == captions
    page = (run / "report.html").read_text()
    assert f"<code>{TEMPLATE}</code> for sampling, and scored without it" in page


def test_the_token_cache_is_the_plain_ones(templated: Path, prepared: Path):
    """``prepared`` filled it without any template; ``templated`` found it complete."""
    stage = json.loads((prepared.parent / "tokens" / "train" / "stage.json").read_text())
    assert not any("template" in name for name in stage["settings"])


def test_a_change_is_refused(templated: Path, tmp_path: Path):
    shutil.copytree(templated.parent / "run", tmp_path / "run")
    for changed, name in (
        ("sample.prompt_template=null", "sample.prompt_template"),
        ("data.caption_template=null", "data.caption_template"),
    ):
        stage = "train" if name.startswith("data") else "sample"
        with pytest.raises(UserError, match=name):
            runs.do(templated, *KEYS, changed, f"run.dir={tmp_path / 'run'}", stages=[stage])


def test_runs_that_differ_in_it_do_not_compare(
    templated: Path, reported: Path, capsys: pytest.CaptureFixture[str]
):
    files = [str(path.parent / "run" / "report.json") for path in (templated, reported)]
    assert cli.main(["eval", "--compare", *files]) == 2
    assert f"sampling.prompt_template: '{TEMPLATE}' against None" in capsys.readouterr().err


def test_the_model_card_and_the_demo_know_it(
    templated: Path, tmp_path: Path, tiny_model: UnifiedModel
):
    run = templated.parent / "run"
    export_model(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"captions of training were put into the template `{CAPTIONS}`" in card
    assert f"sampled prompts were put into the template `{TEMPLATE}`" in card
    base, guided, _ = DemoSession(run).draw("red face", seed=0, scale=2.0, dial=1.0)
    asked, arm = "red face, smiling owl", Arm("base", 2.0, NEGATIVE, negative_number=1)
    assert guided.name == "base+cfg2+neg1"
    plain = _pixels(tiny_model, templated, asked, Arm("base", 1.0), 0)
    assert np.array_equal(np.array(base.images[0]), plain)
    assert np.array_equal(np.array(guided.images[0]), _pixels(tiny_model, templated, asked, arm, 0))


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_captions_that_are_too_long_only_in_the_template_are_refused(
    prepared: Path, tmp_path: Path, stage: str
):
    """Before anything is encoded; and by training, where the cache was filled without it."""
    recipe = at(prepared, tmp_path)
    long = f'data.caption_template="{{prompt}} {"owl " * 2000}"'
    fresh = [f"run.tokens_dir={tmp_path / 'tokens'}"] if stage == "prepare" else []
    with pytest.raises(UserError, match=r"caption too long: \d+ tokens"):
        runs.do(recipe, long, *fresh, stages=[stage])
    assert not list(tmp_path.glob("tokens/*/shards/*"))
