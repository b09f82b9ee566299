"""Pictures in rows and columns with their labels, as one picture."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

SMALL, LARGE = 128, 512
"""Pictures with a shorter side are enlarged to so many pixels at least, larger ones reduced."""
MARGIN, LABELS, FONT = 8, 220, 15


def contact_sheet(
    pictures: Sequence[Sequence[Image.Image]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
) -> Image.Image:
    """All pictures with their labels.

    Args:
        pictures: [R][C]; those of a row have one size.
        rows: [R] labels, broken into lines and cut where they don't fit.
        columns: [C] labels.
        title: over the labels of the rows.
    """
    sizes = [_size(*row[0].size) for row in pictures]
    width, height = (max(sides) for sides in zip(*sizes, strict=True))
    # Of matplotlib, as Pillow's own font has Latin letters only.
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(path), FONT)
    line = FONT + 4
    top = line + 2 * MARGIN
    sheet = Image.new(
        "RGB",
        (
            LABELS + MARGIN + len(columns) * (width + MARGIN),
            top + len(rows) * (height + MARGIN),
        ),
        "white",
    )
    ink = ImageDraw.Draw(sheet)
    ink.text((MARGIN, MARGIN), title, "black", font)
    lefts = [LABELS + MARGIN + number * (width + MARGIN) for number in range(len(columns))]
    for left, label in zip(lefts, columns, strict=True):
        ink.text((left, MARGIN), _lines(label, font, width, 1)[0], "black", font)
    for number, (label, row) in enumerate(zip(rows, pictures, strict=True)):
        y = top + number * (height + MARGIN)
        lines = _lines(label, font, LABELS - MARGIN, max(1, height // line))
        ink.multiline_text((MARGIN, y), "\n".join(lines), "black", font, spacing=2)
        for left, picture in zip(lefts, row, strict=True):
            size = sizes[number]
            # Without smoothing, the pixels of small pictures stay visible as they are.
            way = Image.Resampling.NEAREST if size[0] > picture.width else Image.Resampling.LANCZOS
            sheet.paste(picture.resize(size, way), (left, y))
    return sheet


def _size(width: int, height: int) -> tuple[int, int]:
    """On the sheet: a whole multiple, or reduced."""
    longest = max(width, height)
    if longest <= LARGE:
        times = max(1, -(-SMALL // min(width, height)))
        return width * times, height * times
    return max(1, round(width * LARGE / longest)), max(1, round(height * LARGE / longest))


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """``text`` in at most ``most`` lines of ``width`` pixels; an ellipsis ends what is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    *kept, last = lines[:most]
    more = len(lines) > most
    return [_cut(line, font, width) for line in kept] + [_cut(last, font, width, more=more)]


def _cut(line: str, font: ImageFont.FreeTypeFont, width: int, *, more: bool = False) -> str:
    """A line that fits; an ellipsis stands for its end, and for ``more`` lines left out."""
    if not more and font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"
