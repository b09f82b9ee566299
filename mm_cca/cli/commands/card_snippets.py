"""How to draw with an exported model, for its card: lines that tests run as they stand."""

import json
from typing import Any

from mm_cca.adapters.families import kind_of
from mm_cca.adapters.loading import FILE_ERRORS, CheckpointError, read_config
from mm_cca.config.prompt_templates import filled
from mm_cca.config.schema import Recipe
from mm_cca.config.shipped import shipped
from mm_cca.runs.folder import terms_of_training

PROMPT = "a red owl"
NEARLY_1 = 1.000001
"""Janus's stock ``generate`` fails at 1; this moves no log-probability by more than rounding."""
EMU3_PIXELS = 8
"""Pixels per code that ``Emu3Processor`` takes for granted, whatever the image tokenizer's are."""
_AS_THE_BASE = (
    "The authors' scripts read this folder as they read the base (set their guidance to 1), and "
    "plain transformers as `{stock}`; codes follow the tokenizer's vocabulary."
)
_NO_IMAGES = "Plain transformers can't generate images with this family."
OTHERS = {
    "emu3p5": "BAAI's own code reads the folder (set `classifier_free_guidance` to 1), and plain "
    "transformers as `Qwen3ForCausalLM`.",
    "chameleon": _NO_IMAGES,
    "lumina-mgpt": _NO_IMAGES,
    "liquid": _AS_THE_BASE.format(stock="GemmaForCausalLM"),
    "simplear": _AS_THE_BASE.format(stock="Qwen2ForCausalLM"),
}
"""Families that no stock class draws with, and what else reads their folders."""
FOR_ENGINE = "`mm-cca export RUN DIR --for-engine` writes it for a stock engine (vLLM)."
JANUS_TOLD = (
    "With transformers. Its `generate` always makes two passes for Janus and fails at scale 1, "
    'where 1.000001 draws the codes that no guidance draws. (`pipeline("any-to-any")` fails at 1 '
    "too, and in transformers 5.24 at any scale, because it can't make a picture of the codes.)"
)
EMU3 = """\
import torch
from transformers import Emu3ForConditionalGeneration, Emu3Processor

{load}
size = {{"ratio": "{columns}:{rows}", "image_area": {area}}}  # {rows} rows of {columns} codes
inputs = processor(
    text=["{prompt}"], return_for_image_generation=True, return_tensors="pt", **size
).to(model.device)
height, width = inputs.pop("image_sizes")[0]
start, words = inputs["input_ids"].shape[1], model.vocabulary_mapping


def allowed(_, ids):  # codes, and a token at the end of each row
    ends_row = (len(ids) - start + 1) % (width + 1) == 0
    return [words.eol_token_id] if ends_row else words.image_tokens


{unconditional}tokens = model.generate(
    **inputs,
{guidance}
    do_sample=True,
    max_new_tokens=height * (width + 1),
    prefix_allowed_tokens_fn=allowed,
)[:, start:]
tokens = torch.nn.functional.pad(tokens, (0, 3))  # in place of the three that follow an image
image = model.decode_image_tokens(image_tokens=tokens, height=height, width=width)
image = processor.postprocess(list(image.detach().float()), return_tensors="PIL.Image.Image")
image["pixel_values"][0].save("image.png")"""
EMU3_UNCONDITIONAL = """\
empty = processor(text=[""], return_for_image_generation=True, return_tensors="pt", **size)
empty = empty.to(model.device)  # the prompt of the second pass
"""
EMU3_GUIDANCE = """\
    guidance_scale={scale:g},
    negative_prompt_ids=empty["input_ids"],
    negative_prompt_attention_mask=empty["attention_mask"],"""
JANUS = """\
from PIL import Image
from transformers import JanusForConditionalGeneration, JanusProcessor

{load}
chat = [{{"role": "user", "content": [{{"type": "text", "text": "{prompt}"}}]}}]
text = processor.apply_chat_template(chat, add_generation_prompt=True)
inputs = processor(text=[text], generation_mode="image", return_tensors="pt").to(model.device)
codes = model.generate(**inputs, generation_mode="image", do_sample=True, guidance_scale={scale})
image = (model.decode_image_tokens(codes)[0].detach().float() + 1) * 127.5
Image.fromarray(image.round().clamp(0, 255).byte().cpu().numpy()).save("image.png")"""
WHOLE = """\
name = "{name}"
processor = {family}Processor.from_pretrained(name)
model = {family}ForConditionalGeneration.from_pretrained(name, device_map="auto")"""
LORA = """\
from peft import PeftModel

base = "{base}"
processor = {family}Processor.from_pretrained(base)
model = {family}ForConditionalGeneration.from_pretrained(
    base, dtype="{dtype}", device_map="auto"
)
model = PeftModel.from_pretrained(model, "{name}")"""


def how_to_draw(recipe: Recipe, name: str, *, is_lora: bool) -> str:
    """The card's lines for Python: with mm_cca, and with stock classes where these can.

    Args:
        recipe: of the run.
        name: folder or hub name of the export.
        is_lora: whether it is an adapter that needs the base.
    """
    guided = guidance_of(recipe)
    parts = [
        "With `mm_cca` (the same seed gives the same image):",
        _block(_with_mm_cca(name, guided)),
        *_with_stock_classes(recipe, name, guided, is_lora=is_lora),
        FOR_ENGINE,
    ]
    return "\n\n".join(parts)


def _with_stock_classes(
    recipe: Recipe, name: str, guided: float | None, *, is_lora: bool
) -> list[str]:
    adapter = recipe.model.adapter
    # Between quotes, a text in JSON is one in Python.
    prompt = json.dumps(filled(recipe.sample.prompt_template, [PROMPT])[0], ensure_ascii=False)[
        1:-1
    ]
    if adapter == "janus" and not (is_lora and _is_deepseeks(recipe.model.path)):
        lines = JANUS.format(
            load=_load("Janus", recipe, name, is_lora=is_lora),
            prompt=prompt,
            scale=NEARLY_1 if guided is None else guided,
        )
        told = JANUS_TOLD if guided is None else "With transformers:"
        return [told, _block(lines)]
    if adapter == "emu3":
        rows, columns = _emu3_grid(recipe)
        lines = EMU3.format(
            load=_load("Emu3", recipe, name, is_lora=is_lora),
            prompt=prompt,
            rows=rows,
            columns=columns,
            area=rows * columns * EMU3_PIXELS**2,
            unconditional="" if guided is None else EMU3_UNCONDITIONAL,
            guidance="    guidance_scale=1.0,"
            if guided is None
            else EMU3_GUIDANCE.format(scale=guided),
        )
        return ["With transformers" + (" and peft:" if is_lora else ":"), _block(lines)]
    return [OTHERS[adapter]] if adapter in OTHERS else []


def _with_mm_cca(name: str, guided: float | None) -> str:
    scale = "" if guided is None else f", guidance_scale={guided:g}"
    return (
        "import mm_cca\n\n"
        f'images = mm_cca.generate("{name}", ["{PROMPT}"], seed=0{scale})\n'
        'images[0].save("image.png")'
    )


def _load(family: str, recipe: Recipe, name: str, *, is_lora: bool) -> str:
    lines = LORA if is_lora else WHOLE
    base, dtype = shipped(recipe.model.path), recipe.model.dtype
    return lines.format(family=family, name=name, base=base, dtype=dtype)


def _block(code: str) -> str:
    return f"```python\n{code}\n```"


def guidance_of(recipe: Recipe) -> float | None:
    """The scale to guide a plain fine-tune with; None for a model that needs no guidance."""
    if not terms_of_training(recipe).is_finetuning:
        return None
    return next(iter([*recipe.sample.cca_scales, *recipe.sample.guidance_scales]), None)


def _emu3_grid(recipe: Recipe) -> tuple[int, int]:
    """Rows and columns of codes, from the base's config; 8 pixels to a code if it can't be read."""
    levels = _config(recipe.model.path).get("vq_config", {}).get("channel_multiplier", [1, 2, 2, 4])
    height, width = recipe.data.image_size
    return height >> (len(levels) - 1), width >> (len(levels) - 1)


def _is_deepseeks(path: str) -> bool:
    """Whether stock classes can't read a Janus, because it is in DeepSeek's own layout."""
    return kind_of(_config(path)).name == "janus-deepseek"


def _config(path: str) -> dict[str, Any]:
    try:
        return read_config(shipped(path))
    except (CheckpointError, *FILE_ERRORS):
        return {}
