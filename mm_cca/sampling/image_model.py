"""Opens what can draw: a run folder, an exported folder, a checkpoint folder or a hub name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import UnifiedModel
from mm_cca.adapters.checkpoint_files import is_hub_name
from mm_cca.adapters.detect import adapter_of
from mm_cca.adapters.loading import read_config
from mm_cca.config.schema import SOURCES, DataConfig, ModelConfig, Recipe
from mm_cca.config.shipped import IMAGE_SIZES, shipped
from mm_cca.errors import UserError
from mm_cca.runs.folder import open_run
from mm_cca.sampling.exported import EXPORT_FILE, read_facts
from mm_cca.sampling.weights import DialledModel, for_sampling, load_source, with_lora

NO_DIAL = "it is {}, which knows no base to go back to"


@dataclass(frozen=True)
class ImageModel:
    """A model, and everything that decides its images but prompts, seed, guidance and dial.

    Attributes:
        name: what it was opened from.
        recipe: its ``model``, ``sample``, ``data.image_size`` and ``loss.whole_vocabulary``.
        image_size: height and width in pixels that it draws unless told otherwise; None for a
            family that mm_cca does not ship.
        is_any_size: whether other sizes are as good: nothing is known of what it was trained on.
        no_dial: why ``dial`` must be 1; None: any dial.
    """

    name: str
    recipe: Recipe
    image_size: tuple[int, int] | None
    is_any_size: bool
    no_dial: str | None
    _weights: DialledModel = field(repr=False)

    def at(self, dial: float = 1.0) -> UnifiedModel:
        """The model at ``dial``: 0 is the base, 1 the weights as trained.

        Raises:
            UserError: a dial other than 1 where there is no base, or the base can't be read.
        """
        if dial != 1.0 and self.no_dial is not None:
            raise UserError(f"dial is {dial:g}; allowed for {self.name}: 1, as {self.no_dial}.")
        return self._weights.at(dial)


def open_model(
    path: str | Path,
    *,
    source: str = "cca",
    device: str | torch.device | None = None,
    keys: Mapping[str, str | None],
) -> ImageModel:
    """Open a run folder, an exported folder, a checkpoint folder or a hub name.

    Args:
        path: of any of these.
        source: of a run: ``base``, ``cca`` (what its recipe trained) or ``control``.
        device: None: a GPU if there is one.
        keys: of a recipe's ``model``, which replace what the run, the export or the checkpoint
            says; None: they don't.

    Raises:
        UserError: none of these, a run that is not trained, or a checkpoint that can't be read.
    """
    name, given = str(path), {key: value for key, value in keys.items() if value is not None}
    _refuse_dtype(given.get("dtype"))
    place = None if device is None else torch.device(device)
    if source not in SOURCES:
        raise UserError(f"source is {source!r}; allowed: {', '.join(SOURCES)}.")
    folder = _exported_on_hub(name) or Path(path)
    if (folder / "recipe.yaml").exists():
        return _of_run(folder, source, place, given)
    if source != "cca":
        raise UserError(f"source is {source!r}; allowed for {name}, which is no run: cca.")
    if (folder / EXPORT_FILE).exists():
        return _of_export(name, folder, place, given)
    return _of_checkpoint(name, place, given)


def _of_run(
    folder: Path, source: str, device: torch.device | None, given: dict[str, Any]
) -> ImageModel:
    recipe, run = open_run(folder)
    recipe = replace(recipe, model=replace(recipe.model, **given))

    def load(dial: float) -> UnifiedModel:
        return load_source(recipe, run, source, dial=dial, device=device)

    no_dial = None if source == "cca" else f"source is {source!r}"
    return _opened(str(folder), recipe, load, no_dial=no_dial, is_any_size=False)


def _of_export(
    name: str, folder: Path, device: torch.device | None, given: dict[str, Any]
) -> ImageModel:
    facts = read_facts(folder)
    base = replace(facts.model, **given)
    config = base if facts.is_lora else replace(base, path=str(folder))
    data = DataConfig(path="", image_size=list(facts.image_size))
    recipe = Recipe(model=config, data=data, sample=facts.sample)

    def load(dial: float) -> UnifiedModel:
        model = load_checkpoint(config)
        return for_sampling(with_lora(model, folder, dial) if facts.is_lora else model, device)

    no_dial = None if facts.is_lora else NO_DIAL.format("an exported model of its own")
    return _opened(name, recipe, load, no_dial=no_dial, is_any_size=False)


def _of_checkpoint(name: str, device: torch.device | None, given: dict[str, Any]) -> ImageModel:
    adapter = given.get("adapter") or adapter_of(name)
    dtype = given.get("dtype") or _dtype_of(name)
    config = ModelConfig(**{"path": name, **given, "adapter": adapter, "dtype": dtype})

    def load(dial: float) -> UnifiedModel:
        return for_sampling(load_checkpoint(config), device)

    return _opened(
        name,
        _recipe_of(config),
        load,
        no_dial=NO_DIAL.format("a plain checkpoint"),
        is_any_size=True,
    )


def wrapped(model: UnifiedModel) -> ImageModel:
    """A model that ``mm_cca.load_adapter`` gave, as it is."""
    recipe = _recipe_of(ModelConfig(adapter=model.name, path=model.name))
    no_dial = NO_DIAL.format("a model without its run")
    return _opened(model.name, recipe, lambda dial: model, no_dial=no_dial, is_any_size=True)


def _recipe_of(config: ModelConfig) -> Recipe:
    """For a checkpoint of which nothing else is known."""
    size = IMAGE_SIZES.get(config.adapter)
    return Recipe(model=config, data=DataConfig(path="", image_size=list(size or ())))


def _opened(
    name: str,
    recipe: Recipe,
    load: Callable[[float], UnifiedModel],
    *,
    no_dial: str | None,
    is_any_size: bool,
) -> ImageModel:
    """With the weights in memory, so that what is wrong is told now."""
    size = recipe.data.image_size
    opened = ImageModel(
        name=name,
        recipe=recipe,
        image_size=(size[0], size[1]) if size else None,
        is_any_size=is_any_size,
        no_dial=no_dial,
        _weights=DialledModel(load),
    )
    opened.at(1.0)
    return opened


def _refuse_dtype(dtype: object) -> None:
    allowed = get_args(get_type_hints(ModelConfig)["dtype"])
    if dtype is not None and dtype not in allowed:
        raise UserError(f"dtype is {dtype!r}; allowed: {', '.join(allowed)}.")


def _dtype_of(path: str) -> str:
    """What the config says the weights are; float32 if it says nothing."""
    config = read_config(shipped(path))
    text = config.get("text_config") or {}
    found = [part.get(key) for part in (config, text) for key in ("dtype", "torch_dtype")]
    allowed = get_args(get_type_hints(ModelConfig)["dtype"])
    return next((str(name) for name in found if name in allowed), "float32")


def _exported_on_hub(name: str) -> Path | None:
    """The downloaded folder of a hub name that ``mm-cca push`` wrote; None for any other path."""
    if Path(name).exists() or not is_hub_name(name):
        return None
    try:
        hf_hub_download(name, EXPORT_FILE)
    except (HfHubHTTPError, OSError, ValueError):
        return None  # no such repository or file, or no network: read as a checkpoint, which says
    return Path(snapshot_download(name))
