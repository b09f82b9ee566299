"""Arms: the combinations of weights and guidance that a run compares."""

from dataclasses import dataclass

from mm_cca.config.schema import Recipe, SampleConfig


@dataclass(frozen=True)
class Arm:
    """One way to sample: which weights, at which guidance scale.

    Attributes:
        source: one of ``schema.SOURCES``.
        guidance_scale: 1.0 is without guidance.
        negative_prompt: prompt of guidance's second forward pass; "" is the unconditional prompt.
        dial: 0.0 is the base, 1.0 the trained weights; always 1.0 for base and control.
        negative_number: number of ``negative_prompt`` among the recipe's non-empty ones, from 1.
        temperature: None is the recipe's own: sample.temperature, or the family's default.
    """

    source: str
    guidance_scale: float
    negative_prompt: str = ""
    dial: float = 1.0
    negative_number: int = 0
    temperature: float | None = None

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale != 1.0

    @property
    def name(self) -> str:
        name = self.source
        if self.dial != 1.0:
            name += f"+dial{self.dial:g}"
        if self.is_guided:
            name += f"+cfg{self.guidance_scale:g}"
        if self.is_guided and self.negative_prompt:
            name += f"+neg{self.negative_number}"
        return name


def arms_of(recipe: Recipe) -> list[Arm]:
    """Every arm of a recipe, base first."""
    sample = recipe.sample
    arms = [Arm("base", 1.0), *_guided("base", sample.guidance_scales, sample)]
    arms += [Arm("cca", 1.0), *_guided("cca", sample.cca_scales, sample)]
    arms += [Arm("cca", 1.0, dial=a) for a in sample.dial]
    if recipe.train.control:
        arms += [Arm("control", 1.0), *_guided("control", sample.control_scales, sample)]
    return [arm for arm in arms if arm.source in recipe.run.sources]


def _guided(source: str, scales: list[float], sample: SampleConfig) -> list[Arm]:
    """The guided arms of a source: every scale with every negative prompt."""
    non_empty = [text for text in sample.negative_prompts if text]
    return [
        Arm(source, scale, text, negative_number=non_empty.index(text) + 1 if text else 0)
        for text in sample.negative_prompts
        for scale in scales
    ]
