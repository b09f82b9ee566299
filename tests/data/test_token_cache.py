"""The token cache: its contents, resuming shard by shard, and sharing it between runs."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mm_cca.adapters.base import UnifiedModel
from mm_cca.config.schema import Recipe
from mm_cca.data.augment import variant_parameters, zoom_and_shift
from mm_cca.data.contents import Origin
from mm_cca.data.fill_cache import load_split, prepare_split
from mm_cca.data.images import decode_image
from mm_cca.data.mapped_column import MappedColumn
from mm_cca.data.token_cache import TokenCache, open_cache
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import locked
from tests.support import runs

ROWS = 12


@pytest.fixture
def path(tiny_folder: Path, tmp_path: Path) -> Path:
    """Three variants of 12 images in shards of 5."""
    rows = runs.rows_of(ROWS, split="train")
    values = runs.tiny_recipe(
        tmp_path, tiny_folder, runs.write_parquet(tmp_path / "data.parquet", rows)
    )
    values["data"] |= {"variants": 3, "max_zoom": 1.3, "max_shift": 0.2, "encode_batch_size": 36}
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


def prepare(path: Path, *overrides: str) -> Recipe:
    return runs.do(path, *overrides, stages=["prepare"])


def cache_of(recipe: Recipe) -> TokenCache:
    return open_cache(RunFolder.of(recipe).tokens / "train", recipe.data.variants)


def codes_of(recipe: Recipe) -> torch.Tensor:
    """[ROWS, V, N]."""
    cache = cache_of(recipe)
    rows = torch.arange(len(cache))
    return torch.stack(
        [cache.codes(rows, torch.full_like(rows, v)) for v in range(recipe.data.variants)], dim=1
    )


def pixels() -> torch.Tensor:
    cells = [{"bytes": runs.png(runs.picture(i)), "path": None} for i in range(ROWS)]
    return torch.stack([decode_image(cell, 16, 16) for cell in cells])


def reopen(split: Path) -> None:
    """As if preparing had been interrupted."""
    stage = json.loads((split / "stage.json").read_text())
    (split / "stage.json").write_text(json.dumps(stage | {"done": False}))


def test_variant_zero_is_the_unchanged_image(path: Path, tiny_model: UnifiedModel):
    codes = codes_of(prepare(path))
    assert codes.shape == (ROWS, 3, 16)
    assert codes.dtype == torch.int64
    assert torch.equal(codes[:, 0], tiny_model.encode(pixels()))
    assert len(codes.unique()) > 4, "random codes should use much of the codebook"


def test_other_variants_are_the_image_moved(path: Path, tiny_model: UnifiedModel):
    codes = codes_of(prepare(path))
    rows = torch.arange(ROWS)
    for variant in (1, 2):
        numbers = torch.full_like(rows, variant)
        moved = variant_parameters(rows, numbers, seed=0, max_zoom=1.3, max_shift=0.2)
        expected = tiny_model.encode(zoom_and_shift(pixels(), moved))
        assert torch.equal(codes[:, variant], expected)
        assert not torch.equal(codes[:, variant], codes[:, 0])


def test_codes_by_row_and_variant(path: Path):
    recipe = prepare(path)
    rows, variants = torch.tensor([7, 0, 11, 7]), torch.tensor([2, 1, 0, 0])
    codes = cache_of(recipe).codes(rows, variants)
    assert torch.equal(codes, codes_of(recipe)[rows, variants])


def test_captions_and_rows(path: Path):
    cache = cache_of(prepare(path))
    assert cache.captions == runs.CAPTIONS[:ROWS]
    assert cache.source_rows == list(range(ROWS))
    assert len(cache) == ROWS


def test_only_a_missing_shard_is_recomputed(path: Path):
    recipe = prepare(path)
    before = codes_of(recipe)
    split = RunFolder.of(recipe).tokens / "train"
    shards = sorted(split.joinpath("shards").iterdir())
    assert [shard.name for shard in shards] == ["000000000", "000000005", "000000010"]
    kept = {shard: runs.mtimes_of(shard) for shard in (shards[0], shards[2])}
    shutil.rmtree(shards[1])
    (split / "shards" / "000000005.partial").mkdir()  # left by the interruption
    reopen(split)
    prepare(path)
    assert torch.equal(codes_of(recipe), before)
    assert {shard: runs.mtimes_of(shard) for shard in kept} == kept
    assert sorted(split.joinpath("shards").iterdir()) == shards


def test_complete_shards_need_no_model(path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = prepare(path)
    reopen(RunFolder.of(recipe).tokens / "train")
    monkeypatch.setattr(
        "mm_cca.cli.commands.prepare.frozen_model", lambda _: pytest.fail("model was loaded")
    )
    prepare(path)


def test_a_finished_cache_is_not_changed(path: Path):
    recipe = prepare(path)
    tokens = RunFolder.of(recipe).tokens
    before = runs.mtimes_of(tokens)
    prepare(path, "data.encode_batch_size=2", "data.max_bad=3")
    assert runs.mtimes_of(tokens) == before


def test_two_runs_share_one_cache(path: Path, tmp_path: Path):
    shared = f"run.tokens_dir={tmp_path / 'shared'}"
    runs.do(path, shared, "train.max_steps=1")
    before = runs.mtimes_of(tmp_path / "shared")
    runs.do(path, shared, f"run.dir={tmp_path / 'second'}", "train.max_steps=1", "loss.beta=0.1")
    assert runs.mtimes_of(tmp_path / "shared") == before
    for name in ("run", "second"):
        assert (tmp_path / name / "train" / "model").is_dir()
        assert not (tmp_path / name / "tokens").exists()
    first, second = (runs.metrics(tmp_path / n / "train") for n in ("run", "second"))
    assert first[0]["positive_gap"] == second[0]["positive_gap"]


def test_shared_cache_of_another_recipe_is_refused(path: Path, tmp_path: Path):
    shared = f"run.tokens_dir={tmp_path / 'shared'}"
    prepare(path, shared)
    with pytest.raises(UserError) as caught:
        prepare(path, shared, f"run.dir={tmp_path / 'second'}", "data.max_zoom=1.1")
    assert "data.max_zoom: was 1.3, is now 1.1" in str(caught.value)


def test_an_unfinished_shared_cache_is_refused_while_in_use(path: Path, tmp_path: Path):
    with locked(tmp_path / "shared" / "train"), pytest.raises(UserError, match="is in use"):
        prepare(path, f"run.tokens_dir={tmp_path / 'shared'}")


def test_no_cache_yet(tmp_path: Path):
    with pytest.raises(UserError, match="mm-cca prepare"):
        open_cache(tmp_path / "train", 1)


def test_a_slow_rank_skips_no_shard(
    path: Path, tiny_model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
):
    """The shards are divided among the ranks before the first one is written."""
    expected = codes_of(prepare(path))
    recipe = runs.load_recipe(path, f"run.dir={path.parent / 'second'}")
    run = RunFolder.of(recipe)
    folder = run.tokens / "train"
    shards = folder / "shards"
    origin = Origin.of(recipe.data.path, run.root)
    ranks = runs.TwoRanks()

    def slow(*args):
        split = load_split(*args)
        give_up = time.monotonic() + 1
        while not ranks.is_main_process and not shards.exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        return split

    monkeypatch.setattr("mm_cca.data.fill_cache.PartialState", ranks)
    monkeypatch.setattr("mm_cca.data.fill_cache.load_split", slow)
    ranks.run(lambda: prepare_split(lambda: tiny_model, recipe.data, "train", folder, 0, origin))
    assert torch.equal(codes_of(recipe), expected)


def test_captions_of_a_cache_stay_in_its_files(path: Path):
    """No list per rank, whatever rows are left out."""
    cache = cache_of(prepare(path))
    assert isinstance(cache.captions, MappedColumn)
    assert isinstance(cache.source_rows, MappedColumn)
    part = cache.captions.at(np.array([3, 1]))
    assert isinstance(part, MappedColumn)
    assert part[:] == [cache.captions[3], cache.captions[1]]
