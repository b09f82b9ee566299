"""What fine-tuning for images did to the language side: nats per token of plain text."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import release_memory

from mm_cca.adapters.base import UnifiedModel
from mm_cca.config.schema import Recipe
from mm_cca.data.images import load_split
from mm_cca.data.texts import read_texts
from mm_cca.errors import UserError
from mm_cca.eval.metrics.intervals import mean_interval
from mm_cca.eval.summary_types import TextNll
from mm_cca.modeling.text_nll import text_batch, text_nll
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.weights import load_source

CAPTIONS = "captions"
MAX_TEXTS = 1000


def texts_of(recipe: Recipe) -> list[str]:
    """At most ``MAX_TEXTS`` distinct texts of ``eval.text_nll``. Raises UserError."""
    source = recipe.eval.text_nll
    assert source is not None
    if source != CAPTIONS:
        return list(dict.fromkeys(read_texts(source, "eval.text_nll")))[:MAX_TEXTS]
    split = recipe.data.heldout_split
    if split is None:
        raise UserError(
            "eval.text_nll is 'captions', which needs data.heldout_split, and that is null. "
            "Name a split or a text file."
        )
    return list(dict.fromkeys(load_split(recipe.data, split).captions))[:MAX_TEXTS]


def measure_text(
    recipe: Recipe, run: RunFolder, sources: Sequence[str], texts: list[str]
) -> TextNll:
    """Mean nats per token of every source, and its paired difference to the base."""
    nll: dict[str, np.ndarray] = {}
    for source in sources:
        model = load_source(recipe, run, source)
        nll[source] = _nll(model, texts, recipe.sample.batch_size_without_auto)
        del model
        release_memory()
    base = nll.get("base")

    return {
        "texts": recipe.eval.text_nll,
        "num_texts": len(texts),
        "sources": {name: mean_interval(values) for name, values in nll.items()},
        "minus_base": {
            name: mean_interval(values - base)
            for name, values in nll.items()
            if base is not None and name != "base"
        },
    }


@torch.no_grad()
def _nll(model: UnifiedModel, texts: list[str], batch_size: int) -> np.ndarray:
    device = PartialState().device
    parts = []
    for start in range(0, len(texts), batch_size):
        ids, mask = text_batch(model, texts[start : start + batch_size])
        parts.append(text_nll(model, ids.to(device), mask.to(device)).cpu())
    return torch.cat(parts).numpy()
