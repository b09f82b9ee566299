"""Build ``emoji.parquet``, the data set inside this package, from four npm archives.

Three sets of drawings (Noto, Twemoji, Fluent 3D) are joined by code point to the English CLDR
labels of emojibase. Every drawing is flattened on white, resized to 32x32 by Pillow's LANCZOS
filter, quantised to its own palette of 64 colours (white is kept) and stored as lossless WebP;
with all colours the file would have 12 MB instead of 6. At another size, which is not shipped, all
colours are kept; captions, splits and the order of rows are the same. Sources and licences:
NOTICE.md.

Archives that are not in the folder are fetched by ``npm pack``; each must have the sha256 below.
Building again with the same versions of Pillow and pyarrow gives the same bytes.
"""

import argparse
import io
import json
import sys
import tarfile
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value
from PIL import Image as pil
from tqdm import tqdm

from mm_cca.demo.emoji_names import Emoji, emojis, held_out, image_key
from mm_cca.demo.emoji_sources import LABELS, SOURCES, Sources, Style, obtain
from mm_cca.errors import UserError
from mm_cca.runs.files import atomic_path

SIZE = 32
COLOURS = 64
DEFAULT_OUT = Path(__file__).with_name("emoji.parquet")
SIZES = range(16, 257)  # the largest source has 256 pixels
FEATURES = Features(
    {
        "image": Image(),
        **{
            column: Value("string")
            for column in ("caption", "name", "style", "codepoint", "family", "tone", "split")
        },
    }
)


def build(sources: Sources, archives: Path, out: Path, size: int = SIZE) -> int:
    """Write the Parquet file ``out``, drawings of size x size pixels; returns its number of rows.

    Raises:
        UserError: an archive can't be fetched, or is not the one named in ``sources``.
    """
    paths = {a: obtain(a, archives) for a in [sources.labels, *(s.archive for s in sources.styles)]}
    with tarfile.open(paths[sources.labels]) as tar:
        every = emojis(json.load(_open_member(tar, LABELS)))
    drawings = {s.name: read_drawings(s, paths[s.archive], every, size) for s in sources.styles}
    rows = list(make_rows(every, drawings))
    write(rows, out)
    return len(rows)


def _open_member(tar: tarfile.TarFile, member: str | tarfile.TarInfo) -> io.BufferedReader:
    file = tar.extractfile(member)
    assert file is not None, f"{member} is not a regular file"
    return file  # type: ignore[return-value]  # typeshed: IO[bytes]


def read_drawings(
    style: Style, path: Path, every: list[Emoji], size: int = SIZE
) -> dict[tuple[int, ...], bytes]:
    """Code points -> lossless WebP bytes, for the emoji that one style has a drawing of."""
    keys = {emoji.key for emoji in every}
    drawings: dict[tuple[int, ...], bytes] = {}
    with tarfile.open(path) as tar, tqdm(total=len(keys), desc=style.name, unit="img") as bar:
        for member in tar:
            file = Path(member.name)
            if file.parent.as_posix() != style.folder or image_key(file.stem) not in keys:
                continue
            drawings[image_key(file.stem)] = resized(_open_member(tar, member).read(), size)
            bar.update()
    return drawings


def resized(data: bytes, size: int = SIZE) -> bytes:
    """Any image file -> size x size RGB on white, as lossless WebP; at 32 with at most 65 colours.

    The palette keeps the file inside the package small. A file that is not shipped needs none, and
    smooth shades would show its steps.
    """
    with pil.open(io.BytesIO(data)) as image:
        drawing = image.convert("RGBA")
    flat = pil.new("RGBA", drawing.size, "white")
    flat.alpha_composite(drawing)
    small = flat.convert("RGB").resize((size, size), pil.Resampling.LANCZOS)
    if size == SIZE:
        small = _quantised(small)
    out = io.BytesIO()
    small.save(out, "WEBP", lossless=True, quality=100, method=6, exact=True)
    return out.getvalue()


def _quantised(drawing: pil.Image) -> pil.Image:
    white = drawing.convert("L").point(lambda level: 255 if level == 255 else 0)
    reduced = drawing.quantize(COLOURS, pil.Quantize.MEDIANCUT, dither=pil.Dither.NONE)
    reduced = reduced.convert("RGB")
    # A palette entry is the mean of its pixels: without this the background would turn off-white.
    reduced.paste((255, 255, 255), mask=white)
    return reduced


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


def _default_out(size: int) -> Path:
    return DEFAULT_OUT if size == SIZE else Path(f"runs/emoji{size}-data/emoji.parquet")


def _refuse_size(size: int, out: Path) -> None:
    if size not in SIZES:
        raise UserError(
            f"--size is {size}; allowed: {SIZES[0]} to {SIZES[-1]}, the size of the largest source."
        )
    if size != SIZE and out.resolve() == DEFAULT_OUT.resolve():
        raise UserError(
            f"--size {size} would replace {out}, which the package ships at {SIZE}x{SIZE} pixels. "
            "Choose another --out, or leave it out."
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
              python -m mm_cca.demo.build_emoji --size 64
                  the same drawings at 64x64 pixels, for the recipes emoji64-*
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
        metavar="FILE",
        help="the Parquet file to write (default: emoji.parquet inside the package; at another "
        "--size runs/emojiSIZE-data/emoji.parquet)",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=SIZE,
        metavar="PIXELS",
        help="height and width of the drawings (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    out = args.out or _default_out(args.size)
    try:
        _refuse_size(args.size, out)
        count = build(SOURCES, args.archives, out, args.size)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {count} drawings, {out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
