"""``prepare``: fill the token cache of every split, draw pictures for ddo, fill the reference
cache."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import PartialState

from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import UnifiedModel
from mm_cca.cli.commands.data_checks import data_splits, refuse_other_data, refuse_other_path
from mm_cca.cli.commands.data_sheet import write_data_sheet
from mm_cca.config.keys import SHARDS, TOKENS
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import settings_of
from mm_cca.data.buckets import sizes_of
from mm_cca.data.cache_changes import Comparison
from mm_cca.data.contents import (
    Origin,
    is_unchanged,
    model_contents,
    read_content,
    record_place,
)
from mm_cca.data.fill_cache import prepare_split, tokenizer_digest
from mm_cca.data.images import Split
from mm_cca.data.token_cache import open_cache
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage, changes_of, locked, recorded
from mm_cca.sampling.prompts import has_real_images, refuse_few_rows
from mm_cca.training.cached_reference import prepare_reference
from mm_cca.training.drawn_pictures import drawn_folder, prepare_drawn
from mm_cca.training.planned_negatives import check_plan
from mm_cca.training.schedule import refuse_large_batch, training_schedule
from mm_cca.training.train import training_stage

MODEL_KEYS = ("model.path", "model.image_tokenizer", "model.tokenizer")
IMAGE_TOKENIZER = "image_tokenizer_sha256"
"""In the stage.json of a token cache: the digest of what encoded it."""


def prepare(recipe: Recipe, run: RunFolder, stages: Sequence[str] = ("prepare",)) -> None:
    """Fill the token cache of every split the recipe names and, if needed, the base's pictures
    (``ddo``) and the reference cache.

    Args:
        recipe: a validated recipe.
        run: its folder.
        stages: that will follow; what they would refuse later is refused now.
    """
    if not needs_tokens(recipe):
        return  # nothing is trained, and the prompts come from a file
    prepare_tokens(recipe, run, stages)
    terms, trains = LossTerms.of(recipe.loss), "cca" in recipe.run.sources
    needs_cache = recipe.train.reference == "cached" and terms.needs_reference
    # After training neither is needed any longer; deleted ones are not made again.
    if not (trains and (needs_cache or terms.needs_drawn)) or _has_trained(recipe, run):
        return
    if terms.needs_drawn:
        _prepare_drawn(recipe, run)
    if needs_cache:
        with locked(run.reference) if PartialState().is_main_process else nullcontext():
            prepare_reference(recipe, run)


def _prepare_drawn(recipe: Recipe, run: RunFolder) -> None:
    cache = open_cache(run.tokens / recipe.data.train_split, recipe.data.variants)
    # With negative captions too, as rows without any are not trained on.
    schedule = training_schedule(recipe, cache, LossTerms.of(recipe.loss))
    folder = drawn_folder(recipe, run)
    with locked(folder) if PartialState().is_main_process else nullcontext():
        prepare_drawn(recipe, run, schedule, lambda: frozen_model(recipe))
    PartialState().wait_for_everyone()


def _trains(recipe: Recipe) -> bool:
    return "train" in recipe.run.stages and "cca" in recipe.run.sources


def needs_tokens(recipe: Recipe) -> bool:
    """Whether anything uses the token cache."""
    return recipe.run.trained is None or has_real_images(recipe)


def prepare_tokens(recipe: Recipe, run: RunFolder, stages: Sequence[str] = ("prepare",)) -> None:
    """Fill the token cache of every split the recipe names.

    A finished cache whose data were touched since is compared with them; what changed is encoded.

    Raises:
        UserError: unreadable data, captions without possible negatives, a batch larger than the
            data, a changed recipe, other data than before at another path, or data that changed
            after a model was trained on them.
    """
    main = PartialState().is_main_process
    origin = Origin.of(recipe.data.path, run.root)
    for split in data_splits(recipe):
        stage = tokens_stage(recipe, run, split)
        _refuse_other_tokenizer(recipe, stage)
        done, content = stage.is_done(), read_content(stage.folder)
        if done and is_unchanged(stage.folder, content, origin):
            if main:
                record_place(stage.folder, origin)
            continue
        if done and origin.signature is None:  # data on the hub, or taken away since
            refuse_other_path(recipe, stage.folder)
            continue
        seen = _Seen(recipe)

        def check(
            source: Split, found: Comparison, stage: Stage = stage, seen: _Seen = seen
        ) -> None:
            seen.source = source
            _check(recipe, run, stages, stage.folder, origin, source, found)

        # Only the main rank writes stage.json; all ranks reach the same decisions.
        with locked(stage.folder) if main else nullcontext():
            tokenizer = prepare_split(
                seen.load_model,
                recipe.data,
                split,
                stage.folder,
                0,
                origin,
                check=check,
                begin=partial(run.begin, stage, recipe),
            )
            if main:
                if not done and tokenizer is None and not _knows_tokenizer(stage):
                    tokenizer = tokenizer_digest(seen.load_model())
                seen.show(run, stage.folder)
                more = {} if tokenizer is None else {IMAGE_TOKENIZER: tokenizer}
                stage.finish(**more)
        PartialState().wait_for_everyone()


def _knows_tokenizer(stage: Stage) -> bool:
    """False for one that was killed between its last shard and its end."""
    return IMAGE_TOKENIZER in (recorded(stage.folder) or {})


@dataclass
class _Seen:
    """What filling a cache loads: kept for the contact sheet, if anything was encoded."""

    recipe: Recipe
    source: Split | None = None
    model: UnifiedModel | None = None

    def load_model(self) -> UnifiedModel:
        self.model = frozen_model(self.recipe)
        return self.model

    def show(self, run: RunFolder, split: Path) -> None:
        """Write the contact sheet and the table of captions into the run folder."""
        if self.model is None or self.source is None:
            return
        cache = open_cache(split, self.recipe.data.variants, unfinished=True)
        files = write_data_sheet(run.root / "data", self.recipe, self.source, cache, self.model)
        print(f"look at the data before training: {files[0]} and {files[1].name}", file=sys.stderr)


def tokens_stage(recipe: Recipe, run: RunFolder, split: str) -> Stage:
    """The stage of a split's token cache.

    Its data are compared row by row, not by their path, and of the checkpoint only the image
    tokenizer matters.
    """
    settings = settings_of(TOKENS, recipe, contents=model_contents(recipe, run))
    folder = run.tokens / split
    stored = recorded(folder)
    kept = stored.get("until_done", {}) if stored is not None and stored["done"] else {}
    return Stage(
        folder,
        settings | {"split": split},
        # A finished cache whose data changed goes on with shards of its own size.
        until_done=kept or settings_of(SHARDS, recipe),
        aside=("data.path", *MODEL_KEYS),
        results=("shards/*",),
    )


def _refuse_other_tokenizer(recipe: Recipe, stage: Stage) -> None:
    """Raises UserError if a cache was made by another image tokenizer.

    Where the checkpoint is the same, by its path or its files, nothing is loaded.
    """
    stored = recorded(stage.folder)
    if stored is None or (not stored["done"] and stage.holds_nothing()):
        return
    changes = changes_of(stored["settings"], stage.settings)
    changes = {key: change for key, change in changes.items() if key in MODEL_KEYS}
    known = stored.get(IMAGE_TOKENIZER)
    if not changes:
        return
    if known is not None and known == tokenizer_digest(frozen_model(recipe)):
        if stored["done"] and PartialState().is_main_process:
            stage.finish()  # so that it is not loaded for this again
        return
    listed = "\n".join(f"  - {key}: {change}" for key, change in sorted(changes.items()))
    raise UserError(
        f"{stage.folder} was made with another image tokenizer:\n{listed}\nIt was left as it is. "
        f"Restore the old values, choose another run.dir, or delete {stage.folder} to start over."
    )


def _check(
    recipe: Recipe,
    run: RunFolder,
    stages: Sequence[str],
    folder: Path,
    origin: Origin,
    source: Split,
    found: Comparison,
) -> None:
    """Refuse what would fail later, before anything is written."""
    refuse_other_data(recipe, run, folder, origin, found)
    if "eval" in stages and has_real_images(recipe):
        refuse_few_rows(folder.name, len(source.rows))
    if folder.name != recipe.data.train_split or not _trains(recipe):
        return
    usable = len(source.rows)
    refuse_large_batch(recipe.train.batch_size, usable)
    if LossTerms.of(recipe.loss).needs_negatives:
        # Fail before hours of encoding if no negatives can be built or packages are missing.
        check_plan(recipe, source)


def frozen_model(recipe: Recipe) -> UnifiedModel:
    """The recipe's checkpoint for encoding and sampling, on this rank's device.

    Raises:
        UserError: it can't be read, or does not support ``data.image_size`` and ``data.buckets``.
    """
    model = load_checkpoint(recipe.model)
    sizes_of(model, recipe.data)
    model.module.eval().requires_grad_(False).to(PartialState().device)
    return model


def _has_trained(recipe: Recipe, run: RunFolder) -> bool:
    """Whether training is finished, here or in ``run.trained``."""
    if recipe.run.trained is not None:
        return True
    stage = training_stage(recipe, run)
    # Refuse a changed recipe before the reference of additional steps is computed.
    return stage.is_done() if stage.is_extended() else Stage.ended(run.train)
