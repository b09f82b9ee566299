"""The contact sheet: every picture at its place, unchanged but for its size."""

import numpy as np
import pytest
from PIL import Image

from mm_cca.training.contact_sheet import LABELS, LARGE, MARGIN, SMALL, contact_sheet

COLOURS = [["red", "green"], ["blue", "yellow"], ["black", "gray"]]


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((32, 32), (128, 128)),
        ((40, 30), (200, 150)),
        ((720, 720), (512, 512)),
        ((1024, 512), (512, 256)),
    ],
)
def test_places_and_sizes(size: tuple[int, int], shown: tuple[int, int]):
    assert min(shown) >= SMALL
    assert max(shown) <= LARGE
    pictures = [[Image.new("RGB", size, colour) for colour in row] for row in COLOURS]
    sheet = contact_sheet(pictures, ["a", "b", "c"], ["left", "right"], "step 3")
    width, height = shown
    pixels = np.asarray(sheet)
    top = sheet.height - 3 * (height + MARGIN)
    for row, colours in enumerate(COLOURS):
        for column, colour in enumerate(colours):
            x = LABELS + MARGIN + column * (width + MARGIN)
            y = top + row * (height + MARGIN)
            expected = np.asarray(Image.new("RGB", (1, 1), colour))[0, 0]
            assert (pixels[y : y + height, x : x + width] == expected).all()
            assert (pixels[y + height, x] == 255).all()
    labels = pixels[top:, :LABELS]
    assert (labels < 128).any()


def test_small_pictures_keep_their_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    sheet = contact_sheet([[Image.fromarray(noise)]], ["owl"], ["one"], "base")
    x, y = LABELS + MARGIN, sheet.height - 128 - MARGIN
    assert np.array_equal(np.asarray(sheet)[y : y + 128, x : x + 128][::4, ::4], noise)


def test_long_labels_stay_in_their_place():
    """Of one word, of many, and of a script without spaces."""
    picture = Image.new("RGB", (128, 128), "white")
    for label in ("w" * 500, "owl " * 500, "сова" * 300):
        sheet = contact_sheet([[picture]] * 2, [label, label], ["a very long column " * 9], "base")
        pixels = np.asarray(sheet.convert("L"))
        assert (pixels[:, :LABELS] < 128).any()
        assert (pixels[:, LABELS : LABELS + MARGIN] == 255).all()
        assert (pixels[-MARGIN:] == 255).all()
        assert (pixels[:, -MARGIN:] == 255).all()
