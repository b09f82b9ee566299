"""Makes the shards of a token cache, of pictures that are encoded and codes that are there already.

Shapes: V variants, N codes per image.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features
from tqdm import tqdm

from mm_cca.adapters.base import UnifiedModel
from mm_cca.config.image_sizes import Size
from mm_cca.config.schema import DataConfig
from mm_cca.data.augment import mirrored, variant_parameters, zoom_and_shift
from mm_cca.data.cache_changes import Comparison, Key, row_key
from mm_cca.data.contents import Origin, covering
from mm_cca.data.filters import decode_large
from mm_cca.data.images import Split
from mm_cca.data.picture_reader import PictureReader, Read, num_workers_of
from mm_cca.data.token_shards import FEATURES, MORE_FEATURES, SIZE, TEXTS, Picture
from mm_cca.errors import UserError


@dataclass
class ShardFiller:
    """Makes shards of new rows and of codes that are there already.

    Attributes:
        long: row -> problem, of captions that leave no room for the image.
        sizes: of the buckets; empty without.
        num_encoded: how many pictures this rank had to encode.
    """

    source: Split
    found: Comparison
    config: DataConfig
    seed: int
    origin: Origin
    long: Mapping[int, str]
    sizes: Sequence[Size] = ()
    num_encoded: int = 0

    def places(self, start: int) -> range:
        """Of the rows of a shard, among the usable rows."""
        return range(start, min(start + self.found.size, len(self.source.rows)))

    def signature(self, pictures: Sequence[Picture]) -> str | None:
        """Of the data, for the record of these pictures."""
        return covering(self.origin.signature, any(Path(p.name).is_absolute() for p in pictures))

    def read(self, starts: Iterable[int]) -> Iterator[Read]:
        """The pictures of these shards, one shard after the other.

        Raises:
            UserError: a process that decodes them died.
        """
        config, places = self.config, [place for s in starts for place in self.places(s)]
        images = self.source.table.select_columns([config.image_column])
        reader = PictureReader(
            partial(_cell, images, self.source.rows, config.image_column),
            self.found.pictures,
            self.found.codes,
            partial(_key, self.source.rows, config),
            partial(decode_large, config, self.sizes),
            self.origin,
        )
        workers = num_workers_of(config.num_workers, len(places))
        return reader.read(places, workers, -(-config.encode_batch_size // config.variants))

    def encode(
        self, model: UnifiedModel, start: int, read: Iterator[Read], bar: tqdm
    ) -> tuple[Dataset, list[Picture]]:
        """One shard: a row whose image can't be read is kept, with ``problem`` set.

        Args:
            model: whose image tokenizer encodes.
            start: the shard's first row.
            read: the pictures of the shard come first.
            bar: counts the variants.
        """
        rows = [self.source.rows[i] for i in self.places(start)]
        problems = [self.long.get(row, "") for row in rows]
        height, width = self.config.image_size
        sizes = [(height, width)] * len(rows)
        pictures, codes = list[Picture](), dict[int, np.ndarray]()

        def to_encode() -> Iterator[tuple[int, torch.Tensor]]:
            for place, (picture, known, pixels, problem) in zip(
                range(len(rows)), read, strict=False
            ):
                pictures.append(picture)
                if known is not None:
                    codes[place] = self._stored_codes(*known)
                    sizes[place] = self._stored_size(*known, sizes[place])
                    bar.update(self.config.variants)
                    continue
                problems[place] = problem or problems[place]
                if pixels is None:
                    yield place, torch.zeros(3, height, width, dtype=torch.uint8)
                else:
                    sizes[place] = (pixels.shape[1], pixels.shape[2])
                    yield place, torch.from_numpy(pixels)

        for place, of_place in self._encoded(model, rows, to_encode(), bar):
            codes[place] = of_place
            self.num_encoded += 1
        columns = {
            "row": rows,
            "caption": [self.source.captions[i] for i in self.places(start)],
            "codes": [codes[place] for place in range(len(rows))],
            "problem": problems,
        }
        if self.sizes:
            columns[SIZE] = sizes
        if self.source.texts:
            columns[TEXTS] = [self.source.texts[i] for i in self.places(start)]
        more = {name: kind for name, kind in MORE_FEATURES.items() if name in columns}
        return Dataset.from_dict(columns, features=Features({**FEATURES, **more})), pictures

    def _stored_codes(self, start: int, place: int) -> np.ndarray:
        cell = self.found.stored[start].table.data.column("codes")[place]
        return np.asarray(cell.values, dtype=np.int32)

    def _stored_size(self, start: int, place: int, only: Size) -> Size:
        table = self.found.stored[start].table
        if SIZE not in table.column_names:
            return only
        height, width = table.data.column(SIZE)[place].as_py()
        return height, width

    def _encoded(
        self,
        model: UnifiedModel,
        rows: Sequence[int],
        pixels: Iterable[tuple[int, torch.Tensor]],
        bar: tqdm,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Pixels by their place in the shard -> place and [V * N] codes.

        A batch holds pictures of one size. It is encoded as soon as it is full, while processes
        decode the next one.
        """
        config, device = self.config, next(model.module.parameters()).device
        waiting: dict[torch.Size, list[tuple[int, int, torch.Tensor]]] = {}
        done: dict[int, list[torch.Tensor]] = {}

        def encode(batch: list[tuple[int, int, torch.Tensor]]) -> Iterator[tuple[int, np.ndarray]]:
            indices = torch.tensor([rows[place] for place, _, _ in batch])
            variants = torch.tensor([variant for _, variant, _ in batch])
            parameters = variant_parameters(
                indices,
                variants,
                seed=self.seed,
                max_zoom=config.max_zoom,
                max_shift=config.max_shift,
            )
            images = torch.stack([image for _, _, image in batch])
            images = mirrored(images, variants) if config.flip else images
            found = model.encode(zoom_and_shift(images, parameters).to(device)).cpu().int()
            _refuse_codes(found, model.codebook_size)
            bar.update(len(batch))
            for (place, _, _), row in zip(batch, found, strict=True):
                of_place = done.setdefault(place, [])
                of_place.append(row)
                if len(of_place) == config.variants:
                    yield place, torch.cat(done.pop(place)).numpy()

        for place, image in pixels:
            of_size = waiting.setdefault(image.shape, [])
            of_size += [(place, variant, image) for variant in range(config.variants)]
            while len(of_size) >= config.encode_batch_size:
                batch = of_size[: config.encode_batch_size]
                del of_size[: config.encode_batch_size]
                yield from encode(batch)
        for rest in waiting.values():
            if rest:
                yield from encode(rest)


def _cell(table: Dataset, rows: Sequence[int], column: str, place: int) -> dict[str, Any] | None:
    """The undecoded picture of a usable row."""
    cell: dict[str, Any] | None = table[rows[place]][column]
    return cell


def _key(rows: Sequence[int], config: DataConfig, picture: Picture, place: int) -> Key:
    return row_key(picture, rows[place], config)


def _refuse_codes(codes: torch.Tensor, codebook_size: int) -> None:
    if not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
        raise UserError(
            f"the image tokenizer gave codes {int(codes.min())} to {int(codes.max())}, but the "
            f"decoder has 0 to {codebook_size - 1}; they are not from the same model."
        )
