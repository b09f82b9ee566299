"""The token cache: every image is encoded once, in shards that survive an interruption.

Shapes: B images, V variants, N codes per image.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset, Features, Value, concatenate_datasets, load_from_disk
from datasets import Sequence as ListOf
from tqdm import tqdm

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.prompt_templates import filled
from mm_cca.config.schema import DataConfig
from mm_cca.data.augment import variant_parameters, zoom_and_shift
from mm_cca.data.images import BadRow, Split, decode_image, load_split, refuse_too_many
from mm_cca.errors import UserError
from mm_cca.runs.files import PARTIAL, atomic_path

FEATURES = Features(
    {
        "row": Value("int64"),
        "caption": Value("string"),
        "codes": ListOf(Value("int32")),
        "problem": Value("string"),
    }
)
CAPTIONS_PER_CALL = 1024


class TokenCache:
    """The codes and captions of one split, memory-mapped."""

    def __init__(self, table: Dataset, num_variants: int) -> None:
        self._table = table.with_format("torch", columns=["codes"])
        self.captions: list[str] = list(table["caption"])
        self.source_rows: list[int] = list(table["row"])
        self.num_variants = num_variants

    def __len__(self) -> int:
        return len(self.captions)

    def codes(self, rows: torch.Tensor, variants: torch.Tensor) -> torch.Tensor:
        """[B] rows and [B] variants -> [B, N] int64 codes."""
        stored = self._table[rows.tolist()]["codes"].view(len(rows), self.num_variants, -1)
        return stored[torch.arange(len(rows)), variants].long()


def prepare_split(
    load_model: Callable[[], UnifiedModel], config: DataConfig, split: str, folder: Path, seed: int
) -> None:
    """Encode every usable image of a split; existing shards are kept.

    The shards are divided among the ranks; each shard is written completely or not at all.

    Args:
        load_model: called only if a shard is missing.
        config: the recipe's ``data``.
        split: name of the split.
        folder: of the shards.
        seed: of the augmented variants.

    Raises:
        UserError: more bad rows than ``data.max_bad`` (finished shards are kept), or a caption
            that leaves no room for the image.
    """
    state = PartialState()
    source = load_split(config, split)
    shards = range(0, len(source.rows), config.rows_per_shard)
    missing = [start for start in shards if not _shard(folder, start).exists()]
    # Every rank must list the missing shards before any rank writes one, as they divide this list.
    state.wait_for_everyone()
    model = load_model() if missing else None
    if model is not None:
        refuse_long_prompts(model, source.captions, source.rows, config)
    rank_shards = missing[state.process_index :: state.num_processes]
    rows = sum(min(config.rows_per_shard, len(source.rows) - start) for start in rank_shards)
    with tqdm(
        total=rows * config.variants,
        desc=f"tokenising {split}",
        unit="img",
        disable=not state.is_main_process or not missing,
    ) as bar:
        for start in rank_shards:
            assert model is not None
            stop = min(start + config.rows_per_shard, len(source.rows))
            table = _encode_rows(model, source, range(start, stop), config, seed, bar)
            _write(table, _shard(folder, start))
    state.wait_for_everyone()
    if state.is_main_process:
        table = _all_shards(folder)
        problems = zip(table["row"], table["problem"], strict=True)
        bad = source.bad + [BadRow(row, problem) for row, problem in problems if problem]
        refuse_too_many(bad, config, folder.parent / "bad_rows.jsonl")
    state.wait_for_everyone()


def refuse_long_prompts(
    model: UnifiedModel, captions: Sequence[str], rows: Sequence[int], config: DataConfig
) -> None:
    """Raises UserError if a caption, with ``data.caption_template``, leaves no room for the image.

    Args:
        model: whose decoder has ``max_tokens`` positions.
        captions: [n] without the template.
        rows: [n] of the source, for the message.
        config: the recipe's ``data``.
    """
    grid = grid_of(model, config.image_size)
    room = model.max_tokens - len(model.layout(grid).tokens)
    long = []
    for start in range(0, len(captions), CAPTIONS_PER_CALL):
        prompts = filled(config.caption_template, captions[start : start + CAPTIONS_PER_CALL])
        for number, ids in enumerate(model.prompt_ids(prompts, grid), start):
            if len(ids) > room:
                long.append((len(ids), rows[number]))
    if long:
        tokens, row = max(long)
        raise UserError(
            f"{len(long)} captions are too long, such as that of row {row} with {tokens} tokens; "
            f"an image of {config.image_size} leaves {room} of {model.max_tokens} tokens for the "
            "caption. Shorten or remove these captions, or choose a smaller data.image_size."
        )


def open_cache(folder: Path, num_variants: int) -> TokenCache:
    """The cache in the folder of a split. Raises UserError if there is none."""
    shards = folder / "shards"
    if not shards.is_dir():
        raise UserError(f"{shards} does not exist: run `mm-cca prepare RECIPE` first.")
    table = _all_shards(shards)
    good = [i for i, problem in enumerate(table["problem"]) if not problem]
    return TokenCache(table if len(good) == len(table) else table.select(good), num_variants)


def _encode_rows(
    model: UnifiedModel, source: Split, rows: range, config: DataConfig, seed: int, bar: tqdm
) -> Dataset:
    """One shard: a row whose image can't be read is kept, with ``problem`` set."""
    height, width = config.image_size
    device = next(model.module.parameters()).device
    table = source.table.select([source.rows[i] for i in rows])
    pixels, problems = [], []
    for cell in table[config.image_column]:
        try:
            pixels.append(decode_image(cell, height, width))
            problems.append("")
        except ValueError as error:
            pixels.append(torch.zeros(3, height, width, dtype=torch.uint8))
            problems.append(str(error))
    indices = torch.tensor([source.rows[i] for i in rows]).repeat_interleave(config.variants)
    variants = torch.arange(config.variants).repeat(len(rows))
    encoded = []
    for part in torch.arange(len(indices)).split(config.encode_batch_size):
        parameters = variant_parameters(
            indices[part],
            variants[part],
            seed=seed,
            max_zoom=config.max_zoom,
            max_shift=config.max_shift,
        )
        images = torch.stack([pixels[i // config.variants] for i in part.tolist()])
        encoded.append(model.encode(zoom_and_shift(images, parameters).to(device)).cpu())
        bar.update(len(part))
    codes = torch.cat(encoded).int().view(len(rows), -1)
    if not 0 <= int(codes.min()) <= int(codes.max()) < model.codebook_size:
        raise UserError(
            f"the image tokenizer gave codes {int(codes.min())} to {int(codes.max())}, but the "
            f"decoder has 0 to {model.codebook_size - 1}; they are not from the same model."
        )
    return Dataset.from_dict(
        {
            "row": [source.rows[i] for i in rows],
            "caption": [source.captions[i] for i in rows],
            "codes": list(codes.numpy()),
            "problem": problems,
        },
        features=FEATURES,
    )


def _shard(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}"


def _write(table: Dataset, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.save_to_disk(str(temporary), num_shards=1)


def _all_shards(folder: Path) -> Dataset:
    paths = sorted(path for path in folder.iterdir() if path.suffix != PARTIAL)
    return concatenate_datasets([load_from_disk(str(path)) for path in paths])
