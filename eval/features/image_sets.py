"""Sets of images, opened when needed: sampled, real, or a reference.

All are resized by the same function before any extractor sees them.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mm_cca.config.schema import Recipe
from mm_cca.data.images import fitted, image_bytes, load_images, load_split, open_image
from mm_cca.data.token_cache import open_cache
from mm_cca.errors import UserError
from mm_cca.eval.features.distributed import map_over_ranks
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.manifest import picture_file
from mm_cca.sampling.prompts import Prompt

RESIZE = "shorter side fitted, centre cropped, bicubic, antialiased (Pillow), on white"
ROWS_PER_READ = 256
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class ImageSet:
    """Images by number.

    Attributes:
        name: for messages and progress.
        count: how many.
        open: numbers -> RGB images, all of one size. Raises UserError for an unreadable one.
    """

    name: str
    count: int
    open: Callable[[Sequence[int]], list[Image.Image]]


def size_of(recipe: Recipe) -> list[int]:
    """Height and width at which images are scored."""
    return recipe.eval.image_size or recipe.data.image_size


def resized_to(recipe: Recipe) -> list[int] | None:
    """What drawn pictures are resized to before they are scored; None: they have that size.

    With buckets the pictures of an arm have several, and extractors read one.
    """
    return size_of(recipe) if recipe.data.buckets else recipe.eval.image_size


def sampled_images(recipe: Recipe, run: RunFolder, arm: str, prompts: list[Prompt]) -> ImageSet:
    """An arm's images for these prompts."""
    files = [picture_file(run.samples / arm, prompt.index) for prompt in prompts]
    return _files(f"{arm} {prompts[0].split}", files, resized_to(recipe))


def folder_images(folder: Path, size: list[int]) -> ImageSet:
    """Every image below a folder, in the order of their paths.

    Raises:
        UserError: none there.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(
            f"eval.reference {folder} has no images; allowed there and in its subfolders: "
            f"{', '.join(SUFFIXES)}."
        )
    return _files(str(folder), files, size)


def _files(name: str, files: list[Path], size: list[int] | None) -> ImageSet:
    def open_some(numbers: Sequence[int]) -> list[Image.Image]:
        return [_image({"bytes": None, "path": str(files[n])}, size, files[n]) for n in numbers]

    return ImageSet(name, len(files), open_some)


def real_images_of(
    recipe: Recipe, run: RunFolder, split: str, rows: Sequence[int], size: list[int]
) -> ImageSet:
    """Real images by their row in the token cache."""
    table = load_split(recipe.data, split, run.tokens).table
    source_rows = open_cache(run.tokens / split, recipe.data.variants).source_rows
    column = recipe.data.image_column

    def open_some(numbers: Sequence[int]) -> list[Image.Image]:
        places = [int(source_rows[rows[number]]) for number in numbers]
        return [_image(table[p][column], size, f"row {p} of {recipe.data.path}") for p in places]

    return ImageSet(f"real {split}", len(rows), open_some)


def real_bytes_digest(recipe: Recipe, run: RunFolder, split: str, rows: Sequence[int]) -> str:
    """sha256 over the encoded bytes of real images, in the order of the rows, on every rank.

    Raises:
        UserError: one of them can't be read, by name.
    """
    table = load_split(recipe.data, split, run.tokens).table
    source_rows = open_cache(run.tokens / split, recipe.data.variants).source_rows
    places = [int(source_rows[row]) for row in rows]

    def work(start: int) -> str:
        digest = hashlib.sha256()
        cells = table[places[start : start + ROWS_PER_READ]][recipe.data.image_column]
        for cell in cells:
            try:
                raw = image_bytes(cell)
            except ValueError as error:
                raise UserError(f"an image of {recipe.data.path} can't be read: {error}") from error
            digest.update(hashlib.sha256(raw).digest())
        return digest.hexdigest()

    starts = range(0, len(places), ROWS_PER_READ)
    digests = map_over_ranks(starts, work, desc=f"reading real {split}", unit="block")
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def table_images(recipe: Recipe, source: str, split: str, size: list[int]) -> ImageSet:
    """The images of a Parquet file or a hub data set; captions are not needed.

    Raises:
        UserError: nothing there, or no image column.
    """
    column = recipe.data.image_column
    table = load_images(source, column, split, "eval.reference")

    def open_some(numbers: Sequence[int]) -> list[Image.Image]:
        return [_image(table[n][column], size, f"row {n} of {source}") for n in numbers]

    return ImageSet(source, len(table), open_some)


def _image(
    cell: dict[str, bytes | str | None], size: list[int] | None, name: object
) -> Image.Image:
    try:
        image = open_image(cell)
    except ValueError as error:
        raise UserError(f"{name}: {error}. Fix or remove this image.") from error
    return image if size is None else fitted(image, *size)
