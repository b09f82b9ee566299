"""Fills a token cache: encodes what is new, changed or was bad, and keeps all other codes."""

import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from tqdm import tqdm

from mm_cca.adapters.base import UnifiedModel
from mm_cca.config.image_sizes import size_text
from mm_cca.config.schema import DataConfig
from mm_cca.data.buckets import sizes_of
from mm_cca.data.cache_changes import Comparison, compare
from mm_cca.data.contents import CONTENT_FILE, Origin, column, write_content
from mm_cca.data.filters import LEFT_OUT
from mm_cca.data.images import BadRow, Split, load_split, refuse_too_many, with_names
from mm_cca.data.long_captions import long_captions
from mm_cca.data.row_summary import tell_rows
from mm_cca.data.shard_filler import ShardFiller
from mm_cca.data.token_cache import all_shards
from mm_cca.data.token_shards import (
    Record,
    record_path,
    rows_digest,
    shard_path,
    shards_of,
    sizes_in,
    write_record,
    write_shard,
)
from mm_cca.errors import UserError
from mm_cca.runs.digests import weights_digest


def prepare_split(
    load_model: Callable[[], UnifiedModel],
    config: DataConfig,
    split: str,
    folder: Path,
    seed: int,
    origin: Origin,
    *,
    check: Callable[[Split, Comparison], None] = lambda source, found: None,
    begin: Callable[[], None] = lambda: None,
) -> str | None:
    """Encode what a split's cache lacks: missing and changed images, and those that were bad.

    The shards are divided among the ranks; each shard is written completely or not at all.

    Args:
        load_model: called only if a shard must be written.
        config: the recipe's ``data``.
        split: name of the split.
        folder: of the split.
        seed: of the augmented variants.
        origin: of the data.
        check: may refuse what was found, before anything is written.
        begin: called on the main rank before it writes the first file.

    Returns:
        the digest of the image tokenizer, if it was loaded.

    Raises:
        UserError: more bad rows than ``data.max_bad`` (finished shards are kept). Captions are
            checked before any image is encoded.
    """
    state = PartialState()
    source = load_split(config, split, folder.parent)
    if len(source.bad) > config.max_bad:  # hours of encoding would not mend them
        refuse_too_many(source.bad, config, folder / "bad_rows.jsonl")
    found = compare(source, folder, config, origin)
    _refuse_lost(config, found)
    check(source, found)
    # Every rank must list the stale shards before any rank writes one, as they divide this list.
    state.wait_for_everyone()
    if state.is_main_process and (found.stale or found.superfluous):
        begin()
        (folder / CONTENT_FILE).unlink(missing_ok=True)
    state.wait_for_everyone()
    model = load_model() if found.stale else None
    long = {} if model is None else _long_captions(model, source, config, folder)
    sizes = sizes_of(model, config) if model is not None and config.buckets else []
    filler = ShardFiller(source, found, config, seed, origin, long, sizes)
    _write_stale(filler, model, split, folder)
    state.wait_for_everyone()
    if state.is_main_process:
        _tell(folder, filler, config)
        _tidy(folder, filler)
        table = all_shards(folder)
        _tell_sizes(split, table)
        problems = zip(column(table, "row"), column(table, "problem"), strict=True)
        bad = source.bad + [
            BadRow(row, problem)
            for row, problem in problems
            if problem and not problem.startswith(LEFT_OUT)
        ]
        refuse_too_many(bad, config, folder / "bad_rows.jsonl")
        if not bad:
            (folder / "bad_rows.jsonl").unlink(missing_ok=True)
        write_content(folder, origin)
        if found.stale or found.superfluous:
            tell_rows(folder, source)
    state.wait_for_everyone()
    return None if model is None else tokenizer_digest(model)


def tokenizer_digest(model: UnifiedModel) -> str:
    """sha256 over the weights of the parts that are never trained, the image tokenizer's too."""
    digests = [weights_digest(part) for part in model.frozen()]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _long_captions(
    model: UnifiedModel, source: Split, config: DataConfig, folder: Path
) -> dict[int, str]:
    """Row -> problem of captions without room for the image; more than allowed are refused."""
    captions, rows = source.captions, source.rows
    if source.texts:  # every caption may be drawn
        columns = len(source.texts[0])
        captions = [text for row in source.texts for text in row]
        rows = [row for row in source.rows for _ in range(columns)]
    found = long_captions(model, captions, rows, config)
    long = [BadRow(row, problem) for row, problem in found.items()]
    long = with_names(long, source.table, config.image_column)
    if len(source.bad) + len(long) > config.max_bad:
        refuse_too_many(source.bad + long, config, folder / "bad_rows.jsonl")
    return {bad.row: bad.problem for bad in long}


def _write_stale(filler: ShardFiller, model: UnifiedModel | None, split: str, folder: Path) -> None:
    state = PartialState()
    stale = filler.found.stale
    rank_shards = stale[state.process_index :: state.num_processes]
    with tqdm(
        total=sum(len(filler.places(start)) for start in rank_shards) * filler.config.variants,
        desc=f"tokenising {split}",
        unit="img",
        disable=not state.is_main_process or not stale,
    ) as bar:
        read = filler.read(rank_shards)
        for start in rank_shards:
            assert model is not None
            table, pictures = filler.encode(model, start, read, bar)
            write_shard(shard_path(folder, start), table, filler.signature(pictures), pictures)


def _tell(folder: Path, filler: ShardFiller, config: DataConfig) -> None:
    """One line on what was found in a cache that existed, if anything was other than expected."""
    found, lines = filler.found, []
    if found.is_old:
        lines.append(
            f"{folder} was made before the content of caches was recorded: its codes are taken to "
            f"be those of the pictures in {config.path} as they are now; delete it if they are not"
        )
    if found.broken:
        lines.append(f"damaged files of {folder} were made anew ({', '.join(found.broken)})")
    rewritten = [found.stored[start] for start in found.stale if start in found.stored]
    if found.changes or any(any(shard.problems) for shard in rewritten):
        what = "; ".join(found.changes) or "looked again at the rows that could not be used"
        lines.append(
            f"{folder}: {what}; encoded {filler.num_encoded} of {len(filler.source.rows)} pictures"
        )
    for line in lines:
        print(line, file=sys.stderr)


def _tell_sizes(split: str, table: Dataset) -> None:
    """One line on how many pictures each bucket has."""
    sizes = sizes_in(table)
    if sizes is None:
        return
    usable = [not problem for problem in column(table, "problem")]
    counts = Counter(size_text(size) for size in sizes[usable].tolist())
    listed = ", ".join(f"{size} {count}" for size, count in sorted(counts.items()))
    print(f"buckets of {split}: {listed}", file=sys.stderr)


def _tidy(folder: Path, filler: ShardFiller) -> None:
    """Rewrite outdated records; delete shards of rows that are gone."""
    found = filler.found
    for start in found.untold:
        pictures = found.pictures[start : start + found.size]
        digest = rows_digest(found.stored[start].table)
        record = Record(digest, filler.signature(pictures), pictures)
        write_record(shard_path(folder, start), record)
    wanted = {
        shard_path(folder, start).name for start in range(0, len(filler.source.rows), found.size)
    }
    for path in shards_of(folder):
        if path.name not in wanted:
            shutil.rmtree(path)
            record_path(path).unlink(missing_ok=True)


def _refuse_lost(config: DataConfig, found: Comparison) -> None:
    if found.lost:
        raise UserError(
            f"{config.path}: {len(found.lost)} pictures that were encoded can't be read any more, "
            f"such as that of row {found.lost[0].row} ({found.lost[0].problem}). Their codes were "
            "kept. Is the disk there? Bring the files back, or take these rows out of the data."
        )
