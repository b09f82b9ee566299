"""Reference log-probabilities computed once: the same training to the last bit, never stale."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mm_cca.errors import UserError
from mm_cca.training.cached_reference import CODE_FILE, FILE, KEYS, _allocate, _num_missing
from tests.support import runs

CACHED = "train.reference=cached"


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    values = runs.tiny_recipe(tmp_path, tiny_folder, runs.two_splits(tmp_path / "data.parquet"))
    values["train"]["micro_batch_size"] = 2
    values["loss"]["num_negatives"] = 2
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


def _losses(folder: Path) -> list[float]:
    return [line["loss"] for line in runs.metrics(folder / "train")]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_is_that_of_a_copy_bit_for_bit(recipe: Path, tmp_path: Path, precision: str):
    keys = [f"train.mixed_precision={precision}"]
    runs.do(recipe, *keys)
    keys += [f"run.dir={tmp_path / 'two'}", f"run.tokens_dir={tmp_path / 'run' / 'tokens'}"]
    runs.do(recipe, *keys, CACHED)
    assert _losses(tmp_path / "run") == _losses(tmp_path / "two")
    one, two = (
        load_file(tmp_path / name / "train" / "model" / "model.safetensors")
        for name in ("run", "two")
    )
    assert not [name for name in one if not torch.equal(one[name], two[name])]


def test_a_lora_uses_it_too(recipe: Path, tmp_path: Path):
    lora = ["train.tuning=lora", "train.lora_rank=2"]
    runs.do(recipe, *lora, "train.reference=lora")
    tokens = f"run.tokens_dir={tmp_path / 'run' / 'tokens'}"
    runs.do(recipe, *lora, CACHED, f"run.dir={tmp_path / 'two'}", tokens)
    assert _losses(tmp_path / "run") == _losses(tmp_path / "two")


def test_other_constants_share_it(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """beta, lambda and the learning rate do not touch it; a second run computes nothing."""
    shared = [CACHED, f"run.reference_dir={tmp_path / 'reference'}"]
    shared += [f"run.tokens_dir={tmp_path / 'tokens'}"]
    runs.do(recipe, *shared, stages=["prepare"])
    before = runs.mtimes_of(tmp_path / "reference")

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("mm_cca.training.cached_reference._fill", never)
    changed = ["loss.beta=0.5", "loss.lambda_=1", "train.learning_rate=0.01"]
    runs.do(recipe, *shared, *changed, f"run.dir={tmp_path / 'two'}")
    after = runs.mtimes_of(tmp_path / "reference")
    assert after[FILE] == before[FILE]


def test_it_resumes_where_it_was_interrupted_and_grows_with_the_steps(recipe: Path, tmp_path: Path):
    runs.do(recipe, CACHED, stages=["prepare"])
    file = tmp_path / "run" / "reference" / FILE
    whole = np.load(file).copy()
    assert whole.shape == (16, 3)
    incomplete = np.load(file, mmap_mode="r+")
    incomplete[4:9] = np.nan
    incomplete.flush()
    runs.do(recipe, CACHED, stages=["prepare"])
    assert np.array_equal(np.load(file), whole)
    runs.do(recipe, CACHED, "train.max_steps=6", stages=["prepare"])
    longer = np.load(file)
    assert longer.shape == (24, 3)
    assert np.array_equal(longer[:16], whole)
    assert not np.isnan(longer).any()


FLOOR = "loss.gap_floor=-0.001"


def test_a_floor_needs_and_gets_every_code(recipe: Path, tmp_path: Path):
    """The training of a copy; a cache without codes is completed and then serves both."""
    floor = [FLOOR, "train.learning_rate=0.003"]
    runs.do(recipe, *floor)
    assert runs.metrics(tmp_path / "run" / "train")[-1]["codes_at_floor"] > 0
    keys = [f"run.tokens_dir={tmp_path / 'run' / 'tokens'}", CACHED]
    keys += [f"run.reference_dir={tmp_path / 'reference'}"]
    runs.do(recipe, *keys, f"run.dir={tmp_path / 'two'}", stages=["prepare"])
    assert not (tmp_path / "reference" / CODE_FILE).exists()
    with pytest.raises(UserError, match=r"does not hold all.*mm-cca prepare"):
        runs.do(recipe, *floor, *keys, f"run.dir={tmp_path / 'two'}", stages=["train"])
    sums = np.load(tmp_path / "reference" / FILE).copy()
    runs.do(recipe, *floor, *keys, f"run.dir={tmp_path / 'two'}")
    codes = np.load(tmp_path / "reference" / CODE_FILE)
    assert codes.shape == (16, 3, 16)
    assert np.array_equal(np.load(tmp_path / "reference" / FILE), sums)
    assert np.allclose(codes.sum(axis=2), sums, rtol=1e-5)
    ours, theirs = (runs.metrics(tmp_path / name / "train") for name in ("run", "two"))
    assert ours == theirs
    runs.do(recipe, *keys, f"run.dir={tmp_path / 'three'}")


def test_without_prepare_it_says_what_to_run(recipe: Path):
    runs.do(recipe, stages=["prepare"])
    with pytest.raises(UserError, match=r"does not hold all.*mm-cca prepare"):
        runs.do(recipe, CACHED, stages=["train"])


@pytest.mark.parametrize("change", ["train.seed=1", "loss.uncond_ratio=0.5"])
def test_a_stale_one_is_refused_by_name_of_the_key(recipe: Path, change: str):
    runs.do(recipe, CACHED, stages=["prepare"])
    key = change.partition("=")[0]
    for stages in (["prepare"], ["train"]):
        with pytest.raises(UserError, match=rf"(?s){key}: was .* is now"):
            runs.do(recipe, CACHED, change, stages=stages)


def test_other_weights_in_the_same_folder_are_noticed(
    recipe: Path, tiny_folder: Path, tmp_path: Path
):
    import shutil

    copy = shutil.copytree(tiny_folder, tmp_path / "model")
    keys = [CACHED, f"model.path={copy}"]
    runs.do(recipe, *keys, stages=["prepare"])
    weights = load_file(copy / "model.safetensors")
    name = next(n for n in weights if "q_proj" in n)
    weights[name] = weights[name] + 1e-3
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="weights"):
        runs.do(recipe, *keys, stages=["train"])


def test_other_words_in_the_same_file_are_noticed(recipe: Path, tmp_path: Path):
    words = tmp_path / "words.yaml"
    words.write_text("thing:\n  - owl\n  - hand\n")
    keys = [CACHED, "loss.negatives=edit", f"data.attribute_words={words}"]
    runs.do(recipe, *keys, stages=["prepare"])
    words.write_text("thing:\n  - owl\n  - hand\n  - badger\n")
    with pytest.raises(UserError, match=r"(?s)attribute_words.*was.*is now"):
        runs.do(recipe, *keys, stages=["train"])


def test_other_images_under_the_same_captions_are_noticed(recipe: Path, tmp_path: Path):
    """The tokens were recomputed from another file of the same name."""
    import shutil

    runs.do(recipe, CACHED, stages=["prepare"])
    shutil.rmtree(tmp_path / "run" / "tokens")
    rows = runs.rows_of(16, split="train")
    for number, row in enumerate(rows):
        row["image"] = runs.png(runs.picture(100 + number))
    runs.write_parquet(tmp_path / "data.parquet", rows)
    with pytest.raises(UserError, match=r"reference was made .*(?s:.*)data\.path: its content is"):
        runs.do(recipe, CACHED)


def test_a_full_disk_is_reported(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs.do(recipe, stages=["prepare"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mm_cca.training.cached_reference.np.save", full)
    with pytest.raises(UserError, match=r"can't be written.*No space left"):
        runs.do(recipe, CACHED, stages=["prepare"])
    monkeypatch.undo()
    runs.do(recipe, CACHED)


def test_a_base_that_gives_nan_is_reported(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from mm_cca.training import cached_reference
    from mm_cca.training.reference import RefScores

    def broken(policy, batch, frozen):
        return RefScores(torch.full((len(batch.codes),), torch.nan), None)

    monkeypatch.setattr(cached_reference, "live_scores", broken)
    with pytest.raises(UserError, match=r"gives NaN or infinity for the images in rows \["):
        runs.do(recipe, CACHED, stages=["prepare"])
    monkeypatch.undo()
    runs.do(recipe, CACHED)
    assert np.load(tmp_path / "run" / "reference" / KEYS).shape == (16, 3)


def test_a_finished_run_does_not_need_it_any_more(recipe: Path, tmp_path: Path):
    runs.do(recipe, CACHED)
    file = tmp_path / "run" / "reference" / FILE
    file.unlink()
    runs.do(recipe, CACHED)
    assert not file.exists()
    stage = json.loads((tmp_path / "run" / "train" / "stage.json").read_text())
    assert stage["done"]


@pytest.mark.parametrize("objective", ["cca + distill", "cca_code", "gft"])
def test_whole_distributions_are_not_cached(recipe: Path, objective: str):
    with pytest.raises(UserError, match=r"train\.reference is 'cached'.*copy or lora with"):
        runs.load_recipe(recipe, CACHED, f"loss.objective={objective}")


def test_missing_rows_are_counted(tmp_path: Path):
    file = tmp_path / FILE
    assert _num_missing(file, 5) == 5
    _allocate(file, np.full((4, 2), np.nan, np.float32))
    assert _num_missing(file, 4) == 4
    rows = np.load(file, mmap_mode="r+")
    rows[:3] = 1.0
    rows.flush()
    assert _num_missing(file, 4) == 1
    assert _num_missing(file, 6) == 2
