"""What ``data.path`` is, and which files belong to which split; reads nothing but names.

We name the files ourselves: ``datasets`` takes every path with "train" or "test" in it for a split.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal

from mm_cca.config.shipped import SHIPPED, how_to_make
from mm_cca.data.hub_folder import configured_files
from mm_cca.data.image_folders import SIDECARS, is_picture
from mm_cca.data.metadata import EXAMPLE, METADATA
from mm_cca.data.remote_files import expand, is_address
from mm_cca.errors import UserError

Kind = Literal["parquet", "arrow", "webdataset", "zip", "images", "saved", "hub", "remote"]
KIND_OF: dict[str, Kind] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
    ".zip": "zip",
}
"""File name endings of files that hold many rows."""
TRAIN = "train"
SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("heldout", "holdout"), "heldout"),
}
"""Names of folders and shards that are splits, and what ``datasets`` calls the split."""
READABLE = (
    "'emoji'; a folder or zip with pictures and a metadata.jsonl (.csv, .json, .parquet), or with "
    "0001.txt beside 0001.jpg; a Parquet file, a folder of them or a glob; WebDataset tars, also "
    "at addresses such as https://host/{00000..00009}.tar; a folder of Dataset.save_to_disk; a "
    "downloaded hub data set; or a name on the hub."
)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SHARD = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}([-_.].*)?", re.ASCII)
_NUMBERED = re.compile(r"(?P<split>[a-z]+)([-_.]?\d.*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A data set, not read yet.

    Attributes:
        kind: how it is read.
        splits: split -> its files; the folder of a split for ``images``; empty for ``hub``.
        root: of the names in ``names``.
        names: of ``images``, the files below ``root``.
        addresses: of ``remote``, split -> its tars.
    """

    kind: Kind
    splits: dict[str, list[Path]]
    root: Path
    names: list[str] = field(default_factory=list)
    addresses: dict[str, list[str]] = field(default_factory=dict)


def source_of(path_or_name: str, key: str, subset: str | None = None) -> Source:
    """Tell what a path or name is.

    Args:
        path_or_name: a value of ``data.path``.
        key: the recipe's key that named it, for messages.
        subset: the configuration of a hub data set or a downloaded one.

    Raises:
        UserError: nothing there, or nothing that can be read.
    """
    if is_address(path_or_name):
        return _addresses(path_or_name, key)
    _refuse_ambiguous(path_or_name, key)
    path = Path(SHIPPED.get(path_or_name, path_or_name)).absolute()
    try:
        if path.is_dir():
            return _folder(path, key, subset)
        exists, is_file = path.exists(), path.is_file()
    except (OSError, ValueError) as error:  # names too long, NUL bytes
        raise unreadable(path_or_name, key, str(error)) from error
    if is_file:
        return _file(path, key)
    if exists:
        raise unreadable(path_or_name, key, "it is a FIFO or device, not a file")
    if glob.has_magic(path_or_name):
        found = [Path(name).absolute() for name in sorted(glob.glob(path_or_name, recursive=True))]  # noqa: PTH207
        if not found:
            raise unreadable(path_or_name, key, "no file fits this pattern")
        files = [file for file in found if file.is_file()]
        root = Path(os.path.commonpath([file.parent for file in found]))
        return _shards(files, root, key, path_or_name)
    if _HUB_NAME.fullmatch(path_or_name) and not path_or_name.endswith(tuple(KIND_OF)):
        return Source("hub", {}, Path())
    raise unreadable(path_or_name, key, "there is no such file or folder")


def _addresses(address: str, key: str) -> Source:
    """Tars behind a scheme."""
    tars = expand(address)
    other = next((tar for tar in tars if not tar.partition("?")[0].lower().endswith(".tar")), None)
    if other is not None:
        raise UserError(
            f"{key} {address!r}: {other} is no .tar. Of addresses only WebDataset tars are read, "
            "such as https://host/{00000..00009}.tar, hf://datasets/org/name/*.tar or "
            "s3://bucket/folder/*.tar; download anything else."
        )
    files = {tar: PurePosixPath(tar.partition("?")[0].partition("://")[2]) for tar in tars}
    root = PurePosixPath(os.path.commonpath([file.parent for file in files.values()]))
    by_split: dict[str, list[str]] = {}
    for tar, file in files.items():
        by_split.setdefault(_split_of(file, root) or "", []).append(tar)
    return Source("remote", {}, Path(), [], {TRAIN: tars} if "" in by_split else by_split)


def unreadable(path_or_name: str, key: str, why: str) -> UserError:
    """The message for a source that can't be read."""
    return UserError(
        f"{key} {path_or_name!r} can't be read: {why}\nAllowed: {READABLE}"
        f"{how_to_make(path_or_name)}"
    )


def _refuse_ambiguous(name: str, key: str) -> None:
    if name in SHIPPED and Path(name).is_dir() and any(Path(name).iterdir()):
        raise UserError(
            f"{key} {name!r} is both the built-in data set and a folder here. Write ./{name} for "
            "the folder; for the built-in one, run from another folder."
        )


def _file(path: Path, key: str) -> Source:
    suffix = path.suffix.lower()
    if path.name in METADATA:
        return Source("images", {TRAIN: [path.parent]}, path.parent, [path.name])
    if suffix in KIND_OF:
        return Source(KIND_OF[suffix], {TRAIN: [path]}, path.parent)
    with path.open("rb") as file:
        if file.read(4) == b"PAR1":
            return Source("parquet", {TRAIN: [path]}, path.parent)
    hint = (
        f"name it metadata.{suffix[1:]} beside its pictures, with lines such as {EXAMPLE}"
        if suffix in (".jsonl", ".json", ".csv")
        else "unpack it"
        if suffix in (".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
        else f"a file that ends in {suffix or 'nothing'} is none of these"
    )
    raise unreadable(str(path), key, hint)


def _folder(root: Path, key: str, subset: str | None) -> Source:
    if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
        return Source("saved", {TRAIN: [root]}, root)
    names = list(files_below(root))
    metadata = any(PurePosixPath(name).name in METADATA for name in names)
    configured = None if metadata else configured_files(root, subset)
    if configured is not None:
        kinds = {
            KIND_OF.get(path.suffix.lower()) for files in configured.values() for path in files
        }
        kind = next(iter(kinds))
        if len(kinds) == 1 and kind is not None:
            return Source(kind, configured, root)
    if subset is not None:
        raise UserError(
            f"data.subset is {subset!r}, but {root} has no README.md that lists configurations. "
            "Set data.path to the folder or files of that subset, and data.subset to null."
        )
    pictures = any(is_picture(name) for name in names)
    if metadata or (pictures and any(name.endswith(SIDECARS) for name in names)):
        return _pictures(root, names)
    shards = [root / name for name in names if PurePosixPath(name).suffix.lower() in KIND_OF]
    if shards:
        return _shards(shards, root, key, str(root))
    if pictures:
        return _pictures(root, names)
    raise unreadable(str(root), key, f"none of the {len(names)} files below it is known")


def files_below(root: Path) -> Iterator[str]:
    """Relative paths of all files, sorted in every folder; links are followed, each folder once.

    Hidden names, ``__NAMES`` and folders that a run of mm-cca wrote are left out.
    """
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        below = os.path.relpath(folder, root)
        if place in seen or (below != "." and is_run_folder(Path(folder))):
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(files):
            if not name.startswith((".", "__")):
                yield PurePosixPath(below, name).as_posix()


def is_run_folder(folder: Path) -> bool:
    """Whether a run wrote the folder: its pictures are samples, not data."""
    made = ("environment.json", "tokens", "train", "samples", "eval")
    return (folder / "recipe.yaml").exists() and any((folder / name).exists() for name in made)


def _pictures(root: Path, names: list[str]) -> Source:
    """One split, or one per folder where all folders at the top are named as splits.

    A metadata file or picture at the top makes them plain folders.
    """
    used = [n for n in names if is_picture(n) or PurePosixPath(n).name in METADATA]
    tops = sorted({PurePosixPath(name).parts[0] for name in used if "/" in name})
    if len([name for name in used if "/" in name]) == len(used):
        splits = {top: SPLITS.get(top.lower()) for top in tops}
        if all(splits.values()) and len(set(splits.values())) == len(splits):
            return Source("images", {s: [root / t] for t, s in splits.items() if s}, root, names)
    return Source("images", {TRAIN: [root]}, root, names)


def _shards(files: list[Path], root: Path, key: str, shown: str) -> Source:
    """Files of many rows; a split each if all their names, or their folders', are splits."""
    kinds = {KIND_OF.get(file.suffix.lower()) for file in files}
    kind = next(iter(kinds), None)
    if len(kinds) != 1 or kind is None:
        endings = ", ".join(sorted({file.suffix or file.name for file in files}))
        raise unreadable(shown, key, f"it holds several kinds of files: {endings}")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file, root) or "", []).append(file)
    return Source(kind, {TRAIN: files} if "" in by_split else by_split, root)


def _split_of(file: PurePath, root: PurePath) -> str | None:
    """From train-00000-of-00002.parquet, test.parquet, val_3.tar or train/0000.parquet."""
    if match := _SHARD.fullmatch(file.stem):
        return SPLITS.get(match["split"].lower(), match["split"])
    numbered = _NUMBERED.fullmatch(file.stem)
    parts: Sequence[str] = file.relative_to(root).parent.parts[::-1]
    named = [SPLITS.get(part.lower()) for part in parts]
    own = SPLITS.get(numbered["split"].lower()) if numbered else None
    return own or next((split for split in named if split), None)
