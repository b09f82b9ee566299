"""Which changes of a recipe make a stage stale, which keep its result, and which extend it."""

import json
from pathlib import Path

import numpy as np
import pytest

from mm_cca.config.declarations import declared
from mm_cca.config.keys import DEMO, EVAL, REFERENCE, SAMPLE, TOKENS, TRAIN
from mm_cca.config.schema import JOBS, OBJECTIVES, Recipe
from mm_cca.config.stage_keys import keys_of, num_steps, settings_of, training_settings
from mm_cca.errors import Interrupted, UserError
from mm_cca.training import train as training
from mm_cca.training import validation
from tests.support import runs
from tests.support.training import assert_same_training, at, newest

CONSTANT = "train.schedule=constant"
METRICS = "eval.metrics=[alignment]"


def settings(path: Path, *overrides: str) -> dict[str, object]:
    return training_settings(runs.load_recipe(path, *overrides))


@pytest.fixture
def unread(tmp_path: Path) -> Path:
    return runs.unread_recipe(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "data.encode_batch_size=1",
        "data.max_bad=3",
        "data.rows_per_shard=7",
        "data.text_path=FILE",  # no loss on text
        "data.attribute_words=WORDS",  # no edited negatives
        "data.heldout_split=null",  # the last weights are kept
        "train.micro_batch_size=1",
        "train.gradient_checkpointing=true",
        "train.eval_every=2",
        "train.save_every=3",
        "train.keep_checkpoints=5",
        "train.trackers=[tensorboard]",
        "train.control=true",
        "train.lora_rank=3",  # no LoRA
        "loss.distill_scale=2",  # no distill
        "loss.hard_candidates=5",  # no hard negatives
        "sample.seed=3",
        "sample.every=2",
        "sample.preview_prompts=[an owl]",
        "sample.num_previews=2",
        "eval.bootstrap_samples=200",
        "run.stages=[train]",
        "run.dir=elsewhere",
    ],
)
def test_keys_that_keep_the_training(unread: Path, override: str):
    (unread.parent / "texts.txt").write_text("a\n")
    (unread.parent / "words.yaml").write_text("thing:\n  - owl\n  - hand\n")
    override = override.replace("FILE", str(unread.parent / "texts.txt"))
    override = override.replace("WORDS", str(unread.parent / "words.yaml"))
    assert settings(unread, override) == settings(unread)


@pytest.mark.parametrize(
    ("given", "override"),
    [
        ([], "train.seed=1"),
        ([], "train.batch_size=8"),
        ([], "train.max_steps=5"),  # the cosine ends later
        ([], "train.stop_after=3"),
        ([], "loss.beta=0.5"),
        ([], "loss.num_negatives=2"),
        ([], "train.reference=cached"),
        ([], "data.image_size=[32, 32]"),
        ([], "model.dtype=bfloat16"),
        (["loss.negatives=hard"], "loss.hard_candidates=5"),
        (["loss.negatives=edit"], "data.attribute_words=WORDS"),
        (["loss.text_weight=1"], "data.text_path=FILE"),
        (["train.tuning=lora"], "train.lora_rank=3"),
        (["loss.objective=distill"], "loss.distill_scale=2"),
        (["train.keep=best", "train.eval_every=1"], "train.eval_every=2"),
        (["train.keep=best", "train.eval_every=1"], "data.heldout_split=other"),
    ],
)
def test_keys_that_decide_the_training(unread: Path, given: list[str], override: str):
    (unread.parent / "texts.txt").write_text("a\n")
    (unread.parent / "words.yaml").write_text("thing:\n  - owl\n  - hand\n")
    override = override.replace("FILE", str(unread.parent / "texts.txt"))
    override = override.replace("WORDS", str(unread.parent / "words.yaml"))
    assert settings(unread, *given, override) != settings(unread, *given)


@pytest.mark.parametrize(
    "override",
    ["loss.beta=1", "loss.lambda_=9", "loss.negatives=hard", "train.reference=cached"],
)
def test_plain_nll_looks_at_no_negatives(unread: Path, override: str):
    nll = "loss.objective=nll"
    assert settings(unread, nll, override) == settings(unread, nll)


@pytest.mark.parametrize(
    ("key", "objectives"),
    [
        ("loss.beta", {"cca", "dpo", "ddo"}),
        ("loss.lambda_", {"cca", "unlearn", "ddo"}),
        ("loss.scale", {"cca_code", "gft"}),
        ("loss.code_lambda", {"cca_code"}),
        ("loss.ddo_images", {"ddo"}),
        ("loss.distill_scale", {"distill"}),
    ],
)
def test_constants_of_the_objectives_that_have_them(unread: Path, key: str, objectives: set[str]):
    found = {name for name in OBJECTIVES if key in settings(unread, f"loss.objective={name}")}
    assert found == objectives
    assert key in settings(unread, f"loss.objective=nll + 0.5 {min(objectives)}")


@pytest.mark.parametrize(
    ("key", "value", "objective"),
    [("loss.scale_by_relevance", 1, "cca_code"), ("loss.gap_floor", -2, "cca")],
)
def test_what_is_off_by_default_leaves_older_runs_valid(
    unread: Path, key: str, value: float, objective: str
):
    """A run that was trained before the key existed has no entry for it."""
    of_objective = f"loss.objective={objective}"
    assert all(key not in settings(unread, f"loss.objective={name}") for name in OBJECTIVES)
    assert settings(unread, of_objective, f"{key}={value}")[key] == value
    assert settings(unread, f"loss.objective=nll + 0.5 {objective}", f"{key}={value}")[key] == value


def test_the_number_of_steps_by_hand(unread: Path):
    assert num_steps(runs.load_recipe(unread).train) == 4
    assert num_steps(runs.load_recipe(unread, "train.stop_after=3").train) == 3
    assert settings(unread)["steps"] == 4
    assert settings(unread)["train.max_steps"] == 4
    assert "train.max_steps" not in settings(unread, CONSTANT)


def test_a_file_counts_by_its_content(unread: Path):
    one, two = unread.parent / "one.txt", unread.parent / "two.txt"
    one.write_text("a\n")
    two.write_text("a\n")
    text = "loss.text_weight=1"
    before = settings(unread, text, f"data.text_path={one}")
    assert before == settings(unread, text, f"data.text_path={two}")
    two.write_text("b\n")
    assert before != settings(unread, text, f"data.text_path={two}")


def test_prompts_count_by_their_texts(unread: Path):
    """Not by the file's name or its other columns."""
    recipe = runs.load_recipe(unread, "sample.prompts=a.txt", METRICS)
    renamed = runs.load_recipe(unread, "sample.prompts=b.txt", METRICS)

    def found(recipe: Recipe, *texts: str) -> dict[str, object]:
        return settings_of(SAMPLE, recipe, {"sample.prompts": texts})

    assert found(recipe, "owl", "hand") == found(renamed, "owl", "hand")
    assert found(recipe, "owl", "hand") != found(recipe, "owlhand")
    # The data's captions are not looked at then.
    assert "data.train_split" not in found(recipe, "owl")
    assert "data.train_split" in settings_of(SAMPLE, runs.load_recipe(unread))


def test_each_stage_by_hand(unread: Path):
    recipe = runs.load_recipe(unread)
    model = {
        f"model.{name}" for name in ("adapter", "path", "dtype", "image_tokenizer", "tokenizer")
    }
    assert set(settings_of(TOKENS, recipe)) == model | {
        "data.path",
        "data.image_column",
        "data.caption_column",
        "data.split_column",
        "data.image_size",
        "data.variants",
        "data.max_zoom",
        "data.max_shift",
    }
    assert "train.micro_batch_size" in settings_of(REFERENCE, recipe)
    assert not {"loss.beta", "loss.lambda_", "train.learning_rate"} & keys_of(REFERENCE)
    scores = set(settings_of(EVAL, recipe))
    assert {"eval.scorer", "eval.metrics", "eval.bootstrap_samples"} <= scores
    assert not {"eval.batch_size", "eval.grid_prompts", "eval.report_megabytes"} & scores
    asked = runs.load_recipe(unread, "eval.attributes=[colour]")
    assert set(settings_of(EVAL, asked)) - scores == {"data.attribute_words (sha256)"}


def test_all_settings_of_the_demos_own_jobs_decide_them():
    for job in ("tokenizer", "scorer"):
        own = {name for name in declared(JOBS[job]) if name.startswith(f"{job}.")}
        assert own
        assert own <= keys_of(DEMO, JOBS[job])


def test_changes_that_keep_the_result_leave_a_finished_run_alone(recipe: Path, tmp_path: Path):
    runs.do(recipe, "train.max_steps=2")
    before = runs.mtimes_of(tmp_path / "run" / "train")
    for override in (
        "data.encode_batch_size=3",
        "data.max_bad=5",
        "data.rows_per_shard=9",
        "train.micro_batch_size=2",
        "train.eval_every=1",
        "train.keep_checkpoints=1",
        "train.trackers=[tensorboard]",
        "sample.every=1",
    ):
        runs.do(recipe, "train.max_steps=2", override)
    assert runs.mtimes_of(tmp_path / "run" / "train") == before


def interrupt(recipe: Path, *overrides: str, after: int) -> None:
    """Train, and stop after so many steps as if by SIGTERM."""
    seen: list[int] = []
    real = training._step

    def counted(loop, step, folder):
        seen.append(step)
        return real(loop, step, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_step", counted)
        patch.setattr(training, "on_any_rank", lambda *_: len(seen) == after)
        with pytest.raises(Interrupted):
            runs.do(recipe, *overrides)


def test_resuming_with_other_micro_batches_is_the_same_up_to_rounding(
    prepared: Path, recipe: Path, tmp_path: Path
):
    """A batch of 4 pairs in one piece, then one by one; and evaluated and saved differently."""
    other = tmp_path / "other"
    other.mkdir()
    keys = ("train.max_steps=6", "loss.num_negatives=2")
    runs.do(at(prepared, other), *keys)
    interrupt(recipe, *keys, after=3)
    changed = ("train.micro_batch_size=1", "train.eval_every=2", "train.save_every=5")
    runs.do(recipe, *keys, *changed)
    ours = runs.metrics(tmp_path / "run" / "train")
    theirs = runs.metrics(other / "run" / "train")
    assert ours[:3] == theirs[:3]
    assert [line["step"] for line in ours] == list(range(6))
    assert [line["step"] for line in ours if "heldout_nll" in line] == [3, 5]
    for name, tolerance in (("loss", 1e-5), ("grad_norm", 1e-3), ("positive_gap", 1e-3)):
        found = [np.array([line[name] for line in lines]) for lines in (ours, theirs)]
        assert np.abs(found[0] - found[1]).max() <= tolerance, name


def test_eval_every_decides_which_weights_are_best(recipe: Path):
    best = ("loss.objective=nll", "train.keep=best", "train.max_steps=2")
    runs.do(recipe, *best, "train.eval_every=1")
    with pytest.raises(UserError, match=r"  - train\.eval_every: was 1, is now 2"):
        runs.do(recipe, *best, "train.eval_every=2")


@pytest.mark.parametrize("finished", [True, False])
def test_dropping_stop_after_goes_on_to_the_same_end(
    prepared: Path, recipe: Path, tmp_path: Path, finished: bool
):
    other = tmp_path / "other"
    other.mkdir()
    runs.do(at(prepared, other), "train.max_steps=6")
    if finished:
        runs.do(recipe, "train.max_steps=6", "train.stop_after=3")
    else:
        interrupt(recipe, "train.max_steps=6", "train.stop_after=3", after=2)
    runs.do(recipe, "train.max_steps=6", "train.stop_after=4")
    assert newest(tmp_path / "run" / "train").name == "step-00000004"
    runs.do(recipe, "train.max_steps=6")
    assert_same_training(tmp_path / "run" / "train", other / "run" / "train")


def test_more_steps_with_a_constant_rate_go_on(prepared: Path, recipe: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    keys = (CONSTANT, "train.warmup_steps=2", "train.reference=cached")
    runs.do(at(prepared, other), *keys, "train.max_steps=6")
    runs.do(recipe, *keys, "train.max_steps=3")
    runs.do(recipe, *keys, "train.max_steps=6")  # the cached reference grows too
    assert_same_training(tmp_path / "run" / "train", other / "run" / "train")


def test_more_steps_of_a_cosine_are_refused_with_the_reason(recipe: Path, tmp_path: Path):
    runs.do(recipe, "train.max_steps=2")
    before = runs.files_of(tmp_path / "run" / "train")
    with pytest.raises(UserError) as caught:
        runs.do(recipe, "train.max_steps=3")
    assert "  - train.max_steps: was 2, is now 3 (with train.schedule=cosine" in str(caught.value)
    assert "  - steps" not in str(caught.value)
    folder = tmp_path / "run" / "train"
    assert "It was left as it is. Restore the old values" in str(caught.value)
    assert f"delete {folder} to start over" in str(caught.value)
    assert runs.files_of(folder) == before


def test_a_finished_run_does_not_become_shorter(recipe: Path):
    runs.do(recipe, CONSTANT, "train.max_steps=3")
    with pytest.raises(UserError, match=r"  - steps: was 3, is now 2"):
        runs.do(recipe, CONSTANT, "train.max_steps=2")


def test_an_interrupted_run_may_end_earlier_but_not_before_what_is_done(
    recipe: Path, tmp_path: Path
):
    interrupt(recipe, "train.max_steps=6", after=3)
    with pytest.raises(UserError, match="has done 3 steps already, but the recipe has only 2"):
        runs.do(recipe, "train.max_steps=6", "train.stop_after=2")
    runs.do(recipe, "train.max_steps=6", "train.stop_after=4")
    assert len(runs.metrics(tmp_path / "run" / "train")) == 4


def test_going_on_needs_a_checkpoint(recipe: Path, tmp_path: Path):
    runs.do(recipe, CONSTANT, "train.max_steps=1")
    saved = tmp_path / "run" / "train" / "checkpoints"
    saved.rename(tmp_path / "elsewhere")
    before = runs.files_of(tmp_path / "run" / "train")
    with pytest.raises(UserError, match="holds no checkpoint to resume from"):
        runs.do(recipe, CONSTANT, "train.max_steps=2")
    assert runs.files_of(tmp_path / "run" / "train") == before
    runs.do(recipe, CONSTANT, "train.max_steps=1")  # still finished


def test_the_best_weights_of_a_continued_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The best of the first part stays the model until a later step is better."""
    losses = iter([1.0, 2.0, 3.0, 0.5])
    monkeypatch.setattr(validation, "heldout_nll", lambda *_: next(losses))
    best = ("loss.objective=nll", "train.eval_every=1", "train.keep=best", CONSTANT)
    model = tmp_path / "run" / "train" / "model"
    runs.do(recipe, *best, "train.max_steps=2")
    first = runs.files_of(model)
    runs.do(recipe, *best, "train.max_steps=3")
    assert runs.files_of(model) == first
    runs.do(recipe, *best, "train.max_steps=4")
    assert runs.files_of(model) != first


def test_the_model_of_the_earlier_end_is_not_sampled(recipe: Path):
    runs.do(recipe, CONSTANT, "train.max_steps=1")
    interrupt(recipe, CONSTANT, "train.max_steps=3", after=1)
    with pytest.raises(UserError, match="is incomplete: train the cca model to the end"):
        runs.do(recipe, CONSTANT, "train.max_steps=3", stages=["sample"])


def test_samples_of_a_shorter_training_are_stale_and_say_why(recipe: Path):
    stages = ["train", "sample"]
    runs.do(recipe, CONSTANT, "train.max_steps=1", stages=stages)
    with pytest.raises(UserError, match=r"  - train: steps: was 1, is now 2\n") as caught:
        runs.do(recipe, CONSTANT, "train.max_steps=2", stages=stages)
    assert "loss.beta" not in str(caught.value)


def test_shards_of_an_unfinished_cache_keep_their_size(tmp_path: Path, tiny_folder: Path):
    values = runs.tiny_recipe(tmp_path, tiny_folder, runs.two_splits(tmp_path / "data.parquet"))
    recipe = runs.write_recipe(tmp_path / "recipe.yaml", values)
    runs.do(recipe, stages=["prepare"])
    file = tmp_path / "run" / "tokens" / "train" / "stage.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"done": False}))
    with pytest.raises(UserError, match=r"  - data\.rows_per_shard: was 5, is now 6"):
        runs.do(recipe, "data.rows_per_shard=6", stages=["prepare"])
    runs.do(recipe, stages=["prepare"])
    runs.do(recipe, "data.rows_per_shard=6", stages=["prepare"])


def test_training_keys_are_those_that_the_training_reads():
    """A new key of ``loss`` or ``train`` is free to change only if someone says so here."""
    free = {name for name in declared(JOBS["finetune"]) if name.startswith(("loss.", "train."))}
    assert free - keys_of(TRAIN) == {
        "train.stop_after",
        "train.micro_batch_size",
        "train.gradient_checkpointing",
        "train.control",
        "train.save_every",
        "train.keep_checkpoints",
        "train.trackers",
    }
