"""The four npm archives that the emoji are built from, and how to obtain them checked."""

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mm_cca.errors import UserError


@dataclass(frozen=True)
class Archive:
    """An npm package at one version, as the tarball that ``npm pack`` writes."""

    package: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True)
class Style:
    """A set of drawings: the files ``folder/CODEPOINT.EXTENSION`` of an archive."""

    name: str
    archive: Archive
    folder: str


@dataclass(frozen=True)
class Sources:
    """The archives that the data set is built from."""

    labels: Archive
    styles: tuple[Style, ...]


LABELS = "package/en/data.json"
SOURCES = Sources(
    labels=Archive(
        "emojibase-data",
        "17.0.0",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    ),
    styles=(
        Style(
            "noto",
            Archive(
                "emoji-datasource-google",
                "16.0.0",
                "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
            ),
            "package/img/google/64",
        ),
        Style(
            "twemoji",
            Archive(
                "emoji-datasource-twitter",
                "16.0.0",
                "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
            ),
            "package/img/twitter/64",
        ),
        Style(
            "fluent 3d",
            Archive(
                "@lobehub/fluent-emoji-3d",
                "1.1.0",
                "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
            ),
            "package/assets",
        ),
    ),
)


def obtain(archive: Archive, folder: Path) -> Path:
    """The path of a checked archive, fetched by ``npm pack`` if it is not in ``folder``.

    Raises:
        UserError: npm is missing or fails, or the sha256 differs.
    """
    path = folder / archive.filename
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        spec = f"{archive.package}@{archive.version}"
        command = ["npm", "pack", spec, "--silent", "--pack-destination", str(folder)]
        try:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise UserError(
                f"could not fetch {spec}: {error}. Install npm and check the network, or put "
                f"{archive.filename} into {folder} yourself."
            ) from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.sha256:
        raise UserError(
            f"{path} has sha256 {digest}, but {archive.package} {archive.version} must have "
            f"{archive.sha256}. Delete the file and run the same command to fetch it again."
        )
    return path
