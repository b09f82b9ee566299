"""The caption column of a table as texts: labels by name, the first text of a list."""

import logging
from typing import Any

from datasets import ClassLabel, Dataset, Value

from mm_cca.config.schema import DataConfig
from mm_cca.errors import UserError

log = logging.getLogger(__name__)
TEXTS = ("string", "large_string", "string_view")


def caption_columns(config: DataConfig) -> list[str]:
    """The columns of an image's captions, the first one first."""
    return [config.caption_column, *config.more_caption_columns]


def captions_of(table: Dataset, column: str) -> list[str | None]:
    """[rows] captions; None for null, for an empty list and for a label of no class.

    A class label becomes the class's name, and of a list of texts the first one that is not empty
    is the caption, which is logged.

    Raises:
        UserError: the column holds something else, such as numbers or mappings; says what.
    """
    feature = table.features[column]
    values = table[column][:]  # all at once: one by one is slow
    if isinstance(feature, ClassLabel):
        return [feature.int2str(v) if v is not None and v >= 0 else None for v in values]
    if isinstance(feature, Value) and feature.dtype in (*TEXTS, "null"):
        return list(values)
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if isinstance(inner, Value) and inner.dtype in TEXTS:
        log.warning(
            "data.caption_column %r holds lists of captions: the first of each row is used.", column
        )
        return [_first(texts) for texts in values]
    raise UserError(
        f"data.caption_column {column!r} holds {_kind(feature, inner)}, such as "
        f"{_example(values)}; allowed: texts, lists of texts (the first is used), or class labels "
        "(their names are used). Name another column, or make a column of texts."
    )


def _first(texts: list[str | None] | None) -> str | None:
    return next((text for text in texts or () if text and text.strip()), None)


def _kind(feature: Any, inner: Any) -> str:
    if isinstance(feature, Value):
        return f"values of the type {feature.dtype}"
    if inner is not None:
        return "lists of other things than texts"
    if isinstance(feature, dict):
        return f"mappings with the keys {', '.join(feature)}"
    return f"values of the type {type(feature).__name__}"


def _example(values: Any) -> str:
    text = repr(next((value for value in values if value is not None), None))
    return text if len(text) <= 100 else f"{text[:100]} ..."
