"""Negatives of a training run: which rows get them, and the files that list them."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mm_cca.config.mixtures import parse_sum
from mm_cca.config.schema import Recipe
from mm_cca.data.images import Split
from mm_cca.data.mapped_column import MappedColumn
from mm_cca.data.token_cache import TokenCache
from mm_cca.errors import UserError
from mm_cca.negatives import KINDS, EpochPlan, NegativeSettings, Planner, write_plan
from mm_cca.negatives.embed import check_installed
from mm_cca.negatives.planner import NoNegativesError
from mm_cca.runs.files import atomic_path, write_json, write_text
from mm_cca.training.drawn_captions import CaptionDraws, drawn_columns


@dataclass(frozen=True)
class LeftOut:
    """Data rows that are not trained on.

    Attributes:
        kept: [n] the other rows.
        rows: for which no negative caption can be built.
        too_few: whose size has fewer images than a batch.
    """

    kept: np.ndarray
    rows: list[int]
    too_few: list[int] = field(default_factory=list)


class PlanWriter:
    """Writes the negatives of every epoch into the folder of the training.

    ``epoch-0000.parquet`` lists them, ``epoch-0000.json`` counts the replaced ones by reason;
    ``left_out.jsonl`` lists the rows without.
    """

    def __init__(self, folder: Path, cache: TokenCache, *, show: bool) -> None:
        self._folder = folder
        self._captions = cache.captions
        self._source_rows = cache.source_rows
        self._kept = np.arange(len(cache))
        self.show = show

    def leave_out(self, left_out: LeftOut, draws: CaptionDraws | None = None) -> None:
        """Tell and list which rows are not trained on; plans are those of the others.

        ``draws`` tell the captions that plans are for, where images have several.
        """
        captions = self._captions if draws is None else draws.captions(0)
        rows, self._kept = self._source_rows, left_out.kept
        if not (left_out.rows or left_out.too_few) or not self.show:
            return
        reasons = dict.fromkeys(left_out.rows, "no other caption can be its negative caption")
        reasons |= dict.fromkeys(left_out.too_few, "its size has fewer images than a batch")
        lines = [
            json.dumps({"row": rows[i], "caption": captions[i], "problem": why})
            for i, why in reasons.items()
        ]
        path = self._folder / "left_out.jsonl"
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join(lines) + "\n")
        tqdm.write(
            f"{len(lines)} of {len(captions)} rows are not trained on, as "
            f"{' or '.join(dict.fromkeys(reasons.values()))}: {path}",
            file=sys.stderr,
        )

    def __call__(self, epoch: int, plan: EpochPlan) -> None:
        """Write the plan of an epoch. Raises UserError on a full disk."""
        if not self.show:  # another rank writes
            return
        path = self._folder / f"epoch-{epoch:04d}.parquet"
        try:
            with atomic_path(path) as temporary:
                write_plan(temporary, plan, self._source_rows.at(self._kept))
            write_json(path.with_suffix(".json"), plan.replaced)
        except OSError as error:
            raise UserError(f"{path} can't be written: {error}. Free some space.") from error
        if any(plan.replaced.values()):
            counts = [f"{count} {reason}" for reason, count in plan.replaced.items() if count]
            tqdm.write(f"negatives replaced in epoch {epoch}: {', '.join(counts)}", file=sys.stderr)


def negative_settings(recipe: Recipe) -> NegativeSettings:
    """The planner's settings from the recipe's keys."""
    loss = recipe.loss
    return NegativeSettings(
        mixture=parse_sum(loss.negatives, KINDS),
        num_negatives=loss.num_negatives,
        embedding=loss.negatives_embedding,
        candidates=loss.hard_candidates,
        max_similarity=loss.max_similarity,
        words=recipe.data.attribute_words,
    )


def plan_negatives(
    captions: Sequence[str],
    settings: NegativeSettings,
    *,
    seed: int,
    may_leave_out: int,
    show: bool = False,
) -> tuple[Planner, LeftOut]:
    """The planner of all captions that negatives can be built for.

    Args:
        captions: [n] captions.
        settings: of the planner.
        seed: of the run.
        may_leave_out: ``data.max_bad``, how many captions may have no negatives.
        show: whether to show progress bars.

    Raises:
        UserError: more captions than that have none.
    """
    every = np.arange(len(captions))
    try:
        return Planner(captions, settings, seed=seed, show=show), LeftOut(every, [])
    except NoNegativesError as error:
        rows = error.rows
        if len(rows) >= len(captions) - 1:  # nothing to pair would be left
            raise
        if len(rows) > may_leave_out:
            raise UserError(
                f"{error} Or leave these rows out: data.max_bad={len(rows)} (now {may_leave_out})."
            ) from error
    kept = np.setdiff1d(every, rows)
    of_kept = (
        captions.at(kept)
        if isinstance(captions, MappedColumn)
        else [captions[i] for i in kept.tolist()]
    )
    planner = Planner(of_kept, settings, seed=seed, show=show)
    return planner, LeftOut(kept, rows)


def check_plan(recipe: Recipe, source: Split) -> None:
    """Raises UserError if negatives can't be built for more than ``data.max_bad`` captions.

    The search for similar captions may take minutes and is left to training; only its packages are
    checked here.
    """
    captions, seed = source.captions, recipe.train.seed
    if source.texts:
        has = np.array([[bool(text) for text in row] for row in source.texts])
        columns = drawn_columns(has, recipe.data.caption_weights, seed, 0).tolist()
        captions = [row[column] for row, column in zip(source.texts, columns, strict=True)]
    settings = negative_settings(recipe)
    if "hard" in settings.mixture:
        settings = replace(settings, mixture={"shuffle": 1.0})
        check_installed(settings.embedding)
    plan_negatives(
        captions,
        replace(settings, embedding="tfidf"),
        seed=seed,
        may_leave_out=recipe.data.max_bad,
    )
