"""Small data sets, recipes and runs."""

import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from transformers import PreTrainedModel

from mm_cca.cli.commands.run import run_job
from mm_cca.config.load import load_config
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError

COLOURS = ("red", "green", "blue", "pink", "grey", "black")
THINGS = ("owl", "hand", "face", "cat", "house", "tree", "car", "leaf")
CAPTIONS = [f"{colour} {thing}" for thing in THINGS for colour in COLOURS]


def picture(number: int, size: int = 16, mode: str = "RGB") -> Image.Image:
    """A blocky picture that differs with ``number``."""
    channels = len(mode)
    blocks = np.random.default_rng(number).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).resize((size, size))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(count: int, *, first: int = 0, **extra: Any) -> list[dict[str, Any]]:
    """Rows with distinct captions and pictures."""
    return [
        {"image": png(picture(first + i)), "caption": CAPTIONS[first + i], **extra}
        for i in range(count)
    ]


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], image_column: str = "image") -> Path:
    """Raw rows as Parquet; ``image`` holds bytes and becomes ``{"bytes", "path"}``."""
    stored = [
        {k: {"bytes": v, "path": None} if k == image_column else v for k, v in row.items()}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(stored), path)
    return path


def write_imagefolder(folder: Path, count: int) -> Path:
    """A folder of PNG files and a ``metadata.jsonl`` with the column ``text``."""
    folder.mkdir(parents=True)
    lines = []
    for i in range(count):
        name = f"{i:04d}.png"
        picture(i).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": CAPTIONS[i]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def two_splits(path: Path, train: int = 16, heldout: int = 12) -> Path:
    """A Parquet file whose column ``split`` is train or heldout."""
    rows = rows_of(train, split="train") + rows_of(heldout, first=train, split="heldout")
    return write_parquet(path, rows)


def tiny_recipe(folder: Path, model: Path, data: Path) -> dict[str, Any]:
    """A complete recipe for the tiny checkpoint of conftest.py."""
    return {
        "job": "finetune",
        "run": {"dir": str(folder / "run")},
        "model": {"adapter": "emu3", "path": str(model), "dtype": "float32"},
        "data": {
            "path": str(data),
            "split_column": "split",
            "image_size": [16, 16],
            "rows_per_shard": 5,
            "encode_batch_size": 8,
        },
        "loss": {"beta": 0.02, "beta_codes": 576, "lambda_": 3.0, "uncond_ratio": 0.25},
        "train": {
            "max_steps": 4,
            "batch_size": 4,
            "micro_batch_size": 4,
            "learning_rate": 1e-3,
            "save_every": 1,
            "keep_checkpoints": 2,
            "trackers": [],
        },
        "sample": {"num_images": 6, "guidance_scales": [2.0], "batch_size": 3},
        "eval": {
            "scorer": "emoji-clip",
            # No judge ranks 28 random pictures.
            "judge_r_at_5": None,
            "bootstrap_samples": 100,
            "grid_prompts": 3,
        },
    }


def write_recipe(path: Path, values: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def unread_recipe(folder: Path) -> Path:
    """A recipe with two splits whose model and data do not exist: validation reads neither."""
    values = tiny_recipe(folder, folder / "model", folder / "data.parquet")
    values["data"]["heldout_split"] = "heldout"
    return write_recipe(folder / "recipe.yaml", values)


def message_of(path: Path | str, *overrides: str) -> str:
    """The error message of an invalid recipe."""
    with pytest.raises(UserError) as caught:
        load_config(str(path), overrides)
    return str(caught.value)


def load_recipe(path: Path, *overrides: str) -> Recipe:
    recipe = load_config(str(path), overrides)
    assert isinstance(recipe, Recipe)
    return recipe


def do(path: Path, *overrides: str, stages: Sequence[str] = ("prepare", "train")) -> Recipe:
    """Load a recipe and run stages of it in this process."""
    recipe = load_recipe(path, *overrides)
    run_job(recipe, stages)
    return recipe


def start(verb: str, path: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start ``mm-cca VERB`` in another process."""
    return subprocess.Popen(
        [sys.executable, "-m", "mm_cca.cli", verb, str(path), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TwoRanks:
    """Replaces ``accelerate.PartialState``: two threads act as ranks 0 and 1."""

    num_processes = 2

    def __init__(self) -> None:
        self._local = threading.local()
        self._barrier = threading.Barrier(2, timeout=60)

    def __call__(self) -> "TwoRanks":
        return self

    @property
    def process_index(self) -> int:
        return self._local.rank

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def wait_for_everyone(self) -> None:
        self._barrier.wait()

    def run(self, work: Callable[[], None]) -> None:
        """Run ``work`` in both threads; raises what either raises."""

        def as_rank(rank: int) -> None:
            self._local.rank = rank
            work()

        # While transformers loads, it replaces functions of its classes; two threads at once would
        # leave them replaced for every later test.
        lock, load = threading.Lock(), PreTrainedModel.from_pretrained.__func__

        def in_turn(cls: type, *args: Any, **options: Any) -> Any:
            with lock:
                return load(cls, *args, **options)

        one_by_one = patch.object(PreTrainedModel, "from_pretrained", classmethod(in_turn))
        with one_by_one, ThreadPoolExecutor(2) as pool:
            list(pool.map(as_rank, (0, 1)))


def metrics(folder: Path, *, timings: bool = False) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, by default without timings, which equal runs do not share."""
    lines = json_lines(folder / "metrics.jsonl")
    if not timings:
        for line in lines:
            line.pop("tokens_per_second")
            line.pop("seconds")
    return lines


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Every line of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def grids_of(report: Path) -> list[dict[str, Any]]:
    """The image grids of a report's script, one per split."""
    page = report.read_text(encoding="utf-8")
    data = page.split('id="grid-data">')[1].split("</script>")[0]
    grids: list[dict[str, Any]] = json.loads(data)["grids"]
    return grids


def files_of(folder: Path) -> dict[str, bytes]:
    """Relative path and bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def mtimes_of(folder: Path) -> dict[str, int]:
    """Relative path and time of the last change of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
