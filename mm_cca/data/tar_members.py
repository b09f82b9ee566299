"""A picture inside a tar, known by its place there and read without the rest of the tar.

In an image cell it is a path: ``/data/00000.tar/000001.jpg?at=1536&size=3041&head=5f0c2a9e``.
"""

import re
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mm_cca.config.read_files import refuse_no_file
from mm_cca.data.remote_files import is_address, read_range

HEAD = 512
"""Bytes of a member's header, which lie before its own."""
_MEMBER = re.compile(
    r"(?P<tar>.*\.tar(?:\?[^/]*)?)/(?P<name>.*)"
    r"\?at=(?P<at>\d+)&size=(?P<size>\d+)&head=(?P<head>[0-9a-f]{8})",
    re.DOTALL | re.IGNORECASE,
)


class TarMember(NamedTuple):
    """A member of a tar.

    Attributes:
        tar: path or address of the tar.
        name: of the member, to be shown.
        at: where its bytes begin.
        size: how many they are.
        head: ``crc32`` of its header, by which a tar that was exchanged is noticed.
    """

    tar: str
    name: str
    at: int
    size: int
    head: int

    @property
    def path(self) -> str:
        name = re.sub(r"(?i)\.tar/", ".tar:", self.name)  # the last .tar/ of a path ends the tar
        return f"{self.tar}/{name}?at={self.at}&size={self.size}&head={self.head:08x}"

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            ValueError: the tar was changed meanwhile.
            OSError: it can't be read.
            UserError: it is at an address that can't be reached.
        """
        start, end = self.at - HEAD, self.at + self.size
        if is_address(self.tar):
            data = read_range(self.tar, start, end)
        else:
            refuse_no_file(Path(self.tar))
            with Path(self.tar).open("rb", buffering=0) as file:
                file.seek(start)
                data = file.read(end - start)
        if len(data) < end - start or zlib.crc32(data[:HEAD]) != self.head:
            raise ValueError("the tar was changed while it was read; run the same command again")
        return data[HEAD:]


def member_of(path: str) -> TarMember | None:
    """The member that a cell's path names; None where it names a file."""
    match = _MEMBER.fullmatch(path)
    if match is None:
        return None
    tar, name, at, size, head = match.groups()
    return TarMember(tar, name, int(at), int(size), int(head, 16))


def file_name(path: str) -> str:
    """The last part of a cell's path, without what says where it lies in a tar."""
    member = member_of(path)
    return PurePosixPath(path if member is None else member.name).name
