"""Pictures: any decoder's error is a bad row by name; depth, size and files that are none."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mm_cca.data.pictures import decode_image, open_image
from mm_cca.errors import UserError
from tests.support import runs


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cell(data: bytes) -> dict[str, bytes | None]:
    return {"bytes": data, "path": None}


def ramp() -> np.ndarray:
    """64 levels from black to white, as 16 bits."""
    return np.tile(np.linspace(0, 65535, 64).round(), (64, 1))


@pytest.mark.parametrize(
    ("form", "kind", "scale"),
    [
        (np.uint16, "PNG", 1),
        (np.uint16, "TIFF", 1),
        (np.int32, "TIFF", 1),
        (np.float32, "TIFF", 1),
        (np.float32, "TIFF", 1 / 65535),
        (np.float32, "TIFF", 1 / 257),
    ],
)
def test_deep_grey_is_scaled(form: type, kind: str, scale: float):
    image = Image.fromarray((ramp() * scale).astype(form))
    found = np.asarray(open_image(cell(saved(image, kind))))
    expected = np.linspace(0, 255, 64).round()
    assert np.array_equal(found[..., 0], found[..., 2])
    assert np.abs(found[0, :, 0] - expected).max() <= 1
    assert len(np.unique(found)) == 64


def test_a_dark_picture_of_16_bits_stays_dark():
    image = Image.fromarray(np.full((8, 8), 200, np.uint16))
    assert np.asarray(open_image(cell(saved(image, "PNG")))).max() == 1


def test_whole_numbers_of_8_bits_in_a_deep_file_are_kept():
    image = Image.fromarray(np.full((8, 8), 200, np.int32))
    assert np.unique(np.asarray(open_image(cell(saved(image, "TIFF"))))).tolist() == [200]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_grey_without_a_range_is_told(value: float):
    image = Image.fromarray(np.full((8, 8), value, np.float32))
    with pytest.raises(ValueError, match="not a readable image: grey values up to"):
        open_image(cell(saved(image, "TIFF")))


def photo(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("width", "height"), [(63, 63), (127, 63), (300, 63), (64, 20)])
def test_small_jpegs_are_decoded_whole(width: int, height: int):
    """Below four times the wanted side, shorter side against it: bit for bit."""
    data = saved(photo(width, height), "JPEG", quality=90)
    whole = open_image(cell(data))
    assert whole.size == (width, height)
    assert open_image(cell(data), 16).tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("side", "decoded"), [(64, 32), (127, 127), (136, 34), (256, 32), (1000, 125)]
)
def test_large_jpegs_are_decoded_at_a_fraction(side: int, decoded: int):
    data = saved(photo(side, side), "JPEG", quality=90)
    assert open_image(cell(data), 16).size == (decoded, decoded)
    exact = np.asarray(open_image(cell(data)).resize((16, 16), Image.Resampling.BICUBIC)).astype(
        int
    )
    found = decode_image(cell(data), 16, 16).permute(1, 2, 0).numpy()
    difference = np.abs(found - exact)
    assert difference.mean() < 2, f"mean {difference.mean():.2f}, largest {difference.max()}"


def test_only_jpegs_are_drafted():
    data = saved(photo(256, 256), "PNG")
    assert open_image(cell(data), 16).size == (256, 256)


def broken_chunk() -> bytes:
    data = bytearray(runs.png(runs.picture(0)))
    place = data.index(b"IDAT")
    return bytes(data[:place]) + b"\x17M\x1a_" + bytes(data[place + 4 :])


def unknown_dds() -> bytes:
    head = struct.pack("<4s7I", b"DDS ", 124, 0x1007, 16, 16, 0, 0, 0)
    return head + bytes(44) + struct.pack("<8I", 32, 0, 0, 0, 0, 0, 0, 0) + bytes(1024)


def cut(kind: str, share: float) -> Callable[[], bytes]:
    def make() -> bytes:
        data = saved(photo(64, 64), kind)
        return data[: int(len(data) * share)]

    return make


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in its head."""
    data = bytearray(runs.png(runs.picture(0)))
    head = b"IHDR" + struct.pack(">II", 30_000, 30_000) + bytes(data[24:29])
    data[12:33] = head + struct.pack(">I", zlib.crc32(head))
    return bytes(data)


BROKEN: dict[str, Callable[[], bytes]] = {
    "png chunk": broken_chunk,
    "dds": unknown_dds,
    "bomb": bomb,
    "avif": cut("AVIF", 0.6),
    "webp": cut("WEBP", 0.6),
    "jpeg": cut("JPEG", 0.02),
    "gif": cut("GIF", 0.01),
    "nothing": lambda: b"",
    "text": lambda: b"<html>404</html>",
}


@pytest.mark.parametrize("name", BROKEN)
def test_any_error_of_a_decoder_names_the_file(tmp_path: Path, name: str):
    file = tmp_path / "a picture.png"
    file.write_bytes(BROKEN[name]())
    with pytest.raises(ValueError, match=r"a picture\.png: not a readable image: ") as caught:
        decode_image({"bytes": None, "path": str(file)}, 16, 16)
    assert "BytesIO" not in str(caught.value)


def test_what_is_no_file_is_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path, told in (
        (tmp_path / "pipe", "a folder, FIFO or device, not a file"),
        (Path("/dev/zero"), "a folder, FIFO or device, not a file"),
        (tmp_path, "a folder, FIFO or device, not a file"),
        (tmp_path / "gone.png", "No such file or directory"),
        (tmp_path / ("x" * 5000), "File name too long"),
    ):
        with pytest.raises(ValueError, match=told):
            open_image({"bytes": None, "path": str(path)})
    for empty, told in (({"bytes": None, "path": None}, "neither bytes"), (None, "no image")):
        with pytest.raises(ValueError, match=told):
            open_image(empty)


def folder_with(path: Path, name: str, data: bytes) -> Path:
    runs.write_imagefolder(path, 7)
    (path / name).write_bytes(data)
    with (path / "metadata.jsonl").open("a") as file:
        file.write(f'{{"file_name": "{name}", "text": "the last one"}}\n')
    return path


@pytest.mark.parametrize("name", ["png chunk", "avif", "dds", "bomb"])
def test_a_broken_picture_is_one_bad_row(tiny_folder: Path, tmp_path: Path, name: str):
    data = folder_with(tmp_path / "data", "x.avif", BROKEN[name]())
    values = runs.tiny_recipe(tmp_path, tiny_folder, data)
    values["data"] |= {"caption_column": "text", "split_column": None, "image_size": [16, 16]}
    recipe = runs.write_recipe(tmp_path / "recipe.yaml", values)
    with pytest.raises(UserError, match=r"row 7: .*x\.avif: not a readable image"):
        runs.do(recipe, stages=["prepare"])
    runs.do(recipe, "data.max_bad=1", stages=["prepare"])
    (line,) = runs.json_lines(tmp_path / "run" / "tokens" / "train" / "bad_rows.jsonl")
    assert line["row"] == 7
    assert "x.avif" in line["problem"]


def test_the_image_of_a_cell_in_a_table_is_unchanged():
    pixels = decode_image(cell(runs.png(runs.picture(1))), 16, 16)
    expected = torch.tensor(np.array(runs.picture(1).convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(pixels, expected)
