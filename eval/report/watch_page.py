"""The page of ``mm-cca watch``: curves and previews of a training as they are now."""

import torch

from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import num_steps
from mm_cca.data.token_cache import open_cache
from mm_cca.errors import UserError
from mm_cca.eval.report.curves import count_steps, panels, read_signals, span_of
from mm_cca.eval.report.pages import templates
from mm_cca.eval.report.preview_strip import strip_of
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage

SECONDS = 15
"""Between reloads."""
METRICS = "metrics.jsonl"


def codes_per_image(recipe: Recipe, run: RunFolder) -> int:
    """As the token cache has them, so that no model is read.

    Raises:
        UserError: nothing is or was trained here, or the cache is gone.
    """
    if not (run.train / METRICS).exists():
        raise UserError(
            f"{run.root} has no training to watch: {run.train / METRICS} does not exist. Start it "
            "with `mm-cca train RECIPE`, or give the run.dir of one that has begun."
        )
    cache = open_cache(run.tokens / recipe.data.train_split, recipe.data.variants)
    first = torch.zeros(1, dtype=torch.long)
    return cache.codes(first, first).shape[1]


def watch_page(recipe: Recipe, run: RunFolder, num_codes: int) -> str:
    """HTML that reloads itself.

    Raises:
        UserError: the record of the previews is damaged.
    """
    folders = {"cca": run.train, "control": run.control}
    signals = {name: read_signals(place / METRICS, num_codes) for name, place in folders.items()}
    signals = {name: found for name, found in signals.items() if found}
    loss = signals.get("cca", {}).get("loss")
    return (
        templates()
        .get_template("watch.html.j2")
        .render(
            name=run.root.resolve().name,
            done=0 if loss is None else int(loss.steps[-1]) + 1,
            num_steps=num_steps(recipe.train),
            finished=all(Stage.ended(place) for place in folders.values() if place.is_dir()),
            seconds=SECONDS,
            previews_on=recipe.sample.every is not None,
            strip=strip_of(run.train),
            panels=panels(signals),
            span=span_of(count_steps(list(signals.values()))),
        )
    )
