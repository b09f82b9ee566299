"""Build ``emoji.parquet``, the data set inside this package, from four npm archives.

Three sets of drawings (Noto, Twemoji, Fluent 3D) are joined by code point to the English CLDR
labels of emojibase. Every drawing is flattened on white, resized to 32x32 by Pillow's LANCZOS
filter, quantised to its own palette of 64 colours (white is kept) and stored as lossless WebP;
with all colours the file would have 12 MB instead of 6. Sources and licences: NOTICE.md.

Archives that are not in the folder are fetched by ``npm pack``; each must have the sha256 below.
Building again with the same versions of Pillow and pyarrow gives the same bytes.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value
from PIL import Image as pil
from tqdm import tqdm

from mm_cca.demo.emoji_names import Emoji, emojis, held_out, image_key
from mm_cca.errors import UserError
from mm_cca.runs.files import atomic_path

SIZE = 32
COLOURS = 64
DEFAULT_OUT = Path(__file__).with_name("emoji.parquet")
FEATURES = Features(
    {
        "image": Image(),
        **{
            column: Value("string")
            for column in ("caption", "name", "style", "codepoint", "family", "tone", "split")
        },
    }
)


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


def build(sources: Sources, archives: Path, out: Path) -> int:
    """Write the Parquet file ``out`` and return its number of rows.

    Raises:
        UserError: an archive can't be fetched, or is not the one named in ``sources``.
    """
    paths = {a: obtain(a, archives) for a in [sources.labels, *(s.archive for s in sources.styles)]}
    with tarfile.open(paths[sources.labels]) as tar:
        every = emojis(json.load(_open_member(tar, LABELS)))
    drawings = {s.name: read_drawings(s, paths[s.archive], every) for s in sources.styles}
    rows = list(make_rows(every, drawings))
    write(rows, out)
    return len(rows)


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


def _open_member(tar: tarfile.TarFile, member: str | tarfile.TarInfo) -> io.BufferedReader:
    file = tar.extractfile(member)
    assert file is not None, f"{member} is not a regular file"
    return file  # type: ignore[return-value]  # typeshed: IO[bytes]


def read_drawings(style: Style, path: Path, every: list[Emoji]) -> dict[tuple[int, ...], bytes]:
    """Code points -> lossless WebP bytes, for the emoji that one style has a drawing of."""
    keys = {emoji.key for emoji in every}
    drawings: dict[tuple[int, ...], bytes] = {}
    with tarfile.open(path) as tar, tqdm(total=len(keys), desc=style.name, unit="img") as bar:
        for member in tar:
            file = Path(member.name)
            if file.parent.as_posix() != style.folder or image_key(file.stem) not in keys:
                continue
            drawings[image_key(file.stem)] = shrink(_open_member(tar, member).read())
            bar.update()
    return drawings


def shrink(data: bytes) -> bytes:
    """Any image file -> 32x32 RGB on white, at most 65 colours, as lossless WebP."""
    with pil.open(io.BytesIO(data)) as image:
        drawing = image.convert("RGBA")
    flat = pil.new("RGBA", drawing.size, "white")
    flat.alpha_composite(drawing)
    small = flat.convert("RGB").resize((SIZE, SIZE), pil.Resampling.LANCZOS)
    white = small.convert("L").point(lambda level: 255 if level == 255 else 0)
    reduced = small.quantize(COLOURS, pil.Quantize.MEDIANCUT, dither=pil.Dither.NONE).convert("RGB")
    # A palette entry is the mean of its pixels: without this the background would turn off-white.
    reduced.paste((255, 255, 255), mask=white)
    out = io.BytesIO()
    reduced.save(out, "WEBP", lossless=True, quality=100, method=6, exact=True)
    return out.getvalue()


def make_rows(
    every: list[Emoji], drawings: dict[str, dict[tuple[int, ...], bytes]]
) -> Iterator[dict[str, Any]]:
    """One row per drawing, in the order of the labels and then of the styles."""
    styles_of: dict[str, set[str]] = defaultdict(set)
    for emoji in every:
        styles_of[emoji.family] |= {style for style in drawings if emoji.key in drawings[style]}
    heldout = held_out({family: styles for family, styles in styles_of.items() if styles})
    for emoji in every:
        for style, by_key in drawings.items():
            if emoji.key not in by_key:
                continue
            path = f"{style.replace(' ', '-')}-{emoji.codepoint.lower()}.webp"
            yield {
                "image": {"bytes": by_key[emoji.key], "path": path},
                "caption": f"{emoji.name}, {style} style",
                "name": emoji.name,
                "style": style,
                "codepoint": emoji.codepoint,
                "family": emoji.family,
                "tone": emoji.tone,
                "split": "heldout" if (emoji.family, style) in heldout else "train",
            }


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """Write rows as Parquet that ``datasets`` decodes by itself."""
    table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
    with atomic_path(out) as temporary:
        pq.write_table(
            table,
            temporary,
            row_group_size=len(rows),
            compression="zstd",
            compression_level=9,
            write_statistics=False,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``python -m mm_cca.demo.build_emoji``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mm_cca.demo.build_emoji",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog=textwrap.dedent(
            """\
            examples:
              python -m mm_cca.demo.build_emoji
                  fetch 160 MB of archives once and rewrite the file in the package (5 minutes)
              python -m mm_cca.demo.build_emoji --archives ~/npm --out my.parquet
                  use archives that you have already, and write another file
            """
        ),
    )
    parser.add_argument(
        "--archives",
        type=Path,
        default=Path("build/emoji-archives"),
        metavar="DIR",
        help="folder of the .tgz files; missing ones are fetched (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="FILE",
        help="the Parquet file to write (default: emoji.parquet inside the package)",
    )
    args = parser.parse_args(argv)
    try:
        count = build(SOURCES, args.archives, args.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {count} drawings, {args.out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
