"""Files at addresses, such as https://, hf:// or s3://, read in parts through fsspec.

Nothing is stored on disk. That an address can't be read says nothing about a picture, so it is
always a UserError and never a bad row.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from typing import IO, Any, TypeVar

from fsspec.core import url_to_fs

from mm_cca.errors import UserError

BLOCK = 2**20
"""Bytes that are read ahead where a file is read from its beginning."""
AT_ONCE = 8
"""Files that are asked for at the same time."""
WAITS = (1.0, 4.0)
"""Seconds before each further attempt."""
MOST = 100_000
"""Files that the braces of one address may stand for."""
PACKAGES = {
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
}
"""What fsspec needs for a scheme."""
VERSIONS = ("ETag", "Content-MD5", "Last-Modified", "LastModified", "blob_id", "lfs", "md5Hash")
TIMES = ("mtime", "created", "updated", "generation", "last_modified")
"""What the file systems call that which changes with a file's content."""
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://.", re.DOTALL)
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
T = TypeVar("T")
R = TypeVar("R")


def is_address(path: str) -> bool:
    return _ADDRESS.match(path) is not None


def expand(address: str) -> list[str]:
    """``https://host/{00000..00009}.tar``, ``{a,b}`` and ``*`` -> the addresses they stand for.

    Raises:
        UserError: too many, none, or a host that can't be reached.
    """
    addresses = [_quoted(one) for one in _without_braces(address)]
    if "*" not in address:
        return addresses
    found = [one for pattern in addresses for one in _glob(pattern)]
    if not found:
        raise UserError(f"{address} fits no file. Look for a typing mistake in it.")
    return found


def _without_braces(address: str) -> list[str]:
    parts: list[Sequence[str]] = []
    end, count = 0, 1
    for match in _BRACES.finditer(address):
        first, last, listed = match.groups()
        if listed is None:
            width = len(first) if first.startswith("0") else 0
            numbers = range(int(first), int(last) + 1)
            count *= len(numbers)
            options = [f"{n:0{width}d}" for n in numbers[: MOST + 1]]
        else:
            options = listed.split(",")
            count *= len(options)
        parts += [[address[end : match.start()]], options]
        end = match.end()
    if not 1 <= count <= MOST:
        raise UserError(
            f"{address} stands for {count:,} files; allowed: 1 to {MOST:,}. Write the range as "
            "{00000..00009}, the smaller number first."
        )
    return ["".join(chosen) for chosen in product(*parts, [address[end:]])]


def _quoted(address: str) -> str:
    """A slash in the query would look like a folder."""
    path, mark, query = address.partition("?")
    return path + mark + query.replace("/", "%2F")


def _glob(pattern: str) -> list[str]:
    def find() -> list[str]:
        system, path = _system(pattern)
        system.invalidate_cache()
        return [system.unstrip_protocol(name) for name in sorted(system.glob(path))]

    return persistently(pattern, find)


def _system(address: str) -> tuple[Any, str]:
    """The file system of this process, which may be a fork of another, and the path in it."""
    match = _ADDRESS.match(address)
    scheme = match["scheme"] if match else ""
    try:
        return url_to_fs(address)
    except ImportError as error:
        package = PACKAGES.get(scheme)
        how = f"run: pip install {package}" if package else str(error)
        raise UserError(f"{address} needs a package that is not installed; {how}") from error
    except ValueError as error:  # fsspec: Protocol not known
        known = ", ".join(f"{name}://" for name in ("https", "hf", *PACKAGES) if name != "http")
        raise UserError(
            f"{address} has the scheme {scheme}://, which fsspec does not know ({error}); allowed: "
            f"{known} and its others."
        ) from error


def persistently(address: str, work: Callable[[], R], but: tuple[type[Exception], ...] = ()) -> R:
    """The result of ``work``, which may fail a few times, as connections do.

    Args:
        address: for the message.
        work: reads something there.
        but: what says that something else is wrong; raised at once, as it is.

    Raises:
        UserError: it failed every time, or the file is not there.
    """
    for wait in (*WAITS, None):
        try:
            return work()
        except UserError:
            raise
        except but:
            raise
        except Exception as error:  # every file system has its own
            cause = innermost(error)
            if wait is None or isinstance(cause, (FileNotFoundError, PermissionError)):
                raise UserError(
                    f"{address} can't be read: {type(cause).__name__}: {cause}. Is the address "
                    "right, the network there, and the host willing? What is finished is kept: "
                    "run the same command again to go on."
                ) from error
            time.sleep(wait)
    raise AssertionError


def innermost(error: BaseException) -> BaseException:
    """The first cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def in_parallel(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """The results in order, several at a time: a host takes long to answer."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


def versions_of(addresses: Sequence[str]) -> dict[str, int]:
    """Address -> a number that changes with the file: of its size, ETag, time and the like.

    Raises:
        UserError: one can't be reached.
    """
    return dict(zip(addresses, in_parallel(_version, addresses), strict=True))


def _version(address: str) -> int:
    def ask() -> int:
        system, path = _system(address)
        system.invalidate_cache()
        info = system.info(path)
        told = [f"{name}={info[name]}" for name in (*VERSIONS, *TIMES) if info.get(name)]
        digest = hashlib.sha256("\n".join([str(info["size"]), *told]).encode()).digest()
        return int.from_bytes(digest[:7], "big")

    return persistently(address, ask)


@contextmanager
def opened(address: str) -> Iterator[IO[bytes]]:
    """A file to be read from its beginning, with jumps.

    Raises:
        UserError: its host gives whole files only.
    """
    system, path = _system(address)
    with system.open(path, "rb", block_size=BLOCK, cache_type="readahead") as file:
        try:
            if size := file.seek(0, 2):
                file.seek(size - 1)
                file.read(1)
            file.seek(0)
        except ValueError as error:  # so says fsspec before it reads a file whole
            raise _whole_only(address) from error
        yield file


def _whole_only(address: str) -> UserError:
    return UserError(
        f"{address} can't be read in parts: its host does not support range requests. Download the "
        "tars, and set data.path to them."
    )


def read_range(address: str, start: int, end: int) -> bytes:
    """The bytes from ``start`` to ``end``; fewer where the file ends before.

    Raises:
        UserError: its host can't be reached, or gives whole files only.
    """

    def read() -> bytes:
        system, path = _system(address)
        data: bytes = system.cat_file(path, start=start, end=end)
        if len(data) > end - start:
            raise _whole_only(address)
        return data

    return persistently(address, read)
