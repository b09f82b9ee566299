"""Drawing: the manifest, resuming, and that an image depends on its prompt's index only."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mm_cca.adapters.base import UnifiedModel
from mm_cca.cli.commands.prepare import frozen_model
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.draw import sample_arms
from mm_cca.sampling.manifest import read_manifest
from mm_cca.sampling.prompts import prompts_of
from tests.support import runs

ARMS = ("base", "base+cfg2", "cca")


@pytest.fixture(scope="module")
def drawn(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose stages up to ``sample`` are done."""
    folder = tmp_path_factory.mktemp("drawn")
    values = runs.tiny_recipe(folder, tiny_folder, runs.two_splits(folder / "data.parquet"))
    values["data"]["heldout_split"] = "heldout"
    values["train"]["max_steps"] = 2
    recipe = runs.write_recipe(folder / "recipe.yaml", values)
    runs.do(recipe, stages=["prepare", "train", "sample"])
    return recipe


@pytest.fixture
def again(drawn: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may modify."""
    shutil.copytree(drawn.parent / "run", tmp_path / "run")
    path = tmp_path / "recipe.yaml"
    shutil.copy(drawn, path)
    return path


def sample(path: Path, *overrides: str) -> None:
    runs.do(path, f"run.dir={path.parent / 'run'}", *overrides, stages=["sample"])


def reopen(folder: Path) -> None:
    """As if the stage had been interrupted: not done, the rank's manifest not merged."""
    stage = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(stage | {"done": False}))
    (folder / "manifest.jsonl").rename(folder / "manifest.jsonl.0")


def pictures(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in runs.files_of(folder).items() if name.endswith(".png")}


def without_timings(folder: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_manifest(folder)]


def test_new_arms_do_not_change_the_others_and_record_their_settings(again: Path):
    """Their images differ from those of similar arms, and dial 0 draws those of the base."""
    folder = again.parent / "run" / "samples"
    before = runs.mtimes_of(folder)
    options = ["sample.negative_prompts=['', red owl]", "sample.cca_scales=2"]
    sample(again, *options, "sample.dial=[0, 0.5, 30]")
    after = runs.mtimes_of(folder)
    assert {name: after[name] for name in before} == before
    sets = {path.name: pictures(path) for path in folder.iterdir()}
    assert set(sets) == {
        *ARMS,
        "base+cfg2+neg1",
        "cca+cfg2",
        "cca+cfg2+neg1",
        "cca+dial0",
        "cca+dial0.5",
        "cca+dial30",
    }
    assert sets["cca+dial0"] == sets["base"]
    assert sets["cca+dial30"] != sets["cca"]
    assert sets["base+cfg2+neg1"] != sets["base+cfg2"]
    settings = {
        name: json.loads((folder / name / "stage.json").read_text())["settings"] for name in sets
    }
    keys = ("guidance_scale", "sample.negative_prompt", "dial")
    recorded = {name: [s.get(key, "-") for key in keys] for name, s in settings.items()}
    assert recorded == {
        "base": [1.0, "-", "-"],
        "base+cfg2": [2.0, "", "-"],
        "base+cfg2+neg1": [2.0, "red owl", "-"],
        "cca": [1.0, "-", "-"],
        "cca+cfg2": [2.0, "", "-"],
        "cca+cfg2+neg1": [2.0, "red owl", "-"],
        "cca+dial0": [1.0, "-", 0.0],
        "cca+dial0.5": [1.0, "-", 0.5],
        "cca+dial30": [1.0, "-", 30.0],
    }
    arm_keys = ("sample.guidance_scales", "sample.dial", "sample.negative_prompts")
    assert not [s for s in settings.values() if set(arm_keys) & set(s)]


def test_another_negative_prompt_with_the_same_number_is_refused(again: Path):
    sample(again, "sample.negative_prompts=blurry")
    with pytest.raises(UserError, match="negative_prompt: was 'blurry', is now 'text'"):
        sample(again, "sample.negative_prompts=text")


def test_other_temperatures_are_arms_with_the_same_random_numbers(again: Path, tmp_path: Path):
    """Bit for bit the images of a run with that sample.temperature, also after an interruption."""
    folder = again.parent / "run" / "samples"
    before = runs.mtimes_of(folder)
    sample(again, "sample.temperatures=[0.5, 2]")
    after = runs.mtimes_of(folder)
    assert {name: after[name] for name in before} == before
    names = {f"{arm}{suffix}" for arm in ARMS for suffix in ("", "+t0.5", "+t2")}
    assert {path.name for path in folder.iterdir()} == names
    cooler = tmp_path / "cooler"
    shutil.copytree(again.parent / "run", cooler, ignore=shutil.ignore_patterns("samples"))
    runs.do(again, f"run.dir={cooler}", "sample.temperature=0.5", stages=["sample"])
    for arm in ARMS:
        one, other = folder / f"{arm}+t0.5", cooler / "samples" / arm
        assert pictures(one) == pictures(other)
        assert pictures(one) != pictures(folder / arm)
        assert without_timings(one) == without_timings(other)
        assert (one / "stage.json").read_text() == (other / "stage.json").read_text()
        assert [line["seed"] for line in without_timings(one)] == [
            line["seed"] for line in without_timings(folder / arm)
        ]
    interrupted = folder / "cca+t2"
    kept = pictures(interrupted)
    reopen(interrupted)
    (interrupted / "000007.png").unlink()
    sample(again, "sample.temperatures=[2]")
    assert pictures(interrupted) == kept


def test_a_temperature_that_repeats_the_default_draws_nothing(again: Path):
    before = runs.mtimes_of(again.parent / "run" / "samples")
    with pytest.raises(UserError, match="the default temperature of emu3"):
        sample(again, "sample.temperatures=[1, 2]")
    assert runs.mtimes_of(again.parent / "run" / "samples") == before


@pytest.mark.parametrize("arm", ARMS)
def test_manifest_lines(drawn: Path, arm: str):
    folder = drawn.parent / "run" / "samples" / arm
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(12))
    assert sorted(p.name for p in folder.glob("*.png")) == [f"{i:06d}.png" for i in range(12)]
    assert {line["split"] for line in lines} == {"train", "heldout"}
    recipe = runs.load_recipe(drawn)
    prompts = prompts_of(recipe, RunFolder.of(recipe))
    for line, prompt in zip(lines, prompts, strict=True):
        data = (folder / f"{line['index']:06d}.png").read_bytes()
        assert line["sha256"] == hashlib.sha256(data).hexdigest()
        assert line["forward_passes"] == (32 if "cfg" in arm else 16)
        assert line["guidance_scale"] == (2.0 if "cfg" in arm else 1.0)
        assert line["seed"] == [0, line["index"]]
        assert (line["prompt"], line["row"]) == (prompt.caption, prompt.row)
        assert line["seconds"] > 0


def test_arms_and_prompts_differ(drawn: Path):
    samples = drawn.parent / "run" / "samples"
    sets = {arm: pictures(samples / arm) for arm in ARMS}
    assert all(len(set(drawings.values())) > 6 for drawings in sets.values())
    assert sets["base"] != sets["base+cfg2"]


def test_finished_arms_are_not_changed(again: Path):
    before = runs.mtimes_of(again.parent / "run" / "samples")
    sample(again)
    assert runs.mtimes_of(again.parent / "run" / "samples") == before


@pytest.mark.parametrize("arm", ["base", "base+cfg2"])
def test_only_deleted_images_are_drawn_again(again: Path, arm: str):
    folder = again.parent / "run" / "samples" / arm
    pictures_before, lines = pictures(folder), without_timings(folder)
    reopen(folder)
    (folder / "000004.png").unlink()
    (folder / "000010.png").unlink()
    kept = runs.mtimes_of(folder)
    sample(again)
    assert pictures(folder) == pictures_before
    assert without_timings(folder) == lines
    after = runs.mtimes_of(folder)
    assert all(after[name] == kept[name] for name in pictures_before if name in kept)
    assert not list(folder.glob("manifest.jsonl.*"))


def test_the_image_of_a_truncated_last_line_is_drawn_again(again: Path):
    folder = again.parent / "run" / "samples" / "base"
    pictures_before, lines = pictures(folder), without_timings(folder)
    reopen(folder)
    part = folder / "manifest.jsonl.0"
    part.write_text(part.read_text()[:-40])
    kept = runs.mtimes_of(folder)
    sample(again)
    assert pictures(folder) == pictures_before
    assert without_timings(folder) == lines
    after = runs.mtimes_of(folder)
    changed = [name for name in pictures_before if after[name] != kept[name]]
    assert changed == ["000011.png"]


def test_lines_written_after_a_truncated_one_are_kept(again: Path):
    """A line appended directly to a truncated one would be unreadable."""
    folder = again.parent / "run" / "samples" / "base"
    lines = without_timings(folder)
    reopen(folder)
    part = folder / "manifest.jsonl.0"
    part.write_text(part.read_text()[:-40])
    (folder / "000003.png").unlink()
    sample(again)
    assert without_timings(folder) == lines


@pytest.mark.parametrize("size", [5, 12])
def test_batch_size_does_not_change_the_images(again: Path, size: int):
    folder = again.parent / "run" / "samples"
    before = {arm: pictures(folder / arm) for arm in ARMS}
    shutil.rmtree(folder)
    sample(again, f"sample.batch_size={size}")
    assert {arm: pictures(folder / arm) for arm in ARMS} == before


def test_another_scale_does_not_change_the_other_arms(again: Path):
    folder = again.parent / "run" / "samples"
    before = runs.mtimes_of(folder)
    sample(again, "sample.guidance_scales=[2.0, 3.0]")
    after = runs.mtimes_of(folder)
    assert {name: after[name] for name in before} == before
    assert (folder / "base+cfg3" / "000000.png").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sample.temperature=0.5", "sample.temperature: was None, is now 0.5"),
        ("sample.seed=1", "sample.seed: was 0, is now 1"),
        ("sample.top_k=3", "sample.top_k: was None, is now 3"),
        ("sample.num_images=4", "sample.num_images: was 6, is now 4"),
    ],
)
def test_changed_recipe_is_refused(again: Path, override: str, message: str):
    before = runs.mtimes_of(again.parent / "run" / "samples")
    with pytest.raises(UserError) as caught:
        sample(again, override)
    assert message in str(caught.value)
    assert runs.mtimes_of(again.parent / "run" / "samples") == before


def test_untrained_model_is_refused(again: Path):
    shutil.rmtree(again.parent / "run" / "train")
    shutil.rmtree(again.parent / "run" / "samples" / "cca")
    with pytest.raises(UserError, match="mm-cca train"):
        sample(again)


def test_a_full_disk_keeps_finished_images(again: Path, monkeypatch: pytest.MonkeyPatch):
    folder = again.parent / "run" / "samples" / "base"
    before = pictures(folder)
    shutil.rmtree(folder)
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "000007.png":
            raise OSError(28, "No space left on device")
        return real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match="No space left on device"):
            sample(again)
    assert len(read_manifest(folder)) == 6
    kept = runs.mtimes_of(folder)
    sample(again)
    assert pictures(folder) == before
    after = runs.mtimes_of(folder)
    assert all(after[f"{i:06d}.png"] == kept[f"{i:06d}.png"] for i in range(6))


def test_a_slow_rank_skips_no_prompt(again: Path, monkeypatch: pytest.MonkeyPatch):
    """The prompts are divided among the ranks before the first one is drawn."""
    recipe = runs.load_recipe(again, f"run.dir={again.parent / 'run'}", "sample.batch_size=2")
    run = RunFolder.of(recipe)
    before, lines = pictures(run.samples / "base"), without_timings(run.samples / "base")
    shutil.rmtree(run.samples / "base")
    ranks = runs.TwoRanks()

    def slow(folder: Path):
        give_up = time.monotonic() + 1
        first = folder / "000000.png"
        while not ranks.is_main_process and not first.exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        time.sleep(0.1)
        return read_manifest(folder)

    with monkeypatch.context() as patch:
        patch.setattr("mm_cca.sampling.draw.PartialState", ranks)
        patch.setattr("mm_cca.sampling.draw.read_manifest", slow)
        patch.setattr("mm_cca.sampling.draw.load_source", frozen(recipe))
        ranks.run(lambda: sample_arms(recipe, run))
    assert pictures(run.samples / "base") == before
    assert without_timings(run.samples / "base") == lines


def frozen(recipe: Recipe) -> Callable[..., UnifiedModel]:
    model = frozen_model(recipe)
    return lambda *_, **__: model
