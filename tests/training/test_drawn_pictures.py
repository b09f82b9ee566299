"""Pictures that the base drew for the captions of training: which, from what, and never stale."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mm_cca import load_adapter
from mm_cca.config.mixtures import LossTerms
from mm_cca.data.token_cache import TokenCache, open_cache
from mm_cca.errors import UserError
from mm_cca.modeling.sampler import SamplingSettings, image_stream, sample_codes
from mm_cca.runs.folder import RunFolder
from mm_cca.training import drawn_pictures
from mm_cca.training.collate import Collator
from mm_cca.training.drawn_pictures import SEED, DrawnPictures, visited_rows
from mm_cca.training.schedule import training_schedule
from tests.support import runs

DDO = "loss.objective=ddo"
GRID = (4, 4)


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    values = runs.tiny_recipe(tmp_path, tiny_folder, runs.two_splits(tmp_path / "data.parquet"))
    values["train"]["micro_batch_size"] = 2
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


def _drawn(tmp_path: Path, pictures: int = 1) -> TokenCache:
    return open_cache(tmp_path / "run" / "tokens" / "train-drawn", pictures, unfinished=True)


def test_they_are_plain_samples_of_the_base_for_the_visited_captions(
    recipe: Path, tmp_path: Path, tiny_folder: Path
):
    """One step of 4 of 16 images, two pictures each; guidance and temperature stay out of it.

    Training's template is read too, sampling's is not.
    """
    keys = [DDO, "train.max_steps=1", "loss.ddo_images=2", "sample.temperature=0.1"]
    keys += ["data.caption_template=small {prompt}", "sample.prompt_template=red {prompt}"]
    loaded = runs.do(recipe, *keys, stages=["prepare"])
    cache = open_cache(RunFolder.of(loaded).tokens / "train", 1)
    schedule = training_schedule(loaded, cache, LossTerms.of(loaded.loss))
    rows = schedule.step(0).rows.tolist()
    drawn = _drawn(tmp_path, 2)
    assert sorted(drawn.source_rows) == sorted(cache.source_rows[row] for row in rows)
    model = load_adapter("emu3", str(tiny_folder))
    model.module.eval()
    pictures = DrawnPictures(drawn, cache)
    for row in rows:
        for epoch in (0, 1, 2):
            stream = image_stream(SEED + epoch % 2, cache.source_rows[row], 16)[None]
            captions = [f"small {cache.captions[row]}"]
            expected, _ = sample_codes(model, captions, GRID, stream, SamplingSettings())
            found = pictures.codes(np.array([row]), np.array([epoch]))
            assert torch.equal(found, expected)


def test_pictures_for_another_template_are_refused(recipe: Path):
    keys = [DDO, "train.max_steps=1"]
    runs.do(recipe, *keys, stages=["prepare"])
    with pytest.raises(UserError, match=r"data\.caption_template"):
        runs.do(recipe, *keys, "data.caption_template=small {prompt}", stages=["prepare"])


def test_more_steps_and_other_seeds_add_what_is_missing(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runs.do(recipe, DDO, "train.max_steps=1", stages=["prepare"])
    shards = tmp_path / "run" / "tokens" / "train-drawn" / "shards"
    before = runs.mtimes_of(shards)
    assert len(_drawn(tmp_path)) == 4
    runs.do(recipe, DDO, "train.max_steps=3", "train.seed=5", stages=["prepare"])
    assert 12 <= len(_drawn(tmp_path)) < 17
    runs.do(recipe, DDO, "train.max_steps=9", stages=["prepare"])
    assert sorted(_drawn(tmp_path).source_rows) == list(range(16))
    assert before.items() <= runs.mtimes_of(shards).items()

    def never(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(drawn_pictures, "_draw_rows", never)
    runs.do(recipe, DDO, "train.max_steps=9", f"run.tokens_dir={tmp_path / 'run' / 'tokens'}")


def test_an_interruption_keeps_finished_shards(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = drawn_pictures._draw_rows, []

    def stopped(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(drawn_pictures, "ROWS_PER_SHARD", 3)
    monkeypatch.setattr(drawn_pictures, "_draw_rows", stopped)
    with pytest.raises(KeyboardInterrupt):
        runs.do(recipe, DDO, stages=["prepare"])
    assert len(_drawn(tmp_path)) == 6
    with pytest.raises(UserError, match=r"lacks those of 10 of 16 captions. Run `mm-cca prepare"):
        runs.do(recipe, DDO, stages=["train"])
    runs.do(recipe, DDO)
    assert len(_drawn(tmp_path)) == 16


def test_without_prepare_it_says_what_to_run(recipe: Path):
    runs.do(recipe, stages=["prepare"])
    with pytest.raises(UserError, match=r"ddo needs pictures that the base drew: .* of 16 of 16"):
        runs.do(recipe, DDO, stages=["train"])


def test_pictures_of_another_base_are_refused(recipe: Path, tmp_path: Path, tiny_folder: Path):
    import shutil

    copy = shutil.copytree(tiny_folder, tmp_path / "model")
    keys = [DDO, f"model.path={copy}"]
    runs.do(recipe, *keys, stages=["prepare"])
    weights = load_file(copy / "model.safetensors")
    name = next(n for n in weights if "q_proj" in n)
    weights[name] = weights[name] + 1e-3
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    for stage in ("prepare", "train"):
        with pytest.raises(UserError, match=r"train-drawn was made with another recipe:\n.*weight"):
            runs.do(recipe, *keys, stages=[stage])


def test_another_caption_of_the_same_row_is_refused(recipe: Path, tmp_path: Path):
    import shutil

    runs.do(recipe, DDO, stages=["prepare"])
    shutil.rmtree(tmp_path / "run" / "tokens" / "train")
    rows = runs.rows_of(16, split="train")
    rows[7]["caption"] = "a new caption"
    runs.write_parquet(tmp_path / "data.parquet", rows)
    with pytest.raises(UserError, match=r"of row 7 was drawn for .*; it is now 'a new caption'"):
        runs.do(recipe, DDO)


def test_a_full_disk_is_reported(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    runs.do(recipe, stages=["prepare"])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasets.Dataset.save_to_disk", full)
    with pytest.raises(UserError, match=r"can't be written.*No space left"):
        runs.do(recipe, DDO, stages=["prepare"])
    monkeypatch.undo()
    runs.do(recipe, DDO, stages=["prepare"])


def test_drawn_rows_come_last_under_the_own_prompts(
    recipe: Path, tmp_path: Path, tiny_folder: Path
):
    """Own prompts, negatives, drawn pictures; a dropped condition drops all three."""
    keys = ["loss.objective=cca + ddo", "loss.uncond_ratio=0.5"]
    loaded = runs.do(recipe, *keys, stages=["prepare"])
    cache = open_cache(RunFolder.of(loaded).tokens / "train", 1)
    pictures = DrawnPictures(_drawn(tmp_path), cache)
    model = load_adapter("emu3", str(tiny_folder))
    collate = Collator(model, cache, (16, 16), torch.device("cpu"), template=None, drawn=pictures)
    pairs = training_schedule(loaded, cache, LossTerms.of(loaded.loss)).step(0)
    batch = collate(pairs)
    assert 0 < pairs.dropped.sum() < 4
    assert (batch.negatives, batch.drawn) == (slice(4, 8), slice(8, 12))
    assert torch.equal(batch.prompts.ids[8:], batch.prompts.ids[:4])
    assert torch.equal(batch.codes[8:], pictures.codes(pairs.rows, np.zeros(4, dtype=int)))
    assert torch.equal(batch.codes[4:8], batch.codes[:4])
    assert len(batch.counts_as_positive) == 4


@pytest.mark.parametrize("objective", ["ddo", "cca + ddo"])
def test_a_cached_reference_trains_the_same(recipe: Path, tmp_path: Path, objective: str):
    keys = [f"loss.objective={objective}", "loss.ddo_images=2", "train.max_steps=6"]
    runs.do(recipe, *keys)
    tokens = f"run.tokens_dir={tmp_path / 'run' / 'tokens'}"
    runs.do(recipe, *keys, "train.reference=cached", f"run.dir={tmp_path / 'two'}", tokens)
    ours, theirs = (runs.metrics(tmp_path / name / "train") for name in ("run", "two"))
    for name in ("loss", "positive_gap", "drawn_gap", "drawn_margin", "drawn_accuracy"):
        assert [line[name] for line in ours] == [line[name] for line in theirs]
    assert ours[-1]["drawn_gap"] < ours[-1]["positive_gap"]
    with pytest.raises(UserError, match=r"rows per pair: was|loss.objective"):
        runs.do(
            recipe,
            "loss.objective=cca",
            "train.reference=cached",
            f"run.dir={tmp_path / 'three'}",
            f"run.reference_dir={tmp_path / 'two' / 'reference'}",
            tokens,
        )


def test_visited_rows_by_hand(recipe: Path):
    """16 images, 4 a step: 4 steps visit them all, and more steps nothing else."""
    loaded = runs.do(recipe, stages=["prepare"])
    cache = open_cache(RunFolder.of(loaded).tokens / "train", 1)
    schedule = training_schedule(loaded, cache, LossTerms.of(loaded.loss))
    assert visited_rows(schedule, 1, 16).tolist() == sorted(schedule.step(0).rows.tolist())
    assert visited_rows(schedule, 4, 16).tolist() == list(range(16))
    assert visited_rows(schedule, 1000, 16).tolist() == list(range(16))


def test_a_finished_run_needs_none(recipe: Path, tmp_path: Path):
    import shutil

    runs.do(recipe, DDO)
    folder = tmp_path / "run" / "tokens" / "train-drawn"
    shutil.rmtree(folder)
    runs.do(recipe, DDO)
    assert not folder.exists()
