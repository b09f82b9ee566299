"""The page of ``mm-cca demo``, by gradio."""

from typing import Any

import gradio as gr
from PIL import Image

from mm_cca.errors import UserError
from mm_cca.tryout import Drawn, Tryout

TITLES = ("base", "base with guidance", "CCA, no guidance")
SIDE = 320
EXAMPLE = "a red apple"


def page_of(tryout: Tryout, prompt: str = EXAMPLE) -> gr.Blocks:
    """Prompt, seed, scale and dial above three pictures."""
    scales = tryout.recipe.sample.guidance_scales
    with gr.Blocks(title="mm_cca: with and without guidance", analytics_enabled=False) as page:
        gr.Markdown(
            "# With and without guidance\nOne prompt and one noise, three ways: the base, the base "
            "with classifier-free guidance (two forward passes per code), and the model that CCA "
            "trained, without guidance."
        )
        with gr.Row():
            text = gr.Textbox(prompt, label="Prompt", scale=3)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        with gr.Row():
            scale = gr.Slider(
                1, 10, scales[len(scales) // 2] if scales else 3, step=0.1, label="Guidance scale"
            )
            dial = gr.Slider(0, 2, 1, step=0.05, label="Dial of CCA: 0 is the base, 1 as trained")
        button = gr.Button("Draw", variant="primary")
        with gr.Row():
            pictures = [gr.Image(label=title, type="pil", height=SIDE) for title in TITLES]
        with gr.Row():
            costs = [gr.Markdown() for _ in TITLES]

        def draw(text: str, seed: float, scale: float, dial: float) -> list[Any]:
            try:
                drawn = tryout.draw(text, int(seed), scale, dial)
            except UserError as error:
                raise gr.Error(str(error)) from error
            return [*(enlarged(one.image) for one in drawn), *(told(one) for one in drawn)]

        gr.on([button.click, text.submit], draw, [text, seed, scale, dial], [*pictures, *costs])
    return page


def enlarged(image: Image.Image) -> Image.Image:
    """Gradio shows pictures at their own size, which a small model's is too small for."""
    times = max(1, SIDE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def told(drawn: Drawn) -> str:
    """What a picture took."""
    return f"`{drawn.name}`: {drawn.seconds:.2f} s, {drawn.forward_passes} forward passes"


def launch(tryout: Tryout, port: int | None) -> None:
    """Show the page on this machine until Ctrl-C."""
    page_of(tryout).launch(
        server_name="127.0.0.1", server_port=port, inbrowser=True, share=False, quiet=False
    )
