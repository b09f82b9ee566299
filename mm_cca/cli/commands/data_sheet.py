"""What ``prepare`` shows of the data before anything trains: a contact sheet, a table of captions.

The sheet has each picture as it was encoded and as its codes decode, so that a wrong crop, a
rotated picture or a tokenizer that is not the model's own is seen at once.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.schema import Recipe
from mm_cca.data.caption_column import caption_columns
from mm_cca.data.images import Split
from mm_cca.data.pictures import fitted, open_image
from mm_cca.data.tar_members import file_name
from mm_cca.data.token_cache import TokenCache
from mm_cca.runs.files import atomic_path, write_text
from mm_cca.training.contact_sheet import contact_sheet

PICTURES = 12
CAPTIONS = 500
VERSIONS = 3
"""Of each picture at most, the unchanged one first."""
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ border-bottom: 1px solid #ddd; padding: .3em .6em; text-align: left }}
td:first-child, td:last-child {{ text-align: right; font-variant-numeric: tabular-nums }}
td {{ overflow-wrap: anywhere }}
</style>
<h1>{title}</h1>
<p>{note} <a href="{sheet}">The contact sheet</a></p>
<table><thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody></table></html>
"""


def write_data_sheet(
    folder: Path, recipe: Recipe, source: Split, cache: TokenCache, model: UnifiedModel
) -> tuple[Path, Path]:
    """Write both for a split; rows are spread evenly over the data, the same every time.

    Args:
        folder: gets ``SPLIT.png`` and ``SPLIT.html``.
        recipe: a validated recipe.
        source: the split's data.
        cache: of the split, whose folder is named after it.
        model: decodes the codes.

    Returns:
        both files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sheet, table = folder / f"{cache.name}.png", folder / f"{cache.name}.html"
    with atomic_path(sheet) as temporary:
        _sheet(recipe, source, cache, model).save(temporary, "PNG")
    write_text(table, _table(recipe, source, cache, sheet.name))
    return sheet, table


def _spread(total: int, count: int) -> np.ndarray:
    """At most ``count`` different numbers below ``total``, evenly spread, the first included."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


@torch.inference_mode()
def _sheet(recipe: Recipe, source: Split, cache: TokenCache, model: UnifiedModel) -> Image.Image:
    rows = _spread(len(cache), PICTURES)
    images = source.table.select_columns([recipe.data.image_column])
    versions = min(cache.num_variants, VERSIONS)
    device, pictures = next(model.module.parameters()).device, []
    for row in rows.tolist():
        ((size, _),) = cache.by_size(np.array([row]), recipe.data.image_size).items()
        cell = images[cache.source_rows[row]][recipe.data.image_column]
        shown = [fitted(open_image(cell, max(size)), *size)]
        # One by one, as decoding a batch takes most memory.
        for version in range(versions):
            codes = cache.codes(torch.tensor([row]), torch.tensor([version])).to(device)
            (pixels,) = model.decode(codes, grid_of(model, size)).cpu()
            shown.append(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
        pictures.append(shown)
    columns = ["encoded", "decoded", *(f"version {n}" for n in range(1, versions))]
    title = f"{cache.name}: {len(rows)} of {len(cache):,} images"
    return contact_sheet(pictures, [" | ".join(_texts(cache, r)) for r in rows], columns, title)


def _texts(cache: TokenCache, row: int) -> list[str]:
    return [cache.captions[row]] if cache.texts is None else cache.texts[row]


def _table(recipe: Recipe, source: Split, cache: TokenCache, sheet: str) -> str:
    rows = _spread(len(cache), CAPTIONS).tolist()
    columns = caption_columns(recipe.data)
    names = _file_names(source, recipe.data.image_column, [cache.source_rows[r] for r in rows])
    lines = []
    for row, name in zip(rows, names, strict=True):
        texts = _texts(cache, row)
        cells = [str(cache.source_rows[row]), name, *texts, " ".join(str(len(t)) for t in texts)]
        lines.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("row", "file", *columns, "characters"))
    return _PAGE.format(
        title=escape(f"Captions of {cache.name}"),
        note=f"{len(rows):,} of {len(cache):,} usable rows of {escape(recipe.data.path)}.",
        sheet=escape(sheet),
        head=head,
        rows="\n".join(f"<tr>{line}</tr>" for line in lines),
    )


def _file_names(source: Split, column: str, rows: Sequence[int]) -> list[str]:
    """Of the pictures; empty for those inside a table that have none."""
    images = source.table.select_columns([column])
    return [file_name((images[row][column] or {}).get("path") or "") for row in rows]
