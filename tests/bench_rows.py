"""What a million rows take: memory and seconds of preparing, planning and the first batch.

    python -m tests.bench_rows FOLDER                       a million rows of 64 codes
    python -m tests.bench_rows FOLDER --rows 10000 --codes 16 --parts open shuffle

FOLDER gets synthetic data once: a Parquet file of captions with one small picture, and the finished
token cache (what ``prepare`` encodes takes no memory that depends on the number of rows). Every
part runs in a process of its own, whose largest memory is told; under "private" without the pages
of memory-mapped files, which all ranks share. Run it by hand.
"""

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, disable_progress_bars
from PIL import Image

from mm_cca.config.schema import DataConfig
from mm_cca.data.cache_changes import compare
from mm_cca.data.contents import Origin, write_content
from mm_cca.data.images import load_split
from mm_cca.data.token_cache import open_cache
from mm_cca.data.token_shards import FEATURES, Picture, shard_path, write_shard
from mm_cca.negatives import NegativeSettings
from mm_cca.training.planned_negatives import plan_negatives
from mm_cca.training.schedule import Schedule

ROWS_PER_SHARD = 1024
BATCH = 64
COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
SIZES = ["small", "big", "tiny", "huge", "tall", "short", "wide", "narrow"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
SYLLABLES = ["ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "xo"]


def captions_of(rows: int, seed: int = 0) -> list[str]:
    """Captions of about a dozen words with attributes, nearly all distinct."""
    stream = np.random.default_rng(seed)
    # 30,000 nouns that are drawn as unevenly as words are.
    nouns = ["".join(stream.choice(SYLLABLES, 3)) for _ in range(30_000)]
    drawn = (np.minimum(stream.zipf(1.3, (rows, 4)), 30_000) - 1).tolist()
    picks = stream.integers(0, 1 << 16, (rows, 4)).tolist()
    return [
        f"{NUMBERS[a % 10]} {SIZES[b % 8]} {COLOURS[c % 10]} {nouns[i]} beside a {nouns[j]}, "
        f"with a {COLOURS[d % 10]} {nouns[k]} and the {nouns[m]} behind it"
        for (i, j, k, m), (a, b, c, d) in zip(drawn, picks, strict=True)
    ]


def write_data(folder: Path, rows: int, codes: int) -> None:
    """The Parquet file and the token cache; nothing if they are there."""
    if (folder / "rows.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    disable_progress_bars()
    captions = captions_of(rows)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(buffer, "PNG")
    png = buffer.getvalue()
    cell = {"bytes": png, "path": None}
    cells = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    with pq.ParquetWriter(
        folder / "data.parquet", pa.schema([("image", cells), ("caption", pa.string())])
    ) as file:
        for start in range(0, rows, 1 << 15):
            part = captions[start : start + (1 << 15)]
            file.write_table(
                pa.table({"image": pa.array([cell] * len(part), cells), "caption": part})
            )
    stream = np.random.default_rng(1)
    for start in range(0, rows, ROWS_PER_SHARD):
        part = captions[start : start + ROWS_PER_SHARD]
        drawn = stream.integers(0, 8192, len(part) * codes, dtype=np.int32)
        offsets = np.arange(0, len(drawn) + 1, codes, dtype=np.int32)
        columns = {
            "row": pa.array(np.arange(start, start + len(part))),
            "caption": pa.array(part),
            "codes": pa.ListArray.from_arrays(offsets, drawn),
            "problem": pa.array([""] * len(part)),
        }
        # No ``from_dict``, which takes a second for every few thousand lists of codes.
        table = Dataset(pa.table(columns).cast(FEATURES.arrow_schema))
        pictures = [
            Picture("", len(cell["bytes"]), 0, f"{start + i:064x}") for i in range(len(part))
        ]
        write_shard(shard_path(folder / "train", start), table, None, pictures)
    (folder / "rows.json").write_text(json.dumps({"rows": rows, "codes": codes}))


def origin(folder: Path) -> Origin:
    return Origin.of(str(folder / "data.parquet"), folder / "run")


def data_config(folder: Path) -> DataConfig:
    return DataConfig(path=str(folder / "data.parquet"), image_size=[16, 16])


def prepare(folder: Path) -> None:
    """What ``prepare`` does with a cache that is there, and what a new one costs beyond encoding:
    reading and checking all captions, comparing every row, and the record of the content."""
    source = load_split(data_config(folder), "train")
    compare(source, folder / "train", data_config(folder), origin(folder))
    write_content(folder / "train", origin(folder))


def open_only(folder: Path) -> None:
    """Opens the cache and reads a batch: what a stage without negatives needs."""
    cache = open_cache(folder / "train", 1)
    _first_batch(
        Schedule(
            cache.captions, batch_size=BATCH, num_variants=1, uncond_ratio=0.1, planner=None, seed=0
        ),
        folder,
    )


def planned(mixture: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        cache = open_cache(folder / "train", 1)
        settings = NegativeSettings({mixture: 1.0})
        planner, _ = plan_negatives(cache.captions, settings, seed=0, may_leave_out=0)
        print(f"planner after {time.perf_counter() - STARTED:.0f} s", file=sys.stderr)
        _first_batch(
            Schedule(
                cache.captions,
                batch_size=BATCH,
                num_variants=1,
                uncond_ratio=0.1,
                planner=planner,
                seed=0,
            ),
            folder,
        )

    return run


def _first_batch(schedule: Schedule, folder: Path) -> None:
    import torch

    cache = open_cache(folder / "train", 1)
    pairs = schedule.step(0)
    codes = cache.codes(torch.from_numpy(pairs.rows), torch.from_numpy(pairs.variants))
    texts = [cache.captions[row] for row in pairs.rows.tolist()]
    assert len(codes) == len(texts) == BATCH


PARTS: dict[str, Callable[[Path], None]] = {
    "prepare": prepare,
    "open": open_only,
    "shuffle": planned("shuffle"),
    "edit": planned("edit"),
    "hard": planned("hard"),
}
STARTED = time.perf_counter()


def memory() -> dict[str, float]:
    """Gigabytes of this process: the most it ever held, and what it holds now without files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        name: int(status[key].split()[0]) / 1e6
        for name, key in (("peak", "VmHWM"), ("private", "RssAnon"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--codes", type=int, default=64)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--here", action="store_true", help="one part, in this process")
    args = parser.parse_args()
    if args.here:
        (part,) = args.parts
        imported = memory()["peak"]
        started, used = time.perf_counter(), time.process_time()
        PARTS[part](args.folder)
        seconds, used = time.perf_counter() - started, time.process_time() - used
        now = memory()
        print(
            f"{part:8s} {seconds:7.1f} s ({used:.1f} s of a processor), peak {now['peak']:.2f} GB, "
            f"private at the end {now['private']:.2f} GB (imports alone {imported:.2f} GB)",
            flush=True,
        )
        return
    started = time.perf_counter()
    write_data(args.folder, args.rows, args.codes)
    print(f"data of {args.rows:,} rows after {time.perf_counter() - started:.0f} s", flush=True)
    for part in args.parts:
        command = [sys.executable, "-m", "tests.bench_rows", str(args.folder), "--here"]
        subprocess.run([*command, "--parts", part], check=True)


if __name__ == "__main__":
    main()
