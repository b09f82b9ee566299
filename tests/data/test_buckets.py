"""Which size a picture is encoded at, and which sizes ``auto`` makes."""

import math

import numpy as np
import pytest
from PIL import Image

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.schema import DataConfig
from mm_cca.data.buckets import MAX_RATIO, auto_sizes, bucket_of, decode_image_to, sizes_of
from mm_cca.errors import UserError
from tests.support import runs

SIZES = [(16, 16), (12, 20), (20, 12), (32, 32)]


def _kept(shape: tuple[int, int], size: tuple[int, int]) -> float:
    """Naive: the crop of the picture with the size's shape, as a share of the picture."""
    height, width = shape
    crop_width = min(width, height * size[1] / size[0])
    crop_height = min(height, width * size[0] / size[1])
    return crop_width * crop_height / (width * height)


def test_it_is_the_one_that_loses_least():
    stream = np.random.default_rng(0)
    fits = 0
    for _ in range(2000):
        shape = tuple(stream.integers(8, 400, 2).tolist())
        best = max(_kept(shape, size) for size in SIZES)
        if best < 0.95:
            with pytest.raises(ValueError, match="fit no bucket"):
                bucket_of(shape, SIZES)
            continue
        fits += 1
        assert _kept(shape, bucket_of(shape, SIZES)) == pytest.approx(best)
    assert fits > 50


def test_of_one_shape_it_is_the_nearest_area():
    assert bucket_of((17, 17), SIZES) == (16, 16)
    assert bucket_of((300, 300), SIZES) == (32, 32)


def test_a_crop_of_5_percent_is_allowed_and_no_more():
    assert bucket_of((100, 95), [(16, 16)]) == (16, 16)
    assert bucket_of((95, 100), [(16, 16)]) == (16, 16)
    with pytest.raises(ValueError, match=r"94x100 pixels .* would crop 6%"):
        bucket_of((94, 100), [(16, 16)])


def test_a_picture_keeps_its_shape():
    picture = runs.picture(0).resize((40, 24))  # width, height
    pixels = decode_image_to({"bytes": runs.png(picture), "path": None}, SIZES)
    assert pixels.shape == (3, 12, 20)
    expected = np.asarray(picture.resize((20, 12), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


class _Squares:
    """Stands for a family with 8 pixels to a code and a largest side, of which 0 is none."""

    pixels_per_code = 8

    def __init__(self, largest: int = 0, only: int = 0) -> None:
        self._largest, self._only = largest, only

    def layout(self, grid: tuple[int, int]) -> None:
        if self._largest and max(grid) > self._largest:
            raise UserError("too large")
        if self._only and grid != (self._only, self._only):
            raise UserError("another grid")


@pytest.mark.parametrize("side", [256, 512, 720])
def test_auto_leaves_no_shape_out(side: int):
    sizes = [(side, side), *auto_sizes(_Squares(), (side, side))]  # type: ignore[arg-type]
    assert len(sizes) < 30
    assert len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert height * width <= side * side
        assert height % 8 == width % 8 == 0
    for ratio in np.exp(np.linspace(-math.log(MAX_RATIO), math.log(MAX_RATIO), 500)):
        bucket_of((round(100_000 * ratio), 100_000), sizes)


def test_auto_makes_what_the_family_draws():
    sizes = auto_sizes(_Squares(largest=70), (512, 512))  # type: ignore[arg-type]
    assert max(max(size) for size in sizes) <= 560
    with pytest.raises(UserError, match=r"draws no other shape with the area of data.image_size"):
        auto_sizes(_Squares(only=48), (384, 384))  # type: ignore[arg-type]


def test_an_area_too_small_for_another_shape(tiny_model: UnifiedModel):
    with pytest.raises(UserError, match="draws no other shape"):
        auto_sizes(tiny_model, (4, 4))


def test_a_bucket_that_the_family_cannot_draw(tiny_model: UnifiedModel):
    config = DataConfig(path="", image_size=[16, 16], buckets=["18x16"])
    with pytest.raises(UserError, match=r"\[18, 16\]; allowed for this checkpoint: multiples of 4"):
        sizes_of(tiny_model, config)
    config = DataConfig(path="", image_size=[16, 16], buckets=["12x20"])
    assert [grid_of(tiny_model, size) for size in sizes_of(tiny_model, config)] == [(4, 4), (3, 5)]
