"""Small data sets in the forms that people have, and their check."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Value

from mm_cca.config.schema import DataConfig
from mm_cca.data.images import Split, decode_image
from tests.support import runs

COUNT = 6
CAPTIONS = runs.CAPTIONS[:COUNT]
NAMES = [f"{i:04d}.png" for i in range(COUNT)]


def config(path: Path | str, **changes: Any) -> DataConfig:
    values = {"path": str(path), "image_size": [16, 16], "caption_column": "text"}
    return DataConfig(**(values | changes))


def picture(i: int) -> bytes:
    return runs.png(runs.picture(i))


def write_pictures(folder: Path, names: Sequence[str] = NAMES) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(i))
    return folder


def metadata(names: Sequence[str] = NAMES, captions: Sequence[Any] = CAPTIONS) -> str:
    rows = zip(names, captions, strict=True)
    return "".join(json.dumps({"file_name": n, "text": c}) + "\n" for n, c in rows)


def write_folder(folder: Path, names: Sequence[str] = NAMES, **columns: Any) -> Path:
    write_pictures(folder, names)
    (folder / "metadata.jsonl").write_text(metadata(names, **columns))
    return folder


def write_shard(file: Path, rows: Sequence[int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": picture(i), "path": None} for i in rows]
    columns = {"image": cells, "text": [CAPTIONS[i] for i in rows]}
    features = Features({"image": Image(), "text": Value("string")})
    Dataset.from_dict(columns, features=features).to_parquet(str(file))


def write_tar(file: Path, rows: Sequence[int], without: Sequence[str] = ()) -> None:
    """``without`` are names of members that are left out."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for i in rows:
            for ending, data in (("png", picture(i)), ("txt", CAPTIONS[i].encode())):
                entry = tarfile.TarInfo(f"{i:06d}.{ending}")
                if entry.name in without:
                    continue
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


def check(split: Split, rows: Sequence[int] = range(COUNT), column: str = "image") -> None:
    """All rows in order, each with the picture that belongs to its caption."""
    assert split.bad == []
    assert split.captions == [CAPTIONS[i] for i in rows]
    for row, i in zip(split.rows, rows, strict=True):
        found = decode_image(split.table[row][column], 16, 16).permute(1, 2, 0).numpy()
        assert np.array_equal(found, np.array(runs.picture(i).convert("RGB"))), f"row {row}"


def write_table(path: Path, **columns: list[Any]) -> Path:
    Dataset.from_dict(columns).to_parquet(str(path))
    return path
