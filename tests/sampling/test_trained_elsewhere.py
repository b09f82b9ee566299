"""``run.trained``: a run that samples another run's models on prompts from a file."""

import json
import shutil
from pathlib import Path

import pytest

from mm_cca.cli.main import main
from mm_cca.errors import UserError
from mm_cca.runs.folder import open_run
from tests.support import runs


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(runs.CAPTIONS[36:42]) + "\n")
    return file


def keys_of(reported: Path, run: Path, prompts: Path) -> list[str]:
    return [
        f"run.dir={run}",
        f"run.trained={reported.parent / 'run'}",
        f"sample.prompts={prompts}",
        "eval.metrics=[alignment,r_at_1]",
    ]


@pytest.fixture(scope="module")
def second(reported: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages that uses the models of ``reported``."""
    run = tmp_path_factory.mktemp("second") / "run"
    stages = ["prepare", "train", "sample", "eval", "report"]
    runs.do(reported, *keys_of(reported, run, prompts), stages=stages)
    return run


def test_nothing_is_trained_or_encoded_again(reported: Path, second: Path):
    assert not (second / "train").exists()
    assert not (second / "tokens").exists()
    assert {path.name for path in (second / "samples").iterdir()} == {
        path.name for path in (reported.parent / "run" / "samples").iterdir()
    }


def test_the_images_are_those_of_the_trained_run(
    reported: Path, second: Path, prompts: Path, tmp_path: Path
):
    """The same images are drawn by a run that has the model in its own folder."""
    own = tmp_path / "run"
    shutil.copytree(reported.parent / "run" / "train", own / "train")
    keys = [key for key in keys_of(reported, own, prompts) if not key.startswith("run.trained")]
    runs.do(reported, *keys, stages=["sample"])
    for arm in ("base", "base+cfg2", "cca"):
        ours = runs.files_of(second / "samples" / arm)
        theirs = runs.files_of(own / "samples" / arm)
        pictures = [name for name in ours if name.endswith(".png")]
        assert len(pictures) == 6
        assert [name for name in pictures if ours[name] != theirs[name]] == []
    base, cca = (runs.files_of(second / "samples" / arm) for arm in ("base", "cca"))
    assert base["000000.png"] != cca["000000.png"]


def test_the_report_works_without_real_images(second: Path):
    page = (second / "report.html").read_text(encoding="utf-8")
    (grid,) = runs.grids_of(second / "report.html")
    assert grid["split"] == "prompts"
    assert [c["name"] for c in grid["columns"]] == ["base", "base+cfg2", "base+cfg3", "cca"]
    assert grid["captions"] == runs.CAPTIONS[36:42]
    assert all(len(column["thumbs"]) == 6 for column in grid["columns"])
    assert "can't be shown" not in page
    assert "Scores: prompts of the file (6)" in page
    assert "Quality against cost" in page
    assert "Fidelity against diversity" not in page  # neither a distance nor recall is computed
    assert "never examined" in page  # without real images no judge can be


def test_the_report_says_how_the_models_were_trained(
    reported: Path, second: Path, prompts: Path, tmp_path: Path
):
    """The loss and the curves are those of the run that trained the models."""
    keys = [*keys_of(reported, second, prompts), "loss.beta=0.5", "train.max_steps=7"]
    run = tmp_path / "run"
    shutil.copytree(second, run)
    runs.do(reported, *keys, f"run.dir={run}", stages=["report"])
    page = (run / "report.html").read_text(encoding="utf-8")
    description = page.split("Arm cca: ")[1].split("</p>")[0]
    assert "beta 0.02" in description
    assert "3 steps" in description
    assert "Nothing was trained" not in page
    assert "must be run first" in page


def test_a_reference_adds_distances_and_their_plot(
    reported: Path, prompts: Path, second: Path, tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(second / "samples", run / "samples")
    images = runs.write_imagefolder(tmp_path / "images", 8)
    keys = [
        *keys_of(reported, run, prompts)[:-1],
        "eval.metrics=[alignment,frechet_distance,density,coverage]",
        f"eval.reference={images}",
    ]
    runs.do(reported, *keys, stages=["eval", "report"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Fidelity against diversity" in page
    assert "coverage (diversity)" in page
    assert f"Real images compared with: 8 ({images})" in page
    assert 'the line "real images"' not in page
    runs.do(reported, *keys, stages=["eval"])  # nothing to do
    (images / "0000.png").unlink()
    with pytest.raises(UserError, match=r"eval.reference \(names and sizes\)"):
        runs.do(reported, *keys, stages=["eval"])


def test_another_seed_of_the_trained_run_is_noticed(
    reported: Path, second: Path, prompts: Path, tmp_path: Path
):
    """After training again, sampling must be run again too."""
    trained, run = tmp_path / "trained", tmp_path / "run"
    shutil.copytree(reported.parent / "run", trained)
    shutil.copytree(second, run)
    stage = trained / "train" / "stage.json"
    stage.write_text(stage.read_text().replace('"train.seed": 0', '"train.seed": 1'))
    keys = keys_of(reported, run, prompts)
    with pytest.raises(UserError, match="samples/cca was made with another recipe"):
        runs.do(reported, *keys, f"run.trained={trained}", stages=["sample"])


def test_runs_that_can_not_be_sampled(reported: Path, second: Path, prompts: Path, tmp_path: Path):
    def message_of(*overrides: str) -> str:
        keys = keys_of(reported, tmp_path / "run", prompts)
        with pytest.raises(UserError) as caught:
            runs.do(reported, *keys, *overrides, stages=["sample"])
        return str(caught.value)

    assert "run.trained: " in message_of(f"run.trained={tmp_path / 'nowhere'}")
    assert "it has no recipe.yaml" in message_of(f"run.trained={tmp_path / 'nowhere'}")
    assert "a recipe; use its run folder" in message_of(f"run.trained={reported}")
    differing = message_of("model.path=elsewhere", "train.tuning=lora")
    assert "model.path: " in differing
    assert "train.tuning: 'full' there, 'lora' here" in differing
    assert "Use" in differing
    assert "has no training of its own" in message_of(f"run.trained={second}")


def test_an_unfinished_training_is_reported_before_anything_is_drawn(
    reported: Path, prompts: Path, tmp_path: Path
):
    unfinished = Path(shutil.copytree(reported.parent / "run", tmp_path / "unfinished"))
    shutil.rmtree(unfinished / "train" / "model")
    keys = [*keys_of(reported, tmp_path / "run", prompts), f"run.trained={unfinished}"]
    with pytest.raises(UserError, match=r"unfinished/train/model does not exist.*run.trained"):
        runs.do(reported, *keys, stages=["sample"])
    assert not (tmp_path / "run" / "samples").exists()
    keys = [*keys_of(reported, tmp_path / "run", prompts), "train.control=true"]
    with pytest.raises(UserError, match="train the control model to the end in"):
        runs.do(reported, *keys, stages=["sample"])
    with pytest.raises(UserError, match="so nothing is trained here"):
        runs.do(reported, *keys, stages=["train"])


def test_the_trained_run_itself_is_not_overwritten(reported: Path, prompts: Path, tmp_path: Path):
    """Without run.dir, the recipe of the run in run.trained must not be lost."""
    trained = Path(shutil.copytree(reported.parent / "run", tmp_path / "run"))
    before = runs.files_of(trained)
    keys = keys_of(reported, trained, prompts)
    with pytest.raises(UserError, match=r"run.trained and run.dir are both"):
        runs.do(reported, *keys, f"run.trained={trained}", stages=["sample"])
    with pytest.raises(UserError, match="it has no recipe"):
        runs.do(reported, *keys, f"run.trained={tmp_path / 'typo'}", stages=["sample"])
    assert runs.files_of(trained) == before


def test_the_models_are_found_from_any_folder(
    reported: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The saved recipe has absolute paths; the model card shows the recipe of the training run."""
    monkeypatch.chdir(tmp_path)
    _, run = open_run(second)
    assert run.root == second
    assert run.train == reported.parent / "run" / "train"
    kept = (second / "recipe.yaml").read_text()
    changed = Path(shutil.copytree(second, tmp_path / "second"))
    (changed / "recipe.yaml").write_text(kept.replace("beta: 0.02", "beta: 0.5"))
    assert main(["export", str(changed), str(tmp_path / "model")]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert "beta: 0.02" in card
    assert "beta: 0.5" not in card
    assert "| prompts | arm | alignment ×100 | forward passes per image |" in card
    assert "| prompts | cca | " in card


def test_text_nll_needs_no_token_cache(reported: Path, second: Path, prompts: Path, tmp_path: Path):
    shutil.copytree(second / "samples", tmp_path / "run" / "samples")
    keys = keys_of(reported, tmp_path / "run", prompts)
    nowhere = f"run.tokens_dir={tmp_path / 'tokens'}"
    runs.do(reported, *keys, nowhere, "eval.text_nll=captions", stages=["eval"])
    summary = json.loads((tmp_path / "run" / "eval" / "summary.json").read_text())
    assert summary["text_nll"]["num_texts"] == 16
    assert list(summary["text_nll"]["sources"]) == ["base", "cca"]


def test_too_few_prompts_are_refused_before_anything_is_drawn(reported: Path, tmp_path: Path):
    file = tmp_path / "three.txt"
    file.write_text("red owl\ngreen tree\nblue hand\n")
    keys = [*keys_of(reported, tmp_path / "run", file), "run.stages=[sample,eval]"]
    with pytest.raises(UserError, match=r"three.txt' gives 3 images; scores need at least 4"):
        runs.do(reported, *keys, stages=["sample", "eval"])
    assert not (tmp_path / "run" / "samples").exists()


def test_prompts_of_the_data_are_drawn_from_the_tokens_of_the_trained_run(
    tiny_folder: Path, tmp_path: Path
):
    values = runs.tiny_recipe(tmp_path, tiny_folder, runs.two_splits(tmp_path / "data.parquet"))
    recipe = runs.write_recipe(tmp_path / "recipe.yaml", values)
    runs.do(recipe, "train.max_steps=1", stages=["prepare", "train"])
    keys = [f"run.dir={tmp_path / 'again'}", f"run.trained={tmp_path / 'run'}", "sample.seed=1"]
    runs.do(recipe, *keys, "run.sources=[cca]", stages=["prepare", "train", "sample"])
    assert not (tmp_path / "again" / "tokens").exists()
    assert not (tmp_path / "again" / "train").exists()
    assert len(list((tmp_path / "again" / "samples" / "cca").glob("*.png"))) == 6


def test_a_sweep_trains_its_own_models(reported: Path, tmp_path: Path):
    from mm_cca.config.sweep_grid import plan_sweep

    words = [f"run.dir={tmp_path}", f"run.trained={reported.parent / 'run'}", "train.seed=[0,1]"]
    with pytest.raises(UserError, match="a sweep trains its own models"):
        plan_sweep(str(reported), words)


def test_the_stage_of_an_arm_records_how_its_model_was_trained(second: Path, reported: Path):
    stage = json.loads((second / "samples" / "cca" / "stage.json").read_text())
    theirs = json.loads((reported.parent / "run" / "train" / "stage.json").read_text())
    assert stage["settings"]["train"] == theirs["settings"]
