"""The pairs of every step: the order of training and its negatives, from a recipe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import Recipe
from mm_cca.data.token_cache import TokenCache
from mm_cca.errors import UserError
from mm_cca.negatives import EpochPlan
from mm_cca.training.bucket_order import BucketOrder
from mm_cca.training.drawn_captions import CaptionDraws, DrawnPlanner
from mm_cca.training.negative_texts import NegativeTexts
from mm_cca.training.planned_negatives import (
    LeftOut,
    PlanWriter,
    negative_settings,
    plan_negatives,
)


@dataclass(frozen=True)
class Pairs:
    """The pairs of one optimizer step, or of a part of it.

    Attributes:
        start: index of the first pair in the order of training, counted from step 0.
        rows: [B] data row of each image (and of its own caption).
        negatives: of each image; read when they are asked for.
        variants: [B] which augmented variant of the image.
        dropped: [B] whether all prompts are replaced by the unconditional prompt.
        columns: [B] which of an image's captions is its own one; None: it has one.
    """

    start: int
    rows: np.ndarray
    negatives: NegativeTexts
    variants: np.ndarray
    dropped: np.ndarray
    columns: np.ndarray | None = None

    def part(self, first: int, last: int) -> "Pairs":
        """Pairs ``first`` to ``last``, excluding ``last``."""
        own = slice(first, last)
        return Pairs(
            self.start + first,
            self.rows[own],
            self.negatives.part(own),
            self.variants[own],
            self.dropped[own],
            None if self.columns is None else self.columns[own],
        )


class PlansEpochs(Protocol):
    """Plans the negatives of every epoch."""

    def epoch(self, epoch: int) -> EpochPlan: ...


class Schedule:
    """Steps of ``batch_size`` pairs; order and negatives are new in every epoch.

    Every step has images of one size, ``groups``. The images of a size have epochs of their own,
    in the order of the epochs of all; which size is next is in ``bucket_order.py``.
    """

    def __init__(
        self,
        captions: Sequence[str],
        *,
        batch_size: int,
        num_variants: int,
        uncond_ratio: float,
        planner: PlansEpochs | None,
        seed: int,
        on_plan: Callable[[int, EpochPlan], None] | None = None,
        rows: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        draws: CaptionDraws | None = None,
    ) -> None:
        """Without a ``planner`` there are no negatives.

        Args:
            captions: [n] that are trained on.
            on_plan: called with the number and the plan of every new epoch.
            rows: [n] data row of each caption; None: they are all rows of the data.
            groups: [n] number of the image size of each caption, from 0; None: all have one.
            draws: of every epoch's captions among several of each image.

        Raises:
            UserError: a batch larger than the data.
        """
        refuse_large_batch(batch_size, len(captions))
        self.batch_size = batch_size
        self._rows = np.arange(len(captions)) if rows is None else rows
        self._groups = np.zeros(len(captions), dtype=np.int64) if groups is None else groups
        self._order = BucketOrder(np.bincount(self._groups).tolist(), batch_size, seed)
        self._num_variants = num_variants
        self._uncond_ratio = uncond_ratio
        self._planner = planner
        self._seed = seed
        self._on_plan = on_plan
        self._draws = draws
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> "_Epoch":
        n = len(self._rows)
        stream = np.random.default_rng([self._seed, epoch, 0x6F72])
        order = stream.permutation(n)
        variants = stream.integers(0, self._num_variants, n)
        dropped = stream.random(n) < self._uncond_ratio
        plan = None if self._planner is None else self._planner.epoch(epoch)
        if plan is not None and self._on_plan is not None:
            self._on_plan(epoch, plan)
        columns = None if self._draws is None else self._draws.columns(epoch)[self._rows]
        groups = self._groups[order]
        places = [order[groups == group] for group in range(len(self._order.counts))]
        return _Epoch(plan, places, variants, dropped, columns)

    def step(self, step: int) -> Pairs:
        """The pairs of step 0, 1, 2, ...; a step may span two epochs."""
        group, number = self._order.at(step)
        start = number * self.batch_size
        count = np.arange(start, start + self.batch_size)
        epochs, offsets = np.divmod(count, self._order.counts[group])
        made = {epoch: self._epoch(epoch) for epoch in np.unique(epochs).tolist()}
        inside = {epoch: made[epoch].places[group][offsets[epochs == epoch]] for epoch in made}

        def of_all(name: str) -> np.ndarray:
            return np.concatenate([getattr(made[epoch], name)[inside[epoch]] for epoch in made])

        places = np.concatenate(list(inside.values()))
        plans = {epoch: of.plan for epoch, of in made.items() if of.plan is not None}
        return Pairs(
            step * self.batch_size,
            self._rows[places],
            NegativeTexts(epochs, places, plans),
            of_all("variants"),
            of_all("dropped"),
            None if self._draws is None else of_all("columns"),
        )


@dataclass(frozen=True)
class _Epoch:
    """The plan of an epoch, the places of each group's images in its order, and their [n] draws."""

    plan: EpochPlan | None
    places: list[np.ndarray]
    variants: np.ndarray
    dropped: np.ndarray
    columns: np.ndarray | None


def refuse_large_batch(batch_size: int, num_images: int) -> None:
    """Raises UserError if a step needs more images than there are."""
    if batch_size > num_images:
        raise UserError(
            f"train.batch_size is {batch_size}, but there are only {num_images} usable "
            f"images; allowed: 1 to {num_images}."
        )


def training_schedule(
    recipe: Recipe, cache: TokenCache, terms: LossTerms, plan_writer: PlanWriter | None = None
) -> Schedule:
    """The steps of a recipe; negatives are planned only if the loss needs them.

    Args:
        recipe: a validated recipe.
        cache: of the train split.
        terms: of the loss.
        plan_writer: writes the plan of every epoch.

    Raises:
        UserError: a batch larger than the data, or more than ``data.max_bad`` rows whose size has
            too few images for a batch, or whose captions no negatives can be built from; up to so
            many are not trained on.
    """
    sizes = cache.by_size(np.arange(len(cache)), recipe.data.image_size)
    fitting, too_few = _fillable(recipe, list(sizes.values()))
    draws = CaptionDraws.of(recipe, cache)
    planner: PlansEpochs | None = None
    left_out = LeftOut(np.arange(len(fitting)), [])
    if terms.needs_negatives:
        planner, left_out = plan_negatives(
            (cache.captions if draws is None else draws.captions(0)).at(fitting),
            negative_settings(recipe),
            seed=recipe.train.seed,
            may_leave_out=recipe.data.max_bad - len(too_few),
            show=plan_writer is not None and plan_writer.show,
        )
    left_out = LeftOut(fitting[left_out.kept], fitting[left_out.rows].tolist(), too_few)
    kept = left_out.kept
    if planner is not None and draws is not None:
        planner = DrawnPlanner(draws, kept, negative_settings(recipe), recipe.train.seed)
    if plan_writer is not None:
        plan_writer.leave_out(left_out, draws)
    groups = np.zeros(len(cache), dtype=np.int64)
    for number, rows in enumerate(sizes.values()):
        groups[rows] = number
    return Schedule(
        cache.captions.at(kept),
        batch_size=recipe.train.batch_size,
        num_variants=cache.num_variants,
        uncond_ratio=recipe.loss.uncond_ratio,
        planner=planner,
        seed=recipe.train.seed,
        on_plan=plan_writer,
        rows=kept,
        groups=np.unique(groups[kept], return_inverse=True)[1],
        draws=draws,
    )


def _fillable(recipe: Recipe, rows_by_size: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """The rows of sizes that have enough images for a step, and the others.

    Raises:
        UserError: there are more others than ``data.max_bad``.
    """
    size, may_leave_out = recipe.train.batch_size, recipe.data.max_bad
    many = [rows for rows in rows_by_size if len(rows) >= size or len(rows_by_size) == 1]
    few = [rows for rows in rows_by_size if len(rows) < size and len(rows_by_size) > 1]
    too_few = sorted(np.concatenate(few).tolist()) if few else []
    if not many or len(too_few) > may_leave_out:
        raise UserError(
            f"{len(few)} of {len(rows_by_size)} sizes of data.buckets have fewer images than "
            f"train.batch_size ({size}), and every step needs that many of one size; together they "
            f"have {len(too_few)}. Lower train.batch_size, list fewer buckets"
            + (f", or leave these images out with data.max_bad={len(too_few)}." if many else ".")
        )
    return np.sort(np.concatenate(many)), too_few
