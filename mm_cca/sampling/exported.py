"""``mm_cca.json``: what an exported folder says of how its model draws, beside the weights."""

import json
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from mm_cca.config.schema import ModelConfig, Recipe, SampleConfig
from mm_cca.errors import UserError
from mm_cca.runs.files import write_json

EXPORT_FILE = "mm_cca.json"


@dataclass(frozen=True)
class ExportFacts:
    """What the weights alone do not say.

    Attributes:
        adapter, base, dtype, image_tokenizer, tokenizer: the recipe's ``model``; ``base`` is its
            path, which a LoRA needs.
        is_lora: whether the folder holds an adapter for ``base``, not a whole model.
        image_size: height and width in pixels.
        prompt_template, negative_prompt, temperature, top_k, top_p: as in the recipe's ``sample``.
        mm_cca: version that wrote it.
    """

    adapter: str
    base: str
    dtype: str
    image_tokenizer: str | None
    tokenizer: str | None
    is_lora: bool
    image_size: list[int]
    prompt_template: str | None
    negative_prompt: str
    temperature: float | None
    top_k: int | None
    top_p: float | None
    mm_cca: str

    @property
    def model(self) -> ModelConfig:
        """The base, as a recipe names it."""
        return ModelConfig(
            adapter=self.adapter,
            path=self.base,
            dtype=self.dtype,  # type: ignore[arg-type]
            image_tokenizer=self.image_tokenizer,
            tokenizer=self.tokenizer,
        )

    @property
    def sample(self) -> SampleConfig:
        """How it is sampled."""
        return SampleConfig(
            prompt_template=self.prompt_template,
            negative_prompts=[self.negative_prompt],
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )


def write_facts(folder: Path, recipe: Recipe, *, is_lora: bool) -> None:
    """Write ``mm_cca.json`` for a model of a run."""
    model, sample = recipe.model, recipe.sample
    facts = ExportFacts(
        adapter=model.adapter,
        base=model.path,
        dtype=model.dtype,
        image_tokenizer=model.image_tokenizer,
        tokenizer=model.tokenizer,
        is_lora=is_lora,
        image_size=list(recipe.data.image_size),
        prompt_template=sample.prompt_template,
        negative_prompt=sample.negative_prompts[0],
        temperature=sample.temperature,
        top_k=sample.top_k,
        top_p=sample.top_p,
        mm_cca=metadata.version("mm-cca"),
    )
    write_json(folder / EXPORT_FILE, asdict(facts))


def read_facts(folder: Path) -> ExportFacts:
    """Read ``mm_cca.json``; keys of a later version are ignored.

    Raises:
        UserError: it is damaged or lacks a key.
    """
    path = folder / EXPORT_FILE
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return ExportFacts(**{entry.name: stored[entry.name] for entry in fields(ExportFacts)})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} can't be read ({type(error).__name__}: {error}); export the run again."
        ) from error
