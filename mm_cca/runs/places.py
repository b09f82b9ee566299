"""What lies at a path outside the run, known by its content, so that it may be moved.

A digest reads every byte, so it is kept with the names, sizes and times of the files it was made
from, and made again only when one of these differs.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mm_cca.config.read_files import json_of, refuse_no_file
from mm_cca.config.shipped import shipped
from mm_cca.errors import UserError
from mm_cca.runs.files import write_json

KNOWN = "contents.json"
"""In a run folder: the digests of what its paths named."""
NOT_CONTENT = (".md", ".lock", ".gitattributes", ".gitignore")
"""Files of a checkpoint folder that decide nothing."""
LARGE = 2**30
BLOCK = 2**22
_seen: dict[str, str] = {}


def file_digest(path: Path) -> str:
    """sha256 of a file, read in blocks. Raises OSError, also for a pipe or a device."""
    refuse_no_file(path)
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def digests_of(files: Iterable[Path]) -> list[str]:
    """``file_digest`` of each; several at a time, as hashing does not hold the interpreter."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(file_digest, files))


def files_below(root: Path, *, but: Path | None = None) -> Iterator[tuple[str, os.stat_result]]:
    """Relative name and state of a file, or of every file below a folder, in order of name.

    Hidden files and folders, and the folder ``but``, are left out.
    """
    if root.is_file():
        yield root.name, root.stat()
        return
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (but is None or (here / name).resolve() != but)
        )
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = here / name
            try:
                yield str(path.relative_to(root)), path.stat()
            except FileNotFoundError:  # a link to nowhere
                continue


def signature_of(files: Iterable[tuple[str, os.stat_result]]) -> str:
    """sha256 over names, sizes and times of the last change: equal for files nobody touched."""
    digest = hashlib.sha256()
    for name, state in files:
        digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()


def content_of(path_or_name: str, run: Path, *, tell: bool) -> str | None:
    """A digest of the files of a checkpoint: a file, a folder, or something built in.

    Args:
        path_or_name: a value of ``model.path`` and the like.
        run: the run folder, which keeps the digests; see ``remember``.
        tell: say so if it takes long; one rank only.

    Returns:
        None for a name on the hub.

    Raises:
        UserError: a file can't be read.
    """
    root = Path(shipped(path_or_name))
    if not root.exists():
        return None
    files = [(n, s) for n, s in files_below(root) if not n.endswith(NOT_CONTENT)]
    signature = signature_of(files)
    known = _seen.get(signature) or _known(run).get(signature)
    if known is None:
        size = sum(state.st_size for _, state in files)
        if size > LARGE and tell:
            print(
                f"reading {path_or_name} once ({size / 1e9:.1f} GB), to know it again wherever it "
                "lies",
                file=sys.stderr,
            )
        paths = [root if root.is_file() else root / name for name, _ in files]
        try:
            digests = digests_of(paths)
        except OSError as error:
            raise UserError(f"{path_or_name} can't be read: {error}") from error
        # A single file is known by its bytes alone, whatever its name.
        named = zip(["" if root.is_file() else n for n, _ in files], digests, strict=True)
        text = "".join(f"{name}\0{digest}\n" for name, digest in named)
        known = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    _seen[signature] = known
    return known


def remember(run: Path) -> None:
    """Write the digests that this process made into the run folder."""
    known = _known(run)
    if not _seen.keys() <= known.keys():
        write_json(run / KNOWN, known | _seen)


def _known(run: Path) -> dict[str, str]:
    """The digests that the run folder keeps; a damaged file costs only time."""
    try:
        return json_of(run / KNOWN, dict[str, str], "")
    except UserError:
        return {}
