"""What a run folder says after commands that were refused, or that failed before they began."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mm_cca import cli
from mm_cca.errors import UserError
from mm_cca.runs.folder import open_run, recipe_of_training
from tests.support import runs


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    data = runs.two_splits(folder / "data.parquet")
    values = runs.tiny_recipe(folder, tiny_folder, data)
    values["train"]["max_steps"] = 2
    recipe = runs.write_recipe(folder / "recipe.yaml", values)
    runs.do(recipe, stages=["prepare", "train", "sample"])
    return recipe


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run folder, whose recipe names it."""
    folder = shutil.copytree(trained.parent / "run", tmp_path / "run")
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace(str(trained.parent / "run"), str(folder)))
    return folder


def record(run: Path) -> dict[str, bytes]:
    """Every file of the folder but the locks."""
    return {n: b for n, b in runs.files_of(run).items() if not n.endswith(".lock")}


REFUSED = [
    ("train", ["train.max_steps=5"], "steps"),
    ("train", ["loss.beta=0.5"], "loss.beta: was 0.02, is now 0.5"),
    ("run", ["loss.beta=0.5", "train.learning_rate=1"], "train.learning_rate"),
    ("prepare", ["loss.beta=0.5"], "loss.beta"),
    ("report", ["loss.beta=0.5"], "loss.beta"),
    ("prepare", ["data.image_size=[32,32]"], "data.image_size"),
    ("sample", ["sample.seed=7"], "sample.seed: was 0, is now 7"),
    ("eval", ["eval.scorer=no-such-model", "sample.guidance_scales=[]"], "no-such-model"),
]


@pytest.mark.parametrize(("verb", "overrides", "named"), REFUSED)
def test_a_refused_command_changes_nothing(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    overrides: list[str],
    named: str,
):
    before = record(run)
    assert cli.main([verb, str(run / "recipe.yaml"), *overrides]) == 2
    assert named in capsys.readouterr().err
    assert record(run) == before


def test_a_refused_stage_says_only_what_is_true(run: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", str(run / "recipe.yaml"), "loss.beta=0.5"]) == 2
    said = capsys.readouterr().err
    assert "It was left as it is." in said
    assert "No files were changed" not in said


def test_recipe_and_card_say_what_trained(run: Path):
    """Also where an older version has overwritten recipe.yaml."""
    recipe, _ = open_run(run)
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    values["loss"]["beta"], values["train"]["max_steps"] = 0.5, 5
    (run / "recipe.yaml").write_text(yaml.safe_dump(values))
    wrong, _ = open_run(run)
    assert wrong.loss.beta == 0.5
    training = recipe_of_training(wrong)
    assert training.loss == recipe.loss
    assert training.train == recipe.train


def test_every_stage_keeps_its_own_environment(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mm_cca.runs.stage.environment", lambda: {"torch": "of tomorrow"})
    shutil.rmtree(run / "samples")
    runs.do(run / "recipe.yaml", stages=["prepare", "train", "sample"])

    def torch_of(stage: str) -> list[Any]:
        stored = json.loads((run / stage / "stage.json").read_text())
        return [environment["torch"] for environment in stored["environments"]]

    assert torch_of("samples/base") == ["of tomorrow"]
    assert torch_of("train") != ["of tomorrow"]
    assert len(torch_of("train")) == 1


def test_keys_that_decide_nothing_reach_the_recipe(run: Path):
    runs.do(run / "recipe.yaml", "eval.grid_prompts=5", stages=["train"])
    assert open_run(run)[0].eval.grid_prompts == 5


@pytest.fixture
def first(tiny_folder: Path, tmp_path: Path) -> Path:
    """A recipe of a run that does not exist yet: 16 pictures in a folder."""
    data = runs.write_imagefolder(tmp_path / "data", 16)
    values = runs.tiny_recipe(tmp_path, tiny_folder, data)
    values["data"] |= {"caption_column": "text", "split_column": None}
    values["train"]["max_steps"] = 1
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


FAILS_AT_SET_UP = [
    (["train.batch_size=32"], "allowed: 1 to 16"),
    (["eval.scorer=no-such-model"], "no-such-model"),
    (["eval.scorer=ViT-B-32", "eval.scorer_pretrained=no-such-tag"], "no-such-tag"),
    (["train.trackers=[wandb]"], r"wandb, which is not installed: pip install .*wandb"),
    (["sample.prompts=nowhere.txt", "eval.metrics=[alignment]"], "nowhere.txt"),
    (["loss.negatives=hard", "loss.negatives_embedding=sentence-transformers:x"], "sentence"),
]


@pytest.mark.parametrize(("overrides", "said"), FAILS_AT_SET_UP)
def test_a_first_command_that_fails_is_told_before_any_image_is_encoded(
    first: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], said: str
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "mm_cca.cli.commands.acceptance.find_spec",
        lambda name: None if name == "wandb" else find(name),
    )

    def absent(name: str, *_: object) -> None:
        raise UserError(f"{name} needs sentence-transformers")

    monkeypatch.setattr("mm_cca.training.planned_negatives.check_installed", absent)
    with pytest.raises(UserError, match=said):
        runs.do(first, *overrides, stages=["prepare", "train", "sample", "eval", "report"])
    run = first.parent / "run"
    assert not list(run.rglob("*.arrow"))
    assert not (run / "recipe.yaml").exists()
    runs.do(first, "train.batch_size=8")
    assert open_run(run)[0].train.batch_size == 8


def test_too_few_images_for_scores_are_told_before_encoding(first: Path):
    write = first.parent / "data" / "metadata.jsonl"
    write.write_text("".join(line + "\n" for line in write.read_text().splitlines()[:6]))
    for unused in range(6, 16):
        (first.parent / "data" / f"{unused:04d}.png").unlink()
    with pytest.raises(UserError, match=r"6 usable images; scores need at least 4 prompts"):
        runs.do(first, stages=["prepare", "train", "sample", "eval", "report"])
    assert not list((first.parent / "run").rglob("*.arrow"))
    runs.do(first)


def test_a_training_that_fails_at_set_up_does_not_block_another(
    first: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing of the first start is left in the second, such as the digest of its base."""
    runs.do(first, stages=["prepare"])
    recipe = (first.parent / "run" / "recipe.yaml").read_text()

    def full(*_: object) -> None:
        raise UserError("out of memory")

    monkeypatch.setattr("mm_cca.training.setup.new_optimizer", full)
    with pytest.raises(UserError, match="out of memory"):
        runs.do(first, "train.learning_rate=0.5", stages=["train"])
    assert not (first.parent / "run" / "train" / "stage.json").exists()
    assert (first.parent / "run" / "recipe.yaml").read_text() == recipe
    monkeypatch.undo()
    runs.do(first, "train.learning_rate=0.25", stages=["train"])
    assert open_run(first.parent / "run")[0].train.learning_rate == 0.25


def test_a_failed_override_does_not_stick(first: Path):
    runs.do(first, stages=["prepare"])
    own = first.parent / "run" / "recipe.yaml"
    before = own.read_text()
    with pytest.raises(UserError, match="allowed: 1 to 16"):
        runs.do(own, "train.batch_size=32", stages=["train"])
    assert own.read_text() == before
    runs.do(own, stages=["train"])


def test_a_start_without_a_checkpoint_accepts_another_recipe(run: Path):
    train = run / "train"
    stage = json.loads((train / "stage.json").read_text())
    (train / "stage.json").write_text(json.dumps(stage | {"done": False}))
    for name in ("checkpoints", "model"):
        shutil.rmtree(train / name)
    runs.do(run / "recipe.yaml", "loss.beta=0.5", stages=["train"])
    assert open_run(run)[0].loss.beta == 0.5


def test_a_moved_run_goes_on_where_it_lies(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    moved = run.rename(tmp_path / "moved")
    trained = runs.mtimes_of(moved / "train")
    assert cli.main(["train", str(moved / "recipe.yaml")]) == 0
    assert f"it goes on in {moved}" in capsys.readouterr().err
    assert not run.exists()
    assert runs.mtimes_of(moved / "train") == trained
    assert open_run(moved)[0].run.dir == str(moved)
    assert cli.main(["train", str(moved / "recipe.yaml")]) == 0
    assert "it goes on in" not in capsys.readouterr().err


def test_a_copied_run_may_be_given_another_folder(run: Path, tmp_path: Path):
    moved = run.rename(tmp_path / "moved")
    again = tmp_path / "again"
    keys = [f"run.dir={again}", f"run.trained={moved}"]
    assert cli.main(["sample", str(moved / "recipe.yaml"), *keys]) == 0
    assert (again / "samples").is_dir()


def test_a_project_with_a_recipe_and_a_folder_train_is_no_run(
    first: Path, monkeypatch: pytest.MonkeyPatch
):
    (first.parent / "train").mkdir()
    monkeypatch.chdir(first.parent)
    assert cli.main(["prepare", "recipe.yaml", "run.dir=elsewhere"]) == 0
    assert cli.main(["prepare", str(first)]) == 0
    assert (first.parent / "run" / "tokens").is_dir()


def test_a_built_in_name_that_is_also_a_folder_here_is_told(
    first: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(first.parent)
    (first.parent / "data").rename("emoji")
    said = runs.message_of(first, "data.path=emoji")
    assert "data.path is 'emoji', which is built in" in said
    assert "use data.path=./emoji" in said
    runs.do(first, "data.path=./emoji", stages=["prepare"])
    runs.load_recipe(Path("emoji"))  # the built-in recipe means the built-in data


def test_an_extension_that_later_stages_would_refuse_is_refused_first(run: Path):
    recipe = run / "recipe.yaml"
    text = recipe.read_text().replace("schedule: cosine", "schedule: constant")
    assert text != recipe.read_text()
    shutil.rmtree(run / "train")
    shutil.rmtree(run / "samples")
    recipe.write_text(text)
    runs.do(recipe, stages=["prepare", "train", "sample"])
    before = record(run)
    with pytest.raises(UserError, match=r"samples/cca was made .*(?s:.*)steps: was 2, is now 4"):
        runs.do(recipe, "train.max_steps=4", stages=["train", "sample"])
    assert record(run) == before
    runs.do(recipe, "train.max_steps=4", stages=["train"])
