"""What a finished token cache holds and was made from, so that it is known wherever its data lie.

A cache is known by its content: captions, codes, and of every picture the sha256 of its bytes.
Whether data were touched since is told by the names, sizes and times of their files, so that
nothing is read twice.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from typing_extensions import TypedDict

from mm_cca.config.read_files import json_of
from mm_cca.config.schema import Recipe
from mm_cca.config.shipped import shipped
from mm_cca.data.remote_files import expand, is_address, versions_of
from mm_cca.data.token_shards import (
    Record,
    read_record,
    read_shard,
    record_path,
    rows_digest,
    shards_of,
    sizes_in,
    texts_in,
)
from mm_cca.errors import UserError
from mm_cca.runs.files import write_json
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.places import content_of, files_below, signature_of
from mm_cca.runs.stage import Stage

CONTENT_FILE = "content.json"
"""In the folder of a split: what its finished cache holds and was made from."""

UNCOVERED = ""


def column(table: Dataset, name: str) -> list[Any]:
    """A column's values, whatever ``datasets`` returns for ``table[name]``."""
    return table.data.column(name).to_pylist()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Origin:
    """Where data lie now.

    Attributes:
        path: as in the recipe.
        root: the same without links; None for an address or a name on the hub.
        signature: of all its files; None for a name on the hub, or where no host answers.
        versions: of the files of an address; see ``versions_of``.
    """

    path: str
    root: Path | None
    signature: str | None
    versions: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, path: str, run: Path) -> "Origin":
        """Reads names, sizes and times only; a run folder inside the data is left out."""
        if is_address(path):
            return cls._remote(path)
        root = Path(shipped(path))
        if not root.exists():
            return cls(path, None, None)
        root = root.resolve()
        return cls(path, root, signature_of(files_below(root, but=run.resolve())))

    @classmethod
    def _remote(cls, path: str) -> "Origin":
        try:
            versions = versions_of(expand(path))
        except UserError:  # told if the data are needed
            return cls(path, None, None)
        listed = "".join(f"{address}\0{version}\n" for address, version in versions.items())
        return cls(path, None, hashlib.sha256(listed.encode()).hexdigest(), versions)

    @property
    def place(self) -> str:
        """To tell whether it is the same place."""
        return self.path if self.root is None else str(self.root)


@dataclass(frozen=True)
class CacheContent:
    """What ``content.json`` says of a finished cache.

    Attributes:
        sha256: of captions, codes and pictures of its usable rows.
        place: of the data; see ``Origin.place``.
        signature: of the data's files, or None.
        shards: names of its shards.
        problems: rows whose picture can't be used.
        digests: of the rows of each shard; empty where they were not recorded then.
    """

    sha256: str
    place: str
    signature: str | None
    shards: list[str]
    problems: int
    digests: list[str] = field(default_factory=list)

    def holds(self, shard: Path, record: Record | None) -> bool:
        """Whether a shard, which fits its record, is the one that this cache was finished with.

        A shard of another cache fits the record that was copied with it.
        """
        digests = dict(zip(self.shards, self.digests, strict=False))
        digest = digests.get(shard.name)
        return digest is None or record is None or record.sha256 == digest


class _Stored(TypedDict):
    """``CacheContent`` in its file."""

    sha256: str
    place: str
    signature: str | None
    shards: list[str]
    problems: int
    digests: NotRequired[list[str]]


def read_content(split: Path) -> CacheContent | None:
    """The content of a split's cache; None if it is unfinished, damaged or from before it was
    recorded."""
    try:
        return CacheContent(**json_of(split / CONTENT_FILE, _Stored, ""))
    except (UserError, TypeError):
        return None


def write_content(split: Path, origin: Origin) -> CacheContent:
    """Record the content of a split whose shards are complete."""
    digest, problems, outside = hashlib.sha256(), 0, False
    names, digests = list[str](), list[str]()
    captions, codes, pictures = (hashlib.sha256() for _ in range(3))
    for path in shards_of(split):
        table, record = read_shard(path), read_record(path)
        names.append(path.name)
        digests.append(rows_digest(table) if record is None else record.sha256)
        bad = np.array([bool(problem) for problem in column(table, "problem")])
        problems += int(bad.sum())
        good = table if not bad.any() else table.select(np.flatnonzero(~bad)).flatten_indices()
        for caption in column(good, "caption"):
            captions.update(caption.encode(errors="replace") + b"\0")
        for texts in texts_in(good):
            captions.update("\0".join([*texts, ""]).encode(errors="replace"))
        for chunk in good.data.column("codes").chunks:
            codes.update(np.ascontiguousarray(chunk.flatten(), dtype="<i4").data)
        sizes = sizes_in(good)
        if sizes is not None:  # the same codes may be those of another shape
            codes.update(sizes.astype("<i4").tobytes())
        made_from = [] if record is None else record.pictures
        outside = outside or record is None or record.signature == UNCOVERED
        for picture, is_bad in zip(made_from, bad, strict=bool(made_from)):
            if not is_bad:
                pictures.update(f"{picture.sha256}\n".encode())
    for part in (captions, codes, pictures):
        digest.update(part.digest())
    signature = covering(origin.signature, outside)
    content = CacheContent(digest.hexdigest(), origin.place, signature, names, problems, digests)
    write_json(split / CONTENT_FILE, asdict(content))
    return content


def covering(signature: str | None, outside: bool) -> str | None:
    """A signature that equals none if some pictures lie outside the data, where it can't see."""
    return UNCOVERED if outside and signature is not None else signature


def is_whole(split: Path, content: CacheContent) -> bool:
    """Whether every shard and its record are there, and no other shard."""
    paths = shards_of(split)
    return [path.name for path in paths] == content.shards and all(
        record_path(path).exists() for path in paths
    )


def is_sound(split: Path, content: CacheContent) -> bool:
    """``is_whole``, and no shard was damaged or exchanged; each is read once per process."""
    try:
        return is_whole(split, content) and all(
            len(read_shard(path)) and content.holds(path, read_record(path))
            for path in shards_of(split)
        )
    except UserError:
        return False


def is_unchanged(split: Path, content: CacheContent | None, origin: Origin) -> bool:
    """Whether the cache is sound, and nobody touched its data since (names, sizes, times)."""
    if content is None or not is_sound(split, content):
        return False
    return origin.signature is not None and content.signature == origin.signature


def record_place(split: Path, origin: Origin) -> None:
    """Note where the unchanged data of a finished cache lie now."""
    content = read_content(split)
    if content is not None and content.place != origin.place:
        write_json(split / CONTENT_FILE, asdict(replace(content, place=origin.place)))


def contents_of(recipe: Recipe, run: RunFolder, splits: Sequence[str]) -> dict[str, str]:
    """Key -> digest of what its path names: ``model_contents``, and ``data.path`` by these caches.

    What has no digest (names on the hub, caches from before it was recorded) is left out.
    """
    found = model_contents(recipe, run)
    content = data_content(run.tokens, splits)
    return found if content is None else found | {"data.path": content}


def model_contents(recipe: Recipe, run: RunFolder) -> dict[str, str]:
    """The digests of the checkpoint and of tokenizers that lie elsewhere."""
    model, found = recipe.model, {}
    for key, path in (
        ("model.path", model.path),
        ("model.image_tokenizer", model.image_tokenizer),
        ("model.tokenizer", model.tokenizer),
    ):
        tell = PartialState().is_main_process
        content = None if path is None else content_of(path, run.root, tell=tell)
        if content is not None:
            found[key] = content
    return found


def data_content(tokens: Path, splits: Sequence[str]) -> str | None:
    """A digest of the finished caches of these splits; None if one is not known by its content."""
    digest = hashlib.sha256()
    for split in splits:
        content = read_content(tokens / split) if Stage.ended(tokens / split) else None
        if content is None:
            return None
        digest.update(content.sha256.encode())
    return digest.hexdigest()
