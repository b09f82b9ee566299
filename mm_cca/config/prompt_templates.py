"""Templates around prompts and captions, and what each family's authors write around theirs."""

from collections.abc import Iterable
from dataclasses import dataclass
from string import Formatter

FIELD = "prompt"
ALLOWED = (
    'null, or a text with {prompt} in it and no other field, such as "{prompt}, best quality"; '
    "write {{ and }} for braces"
)


@dataclass(frozen=True)
class AuthorsPrompts:
    """How the authors of a family ask for an image, beyond the form that the adapter gives.

    Attributes:
        template: for ``sample.prompt_template`` (and ``data.caption_template``); None: the prompt
            as it is.
        negative_prompt: for ``sample.negative_prompts``; "" is the unconditional prompt.
        source: where it is to be seen.
    """

    template: str | None
    negative_prompt: str
    source: str


AUTHORS = {
    "emu3": AuthorsPrompts(
        "{prompt} masterpiece, film grained, best quality.",
        "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, "
        "cropped, worst quality, low quality, normal quality, jpeg artifacts, signature, "
        "watermark, username, blurry.",
        "baaivision/Emu3, image_generation.py",
    ),
    # "You are a helpful assistant for t2i task" is part of the adapter's prompt.
    "emu3p5": AuthorsPrompts(None, "", "baaivision/Emu3.5, configs/example_config_t2i.py"),
    # Anole was trained on three prefixes, equally often; "draw a dog" is its README's example.
    "chameleon": AuthorsPrompts(
        "Draw a picture of {prompt}",
        "",
        "GAIR-NLP/anole, facilitating_image_generation/read_parquet.py",
    ),
    "janus": AuthorsPrompts(None, "", "deepseek-ai/Janus, generation_inference.py"),
    "lumina-mgpt": AuthorsPrompts(
        None, "", "Alpha-VLLM/Lumina-mGPT, lumina_mgpt/generate_examples/generate.py"
    ),
    # The instruction that Liquid was trained with is part of the adapter's prompt.
    "liquid": AuthorsPrompts(None, "", "FoundationVision/Liquid, evaluation/inference_t2i.py"),
    # Trained on twenty prefixes, equally often; its scripts draw with this one.
    "simplear": AuthorsPrompts(
        "A highly realistic image of {prompt}",
        "An image of aerial view, overexposed, low quality, deformation, a poor composition, "
        "bad hands, bad teeth, bad eyes, bad limbs, distortion",
        "wdrink/SimpleAR, generate.py",
    ),
}
"""By adapter. Recipes write them out; a family that is not here has not been looked at."""


def filled(template: str | None, texts: Iterable[str]) -> list[str]:
    """Each text in the template's place for it; without a template the texts as they are."""
    if template is None:
        return list(texts)
    return [template.format(**{FIELD: text}) for text in texts]


def is_template(template: str) -> bool:
    """Whether it has the field ``{prompt}``, and no other one and no stray brace."""
    try:
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError:  # a single brace
        return False
    return bool(fields) and all(field == (FIELD, "", None) for field in fields)
