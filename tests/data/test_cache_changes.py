"""A token cache whose data changed: only what changed is encoded, and nothing goes unnoticed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from mm_cca.config.schema import Recipe
from mm_cca.data.contents import read_content
from mm_cca.data.token_cache import TokenCache, open_cache
from mm_cca.data.token_shards import read_record, read_shard, write_shard
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from tests.support import runs

ROWS = 7


@pytest.fixture
def path(tiny_folder: Path, tmp_path: Path) -> Path:
    """Seven pictures in a folder, in shards of 3."""
    data = runs.write_imagefolder(tmp_path / "data", ROWS)
    values = runs.tiny_recipe(tmp_path, shutil.copytree(tiny_folder, tmp_path / "model"), data)
    values["data"] |= {"caption_column": "text", "split_column": None, "rows_per_shard": 3}
    values["train"]["max_steps"] = 1
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


def prepare(path: Path, *overrides: str) -> Recipe:
    return runs.do(path, *overrides, stages=["prepare"])


def cache_of(recipe: Recipe) -> TokenCache:
    return open_cache(RunFolder.of(recipe).tokens / "train", recipe.data.variants)


def assert_as_made_anew(path: Path, *overrides: str) -> None:
    """The cache equals one that is made from the data as they are now."""
    ours = cache_of(runs.load_recipe(path, *overrides))
    anew = cache_of(prepare(path, *overrides, f"run.dir={path.parent / 'anew'}"))
    assert ours.captions == anew.captions
    assert ours.source_rows == anew.source_rows
    for variant in range(anew.num_variants):
        rows = torch.arange(len(anew))
        wanted = torch.full_like(rows, variant)
        assert torch.equal(ours.codes(rows, wanted), anew.codes(rows, wanted))


def lines_of(folder: Path) -> list[dict[str, str]]:
    return runs.json_lines(folder / "metadata.jsonl")


def write_lines(folder: Path, lines: list[dict[str, str]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text)


def correct_a_caption(folder: Path) -> None:
    lines = lines_of(folder)
    lines[4]["text"] = "a crimson owl"
    write_lines(folder, lines)


def take_a_row_out(folder: Path) -> None:
    write_lines(folder, lines_of(folder)[1:])
    (folder / "0000.png").unlink()


def add_a_row_in_front(folder: Path) -> None:
    runs.picture(100).save(folder / "a_new.png")
    write_lines(folder, [{"file_name": "a_new.png", "text": "a new thing"}, *lines_of(folder)])


def exchange_a_picture(folder: Path) -> None:
    runs.picture(200).save(folder / "0005.png")


def exchange_two_pictures(folder: Path) -> None:
    (folder / "0001.png").rename(folder / "other.png")
    (folder / "0006.png").rename(folder / "0001.png")
    (folder / "other.png").rename(folder / "0006.png")


CHANGES = [
    (correct_a_caption, 0, "the caption of row 4 was 'grey owl', is now 'a crimson owl'"),
    (take_a_row_out, 0, "1 picture taken out"),
    (add_a_row_in_front, 1, "1 picture added"),
    (exchange_a_picture, 1, "1 picture exchanged"),
    (exchange_two_pictures, 0, "the caption of row 1 was"),
]


@pytest.mark.parametrize(("change", "count", "words"), CHANGES)
def test_only_what_changed_is_encoded(
    path: Path,
    encoded: list[int],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    count: int,
    words: str,
):
    prepare(path)
    encoded.clear()
    change(path.parent / "data")
    capsys.readouterr()
    prepare(path)
    assert sum(encoded) == count
    said = capsys.readouterr().err
    assert words in said
    assert f"encoded {count} of " in said
    assert_as_made_anew(path)
    encoded.clear()
    prepare(path)
    assert not encoded


@pytest.mark.parametrize("change", [take_a_row_out, add_a_row_in_front])
def test_augmented_versions_follow_the_row(path: Path, change: Callable[[Path], None]):
    """Their random numbers depend on the number of the row, so that moved rows are encoded."""
    keys = ("data.variants=2", "data.max_zoom=1.3", "data.max_shift=0.2")
    prepare(path, *keys)
    change(path.parent / "data")
    prepare(path, *keys)
    assert_as_made_anew(path, *keys)


@pytest.mark.parametrize(("change", "count", "words"), CHANGES)
def test_a_trained_run_refuses_changed_data(
    path: Path, change: Callable[[Path], None], count: int, words: str
):
    runs.do(path)
    change(path.parent / "data")
    before = runs.files_of(path.parent / "run")
    for stages in (["prepare"], ["prepare", "train"], ["sample"], ["report"]):
        with pytest.raises(UserError, match=r"has changed since .* was trained on it") as caught:
            runs.do(path, stages=stages)
        assert words in str(caught.value)
        after = runs.files_of(path.parent / "run")
        for name in (".lock", "tokens/train/.lock"):
            after[name] = before[name]
        assert after == before


def test_training_on_changed_data_without_prepare_is_refused(path: Path):
    prepare(path)
    correct_a_caption(path.parent / "data")
    with pytest.raises(UserError, match=r"'grey owl', is now 'a crimson owl'.*mm-cca prepare"):
        runs.do(path, stages=["train"])
    runs.do(path)


def test_data_that_were_taken_away_are_not_needed(path: Path):
    prepare(path)
    (path.parent / "data").rename(path.parent / "elsewhere")
    runs.do(path, stages=["train"])


def test_mended_pictures_are_looked_at_again(path: Path, encoded: list[int]):
    """The rest of their shard keeps its codes."""
    torn = path.parent / "data" / "0004.png"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:40])
    with pytest.raises(UserError, match=r"The first is row 4: .*0004\.png"):
        prepare(path)
    listed = path.parent / "run" / "tokens" / "train" / "bad_rows.jsonl"
    assert "0004.png" in listed.read_text()
    encoded.clear()
    torn.write_bytes(whole)
    prepare(path)
    assert sum(encoded) == 1
    assert not listed.exists()
    assert_as_made_anew(path)


def test_rows_that_were_skipped_are_looked_at_again_until_trained(path: Path):
    torn = path.parent / "data" / "0004.png"
    whole = torn.read_bytes()
    torn.write_bytes(b"")
    keys = ("data.max_bad=1",)
    assert len(cache_of(prepare(path, *keys))) == ROWS - 1
    torn.write_bytes(whole)
    assert len(cache_of(prepare(path, *keys))) == ROWS


def test_a_disk_that_is_away_costs_no_codes(path: Path, encoded: list[int]):
    prepare(path)
    data, shards = path.parent / "data", path.parent / "run" / "tokens" / "train" / "shards"
    before = runs.files_of(shards)
    (data / "0002.png").rename(path.parent / "away.png")
    correct_a_caption(data)
    with pytest.raises(UserError):
        prepare(path)
    assert runs.files_of(shards) == before
    (path.parent / "away.png").rename(data / "0002.png")
    encoded.clear()
    prepare(path)
    assert not encoded


def test_touched_files_are_read_once_and_then_known(
    path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
):
    recipe = prepare(path)
    split = RunFolder.of(recipe).tokens / "train"
    before = runs.files_of(split / "shards")
    for file in (path.parent / "data").iterdir():
        os.utime(file, ns=(1, 1))
    encoded.clear()
    prepare(path)
    assert not encoded
    assert runs.files_of(split / "shards") == before
    monkeypatch.setattr(
        "mm_cca.data.fill_cache.load_split", lambda *_: pytest.fail("the data were read")
    )
    prepare(path)


@pytest.mark.parametrize("keep_times", [True, False])
def test_data_and_model_may_move(path: Path, encoded: list[int], keep_times: bool):
    folder = path.parent
    runs.do(path)
    copy = shutil.copy2 if keep_times else shutil.copyfile
    for name in ("data", "model"):
        shutil.copytree(folder / name, folder / "there" / name, copy_function=copy)
        shutil.rmtree(folder / name)
    encoded.clear()
    trained = runs.mtimes_of(folder / "run" / "train")
    keys = (f"data.path={folder / 'there' / 'data'}", f"model.path={folder / 'there' / 'model'}")
    runs.do(path, *keys)
    assert not encoded
    assert runs.mtimes_of(folder / "run" / "train") == trained
    runs.do(path, *keys, stages=["sample"])


def test_an_interrupted_run_goes_on_where_data_and_model_moved(path: Path, encoded: list[int]):
    folder = path.parent
    split = RunFolder.of(prepare(path)).tokens / "train"
    shutil.rmtree(split / "shards" / "000000003")
    stage = json.loads((split / "stage.json").read_text())
    (split / "stage.json").write_text(json.dumps(stage | {"done": False}))
    (folder / "data").rename(folder / "moved")
    encoded.clear()
    prepare(path, f"data.path={folder / 'moved'}")
    assert sum(encoded) == 3
    assert_as_made_anew(path, f"data.path={folder / 'moved'}")


def test_other_data_at_another_path_are_refused_by_name(path: Path):
    prepare(path)
    other = runs.write_imagefolder(path.parent / "other", ROWS)
    exchange_a_picture(other)
    with pytest.raises(UserError, match=r"(?s)data\.path: was .*1 picture exchanged"):
        prepare(path, f"data.path={other}")


def test_another_image_tokenizer_at_the_same_path_is_refused(path: Path):
    prepare(path)
    file = path.parent / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if "quantize.embedding" in n)
    weights[name] = weights[name].flip(0)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.path: its content is another"):
        prepare(path)


def test_an_image_tokenizer_with_nan_is_refused(path: Path):
    file = path.parent / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if "quantize.embedding" in n)
    weights[name][0, 0] = torch.nan
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"quantize\.embedding\.weight holds NaN or infinity"):
        prepare(path)


def test_parquet_pictures_are_compared_by_their_bytes(
    tiny_folder: Path, tmp_path: Path, encoded: list[int]
):
    rows = runs.rows_of(ROWS, split="train")
    data = runs.write_parquet(tmp_path / "data.parquet", rows)
    values = runs.tiny_recipe(tmp_path, tiny_folder, data)
    path = runs.write_recipe(tmp_path / "recipe.yaml", values)
    prepare(path)
    encoded.clear()
    runs.write_parquet(data, rows)  # the same, written again
    prepare(path)
    assert not encoded
    rows[2]["image"] = runs.png(runs.picture(50))
    runs.write_parquet(data, rows[:-1])
    prepare(path)
    assert sum(encoded) == 1
    assert_as_made_anew(path)


def test_other_sizes_of_shards_change_nothing(path: Path, encoded: list[int]):
    """A finished cache keeps its own."""
    prepare(path)
    encoded.clear()
    exchange_a_picture(path.parent / "data")
    prepare(path, "data.rows_per_shard=2")
    assert sum(encoded) == 1
    assert_as_made_anew(path)


def test_a_cache_from_before_contents_were_recorded_is_taken_over(
    path: Path, encoded: list[int], capsys: pytest.CaptureFixture[str]
):
    recipe = prepare(path)
    split = RunFolder.of(recipe).tokens / "train"
    make_old(split)
    before = runs.files_of(split / "shards")
    encoded.clear()
    capsys.readouterr()
    prepare(path)
    assert "was made before the content of caches was recorded" in capsys.readouterr().err
    assert not encoded
    assert runs.files_of(split / "shards") == before
    assert read_content(split) is not None
    exchange_a_picture(path.parent / "data")
    prepare(path)
    assert_as_made_anew(path)


def test_captions_of_an_old_cache_are_compared(path: Path):
    recipe = prepare(path)
    make_old(RunFolder.of(recipe).tokens / "train")
    correct_a_caption(path.parent / "data")
    prepare(path)
    assert_as_made_anew(path)


def make_old(split: Path) -> None:
    """As an earlier version wrote it."""
    shutil.rmtree(split / "contents")
    (split / "content.json").unlink()
    stage = json.loads((split / "stage.json").read_text())
    settings = {k: v for k, v in stage["settings"].items() if not k.endswith(" (content)")}
    (split / "stage.json").write_text(
        json.dumps({"done": True, "settings": settings, "until_done": stage["until_done"]})
    )


def swap(shards: Path) -> None:
    (shards / "000000000").rename(shards / "x")
    (shards / "000000003").rename(shards / "000000000")
    (shards / "x").rename(shards / "000000003")


def double(shards: Path) -> None:
    shutil.rmtree(shards / "000000003")
    shutil.copytree(shards / "000000000", shards / "000000003")


def flip_a_bit(shards: Path) -> None:
    file = next((shards / "000000003").glob("*.arrow"))
    data = bytearray(file.read_bytes())
    table = open_cache(shards.parent, 1)
    code = table.codes(torch.tensor([3]), torch.tensor([0]))[0].int().numpy().tobytes()
    place = data.index(code)
    data[place] ^= 1
    file.write_bytes(bytes(data))


def truncate(shards: Path) -> None:
    file = next((shards / "000000003").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:200])


def lose(shards: Path) -> None:
    shutil.rmtree(shards / "000000003")


def add_a_strange_one(shards: Path) -> None:
    shutil.copytree(shards / "000000003", shards / "000000009")


def bring_one_of_another_cache(shards: Path) -> None:
    """Of the same pictures by another image tokenizer, with its own record."""
    shard = shards / "000000003"
    table, record = read_shard(shard), read_record(shard)
    assert record is not None
    others = [[1 - code if code < 2 else code - 1 for code in row] for row in table["codes"]]
    columns = {name: table[name] for name in table.column_names} | {"codes": others}
    shutil.rmtree(shard)
    write_shard(
        shard, Dataset.from_dict(columns, table.features), record.signature, record.pictures
    )


@pytest.mark.parametrize(
    "damage",
    [swap, double, flip_a_bit, truncate, lose, add_a_strange_one, bring_one_of_another_cache],
)
def test_damaged_shards_are_named_and_made_anew(path: Path, damage: Callable[[Path], None]):
    recipe = prepare(path)
    damage(RunFolder.of(recipe).tokens / "train" / "shards")
    with pytest.raises(UserError, match=r"shards/00000000\d.*mm-cca prepare"):
        runs.do(path, stages=["train"])
    runs.do(path)
    assert_as_made_anew(path)


def test_an_unfinished_cache_is_not_trained_on(path: Path):
    split = RunFolder.of(prepare(path)).tokens / "train"
    stage = json.loads((split / "stage.json").read_text())
    (split / "stage.json").write_text(json.dumps(stage | {"done": False}))
    with pytest.raises(UserError, match="is incomplete: run `mm-cca prepare"):
        runs.do(path, stages=["train"])


def test_a_missing_caption_is_told_before_any_image_is_encoded(path: Path, encoded: list[int]):
    lines = lines_of(path.parent / "data")
    lines[6]["text"] = ""
    write_lines(path.parent / "data", lines)
    with pytest.raises(UserError, match=r"row 6: .*empty caption"):
        prepare(path)
    assert not encoded
