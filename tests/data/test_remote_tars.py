"""Tars at addresses are streamed: the same caches, nothing stored, and breakdowns that are told."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from mm_cca.config.schema import Recipe
from mm_cca.data import remote_files, tar_index
from mm_cca.data.contents import Origin, read_content
from mm_cca.data.images import load_split
from mm_cca.data.remote_files import expand
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from tests.data.test_tars import COLUMNS, add, path
from tests.support import runs
from tests.support.data_sources import check, config, write_tar
from tests.support.range_server import RangeServer, serving

__all__ = ["path"]


@pytest.fixture
def host(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(remote_files, "WAITS", (0.0,))
    with serving(path.parent / "data") as server:
        yield server


def prepared(path: Path, data: str, name: str = "far", *more: str) -> Recipe:
    keys = (f"data.path='{data}'", f"run.dir={path.parent / name}", *more)
    return runs.do(
        path, "train.batch_size=3", "train.micro_batch_size=3", *keys, stages=["prepare"]
    )


def shards_of(recipe: Recipe) -> dict[str, bytes]:
    """Bytes of the shards; their state.json holds a random fingerprint."""
    files = runs.files_of(RunFolder.of(recipe).tokens / "train" / "shards")
    return {name: data for name, data in files.items() if name.endswith(".arrow")}


@pytest.mark.parametrize(("kind", "workers"), [("http", 0), ("http", 2), ("memory", 0)])
def test_the_same_cache_from_anywhere(path: Path, host: RangeServer, kind: str, workers: int):
    near = runs.do(path, stages=["prepare"])
    if kind == "http":
        address = f"{host.address}/{{00000..00001}}.tar"
    else:
        memory = fsspec.filesystem("memory")
        for file in (path.parent / "data").iterdir():
            memory.pipe_file(f"/{path.parent.name}/{file.name}", file.read_bytes())
        address = f"memory://{path.parent.name}/*.tar"
    before = sorted(path.parent.rglob("*"))
    far = prepared(path, address, "far", f"data.num_workers={workers}")
    made = set(path.parent.rglob("*")) - set(before)
    assert all("far" in str(file) for file in made)
    assert not [file for file in made if file.suffix == ".tar"]
    assert len(shards_of(near)) == 3
    assert shards_of(far) == shards_of(near)
    contents = [read_content(RunFolder.of(recipe).tokens / "train") for recipe in (near, far)]
    assert contents[0] is not None
    assert contents[1] is not None
    assert contents[0].sha256 == contents[1].sha256
    if kind == "http":
        (size,) = {file.stat().st_size for file in (path.parent / "data").iterdir()}
        assert all(end - start < size - 1 or start == 0 for _, start, end in host.parts)


def test_splits_by_the_names_of_tars(tmp_path: Path):
    write_tar(tmp_path / "train-0.tar", range(4))
    write_tar(tmp_path / "test-0.tar", range(4, 6))
    with serving(tmp_path) as host:
        data = config(f"{host.address}/{{train,test}}-0.tar", **COLUMNS)
        check(load_split(data, "train"), range(4), "png")
        check(load_split(data, "test"), [4, 5], "png")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_connection_that_is_lost_is_no_bad_row(
    path: Path, host: RangeServer, encoded: list[int], workers: int
):
    address, keys = f"{host.address}/{{00000..00001}}.tar", f"data.num_workers={workers}"
    host.left = 4 + 3  # the index of two tars, and three pictures
    with pytest.raises(UserError, match=r"00000\.tar|00001\.tar") as caught:
        prepared(path, address, "far", keys, "data.max_bad=100")
    said = str(caught.value)
    assert "can't be read" in said
    assert "What is finished is kept: run the same command again" in said
    assert "\n" not in said
    tokens = path.parent / "far" / "tokens" / "train"
    assert not (tokens / "bad_rows.jsonl").exists()
    kept = len(list((tokens / "shards").glob("*/*.arrow")))
    host.left = None
    encoded.clear()
    far = prepared(path, address, "far", keys)
    assert sum(encoded) == 6 - 2 * kept
    if not workers:
        assert kept == 1
    assert shards_of(far) == shards_of(runs.do(path, stages=["prepare"]))


@pytest.mark.parametrize("ranges", ["ignored", "refused"])
def test_a_host_without_ranges_is_told(path: Path, host: RangeServer, ranges: str):
    host.ranges = ranges  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"does not support range requests\. Download the tars"):
        prepared(path, f"{host.address}/00000.tar")


def test_a_host_that_stops_giving_ranges_is_told(path: Path, host: RangeServer):
    data = config(f"{host.address}/00000.tar", **COLUMNS)
    cell = load_split(data, "train").table[0]["png"]
    host.ranges = "ignored"
    from mm_cca.data.images import decode_image

    with pytest.raises(UserError, match="does not support range requests"):
        decode_image(cell, 16, 16)


def test_what_was_added_at_an_address_is_encoded(path: Path, host: RangeServer, encoded: list[int]):
    address = f"{host.address}/{{00000..00001}}.tar"
    prepared(path, address)
    host.parts.clear()
    encoded.clear()
    prepared(path, address)
    assert (encoded, host.parts) == ([], [])
    tar = path.parent / "data" / "00001.tar"
    add(tar, 77, first=True)
    os.utime(tar, (1e9, 1e9))
    prepared(path, address)
    assert sum(encoded) == 1
    assert json.loads((path.parent / "far/tokens/train/content.json").read_text())["signature"]


def test_a_finished_cache_needs_no_network(path: Path, host: RangeServer, encoded: list[int]):
    address = f"{host.address}/00000.tar"
    prepared(path, address)
    encoded.clear()
    tar = path.parent / "data" / "00000.tar"
    tar.rename(tar.with_suffix(".away"))
    assert Origin.of(address, path.parent).signature is None
    prepared(path, address)
    assert encoded == []
    with pytest.raises(UserError, match=r"can't be read.*404"):
        prepared(path, address, "other")


UNREACHABLE = {
    "http://127.0.0.1:1/0.tar": "Connect call failed|Cannot connect",
    "nosuch://host/0.tar": "scheme nosuch://, which fsspec does not know",
    "memory://nothing/*.tar": "fits no file",
    "memory://nothing/0.tar": "FileNotFoundError",
    "https://host/0.parquet": r"is no \.tar\. Of addresses only WebDataset tars",
    "https://host/{5..3}.tar": "stands for 0 files",
    "https://host/{0..999}/{0..999}.tar": "stands for 1,000,000 files",
}


@pytest.mark.parametrize("address", UNREACHABLE)
def test_what_is_wrong_with_an_address_is_told(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_files, "WAITS", ())
    with pytest.raises(UserError, match=UNREACHABLE[address]) as caught:
        load_split(config(address, **COLUMNS), "train")
    assert "\n" not in str(caught.value)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"s3://b/0\.tar needs a package .* pip install s3fs"):
        load_split(config("s3://b/0.tar", **COLUMNS), "train")


def test_braces():
    assert expand("https://h/{08..10}.tar?a=b/c") == [
        f"https://h/{n}.tar?a=b%2Fc" for n in ("08", "09", "10")
    ]
    assert expand("https://h/{a,b}/{1..2}.tar") == [
        f"https://h/{name}/{n}.tar" for name in "ab" for n in (1, 2)
    ]
    assert expand("https://h/{x}.tar") == ["https://h/{x}.tar"]


def indexed(path: Path, host: RangeServer) -> list[str]:
    """Captions, as another process reads them."""
    tar_index._table.cache_clear()
    host.parts.clear()
    data = config(f"{host.address}/{{00000..00001}}.tar", **COLUMNS)
    return load_split(data, "train", path.parent / "tokens").captions


def test_a_new_process_reads_no_headers(path: Path, host: RangeServer):
    captions = indexed(path, host)
    assert host.parts
    assert indexed(path, host) == captions
    assert host.parts == []


def test_a_changed_tar_is_indexed_anew(path: Path, host: RangeServer):
    captions = indexed(path, host)
    tar = path.parent / "data" / "00001.tar"
    add(tar, 77, first=False)
    later = tar.stat().st_mtime + 2  # HTTP tells whole seconds, and tars are padded to a size
    os.utime(tar, (later, later))
    assert indexed(path, host) == [*captions, "a new thing"]
    assert {name for name, _, _ in host.parts} == {"00001.tar"}
    kept = list((path.parent / "tokens" / "tar_index").glob("*.arrow"))
    assert len(kept) == len(list((path.parent / "data").iterdir())), "an old index is left"


@pytest.mark.parametrize("damage", ["cut", "other bytes", "no record"])
def test_a_damaged_index_is_made_again(path: Path, host: RangeServer, damage: str):
    captions = indexed(path, host)
    for file in (path.parent / "tokens" / "tar_index").glob("*.arrow"):
        data = file.read_bytes()
        if damage == "no record":
            file.with_suffix(".json").unlink()
        else:
            file.write_bytes(data[:-9] if damage == "cut" else data[:-9] + b"x" + data[-8:])
    assert indexed(path, host) == captions
    assert host.parts
    assert indexed(path, host) == captions
    assert host.parts == []
