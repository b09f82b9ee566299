"""The folder of one arm for a stock engine: weights, chat template, layout, sampling values, card.

An engine knows neither rows nor codes, so everything that a client needs to ask for an image is in
``image_layout.json`` beside the weights, and the card says how to ask.
"""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from transformers import GenerationConfig

from mm_cca.adapters.base import Grid, ImageLayout, UnifiedModel, grid_of, refuse_without_engine
from mm_cca.cli.commands.engine_card import how_to_serve
from mm_cca.cli.commands.model_card import averaged_from, card_of
from mm_cca.config.read_files import is_there, json_of
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.modeling.sampler import SamplingSettings
from mm_cca.runs.files import atomic_path
from mm_cca.runs.folder import open_run, recipe_of_training
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.draw import sampling_settings
from mm_cca.sampling.engine_arms import served_name
from mm_cca.sampling.engine_grammar import grammar_of
from mm_cca.sampling.weights import load_merged

LAYOUT_FILE = "image_layout.json"
EXAMPLE = "a red owl"


@dataclass(frozen=True)
class EngineExport:
    """What a folder for an engine holds, and how it is served.

    Attributes:
        folder: where it is, or will be.
        served_name: ``RUN/ARM``, by which clients find it.
        arguments: of vLLM's server, from the folder on.
        needs_plugin: whether ``mm_cca_vllm`` must be installed beside the engine.
    """

    folder: Path
    served_name: str
    arguments: tuple[str, ...]
    needs_plugin: bool

    @property
    def command(self) -> str:
        """The line that serves the folder, for a shell."""
        return f"vllm serve {shlex.join(self.arguments)}"


def export_for_engine(
    run_folder: Path, target: Path, *, source: str = "cca", dial: float = 1.0
) -> EngineExport:
    """Write one arm of a run as a folder that a stock engine serves. Written atomically.

    Args:
        run_folder: of a finished run.
        target: a new or empty folder.
        source: one of ``schema.SOURCES``; a LoRA is merged.
        dial: of ``cca``; see ``load_merged``.

    Raises:
        UserError: not a run folder, unfinished training, a dial of an untrained arm, an adapter
            that no engine serves, a target in use, a full disk.
    """
    refuse_dial(dial, source)
    recipe, run = open_run(run_folder)
    refuse_in_use(target)
    model = load_merged(recipe, run, source, dial=dial)
    refuse_without_engine(model)
    arm = Arm(source, 1.0, dial=dial)
    grid = grid_of(model, recipe.data.image_size)
    name = served_name(run, arm)
    export = describe_export(recipe, model, target, name)
    try:
        with atomic_path(target) as temporary:
            temporary.mkdir()
            model.save_for_engine(temporary)
            facts = _write_small_files(temporary, recipe, model, grid, arm, name)
            card = card_of(
                recipe_of_training(recipe),
                run_folder,
                source=source,
                library="vllm",
                how=how_to_serve(
                    export.arguments[1:], facts, needs_plugin=export.needs_plugin, dial=dial
                ),
                averaged=averaged_from(run.trained) if source == "cca" else "",
            )
            card.save(temporary / "README.md")
    except OSError as error:
        raise UserError(f"{target} can't be written: {error}") from error
    return export


def describe_export(recipe: Recipe, model: UnifiedModel, folder: Path, served: str) -> EngineExport:
    """How a folder of this model is served, without writing it."""
    serving = model.engine_serving
    # An engine would take float32 down to 16 bits by itself, so the type is always said.
    options = ("--served-model-name", served, "--dtype", recipe.model.dtype, *serving.arguments)
    return EngineExport(folder, served, (str(folder), *options), serving.needs_plugin)


def refuse_dial(dial: float, source: str = "cca") -> None:
    """Raises UserError for a dial below 0, or one that is not of the trained model."""
    if not 0 <= dial < math.inf:
        raise UserError(f"--dial is {dial:g}; allowed: 0 (the base) or more; 1 is as trained.")
    if dial != 1.0 and source != "cca":
        raise UserError(
            f"--dial is {dial:g}, which turns the trained model; leave it out for --source "
            f"{source}."
        )


def refuse_in_use(target: Path) -> None:
    """Raises UserError if the target is a file, or a folder that holds something."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already; choose another folder or empty it.")


def _write_small_files(
    folder: Path, recipe: Recipe, model: UnifiedModel, grid: Grid, arm: Arm, served: str
) -> dict[str, Any]:
    """Chat template, generation config and ``image_layout.json``, whose content is returned."""
    layout, settings = model.layout(grid), sampling_settings(recipe, arm, model.defaults)
    template = model.chat_template(grid)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_generation_config(folder, settings, layout)
    facts = {
        "served_name": served,
        "mm_cca": metadata.version("mm-cca"),
        "adapter": recipe.model.adapter,
        "dtype": recipe.model.dtype,
        **layout_facts(model, grid),
        "sampling": {
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
        },
        "prompt_template": recipe.sample.prompt_template,
        "caption_template": recipe.data.caption_template,
        "has_chat_template": template is not None,
        "size_in_prompt": template is not None and "height" in template,
        "example": {"prompt": EXAMPLE, "prompt_ids": model.prompt_ids([EXAMPLE], grid)[0]},
    }
    lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items())
    text = ",\n".join(lines)
    (folder / LAYOUT_FILE).write_text(f"{{\n{text}\n}}\n", encoding="utf-8")
    return facts


def layout_facts(model: UnifiedModel, grid: Grid) -> dict[str, Any]:
    """What a client must know of an image: its size, slots, ids of codes, and grammar."""
    layout, ids, side = model.layout(grid), model.engine_codes(), model.pixels_per_code
    return {
        "image_size": [n * side for n in grid],  # height, width in pixels
        "grid": list(grid),  # rows, columns of codes
        "num_slots": len(layout.tokens),
        "slots": runs_of(layout.tokens),  # [id, count]; FREE (-1) holds a code
        "codebook_size": model.codebook_size,
        "code_ids": ranges_of(ids),  # [first id, count], in the order of codes
        "grammar": grammar_of(layout, ids),
    }


def runs_of(values: np.ndarray) -> list[list[int]]:
    """Equal neighbours once, as [value, count]."""
    parts = np.split(values, np.flatnonzero(np.diff(values)) + 1)
    return [[int(part[0]), len(part)] for part in parts]


def ranges_of(ids: Sequence[int] | np.ndarray) -> list[list[int]]:
    """Ids that count up by one, in the order given, as [first, count]."""
    values = np.asarray(ids)
    parts = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return [[int(part[0]), len(part)] for part in parts]


def _write_generation_config(folder: Path, settings: SamplingSettings, layout: ImageLayout) -> None:
    """What an engine uses where a request does not say: nothing of the base's may stay.

    SimpleAR's base, for one, has a repetition penalty for chats.
    """
    known = {}
    path = folder / "generation_config.json"
    if is_there(path):
        stored = json_of(path, dict[str, Any], "Restore the base's file.")
        known = {n: x for n, x in stored.items() if n in ("bos_token_id", "eos_token_id")}
    GenerationConfig(
        **known,
        do_sample=True,
        temperature=settings.temperature,
        top_k=0 if settings.top_k is None else settings.top_k,  # 0: all
        top_p=1.0 if settings.top_p is None else settings.top_p,
        max_new_tokens=len(layout.tokens),
    ).save_pretrained(folder)
