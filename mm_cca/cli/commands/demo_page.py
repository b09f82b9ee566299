"""The page of ``mm-cca demo``, by gradio."""

from typing import Any

import gradio as gr
from PIL import Image

from mm_cca.cli.commands.demo_session import DemoImage, DemoSession
from mm_cca.cli.commands.serve import HOST
from mm_cca.errors import UserError

TITLES = ("base", "base with guidance", "CCA, no guidance")
SIDE = 320
EXAMPLE = "a red apple"


def page_of(session: DemoSession, prompt: str = EXAMPLE) -> gr.Blocks:
    """Prompt, seed, scale and dial above three pictures."""
    scales = session.recipe.sample.guidance_scales
    start = scales[len(scales) // 2] if scales else 3
    with gr.Blocks(title="mm_cca: with and without guidance", analytics_enabled=False) as page:
        gr.Markdown(
            "# With and without guidance\nOne prompt and one noise, three ways: the base, the base "
            "with classifier-free guidance (two forward passes per code), and the model that CCA "
            "trained, without guidance."
        )
        with gr.Row():  # what is SIDE wide at least has a row of its own on a phone
            text = gr.Textbox(prompt, label="Prompt", scale=3, min_width=SIDE)
            seed = gr.Number(0, label="Seed", precision=0)
        with gr.Row():
            scale = gr.Slider(1, 10, start, step=0.1, label="Guidance scale", min_width=SIDE)
            meaning = "Dial of CCA: 0 is the base, 1 as trained"
            dial = gr.Slider(0, 2, 1, step=0.05, label=meaning, min_width=SIDE)
        button = gr.Button("Draw", variant="primary")
        with gr.Row():
            pictures, costs = zip(*map(place, TITLES), strict=True)

        def draw(text: str, seed: int | None, scale: float, dial: float) -> list[Any]:
            try:
                if seed is None:
                    raise UserError("the seed is empty; write a whole number from 0 on.")
                drawn = session.draw(text, seed, scale, dial)
            except UserError as error:
                # Not as gr.Error, which covers the pictures with its name and prints a traceback.
                gr.Warning(str(error))
                return [gr.skip()] * 2 * len(TITLES)
            return [*(enlarged(one.image) for one in drawn), *(cost_of(one) for one in drawn)]

        gr.on(
            [button.click, text.submit],
            draw,
            [text, seed, scale, dial],
            [*pictures, *costs],
            show_progress_on=pictures,
        )
    return page


def place(title: str) -> tuple[gr.Image, gr.Markdown]:
    """A picture between its title and what it will have taken."""
    with gr.Column(min_width=SIDE):
        gr.Markdown(f"### {title}")  # gradio's own label would cover a corner of the picture
        picture = gr.Image(
            format="png",  # or webp smears small pictures
            type="pil",
            height=SIDE,
            show_label=False,
            alt_text=title,
            buttons=["download", "fullscreen"],  # without the one that uploads
        )
        return picture, gr.Markdown()


def enlarged(image: Image.Image) -> Image.Image:
    """Gradio shows pictures at their own size, which a small model's is too small for."""
    times = max(1, SIDE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def cost_of(drawn: DemoImage) -> str:
    """What a picture took."""
    return f"`{drawn.name}`: {drawn.seconds:.2f} s, {drawn.forward_passes} forward passes"


def launch(session: DemoSession, port: int | None) -> None:
    """Show the page on this machine until Ctrl-C.

    Raises:
        UserError: the port is taken or not allowed.
    """
    page = page_of(session)
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port or None,  # 0 is any, which gradio would show as the address
            inbrowser=True,
            share=False,
            quiet=True,  # it would tell of a public link
            footer_links=[],
            run_history=False,  # or the browser keeps what was drawn
            prevent_thread_lock=True,
        )
    except (OSError, OverflowError) as error:
        cause = str(error).partition(". ")[0].rstrip(".")  # then comes advice on launch()
        if not port:
            raise UserError(f"the page can't be opened on {HOST}: {cause}.") from error
        raise UserError(
            f"--port is {port}, which can't be opened on {HOST}: {cause}. Allowed: a free port up "
            "to 65535; leave --port out for one from 7860 on."
        ) from error
    print(f"serving {address} (Ctrl-C ends it)", flush=True)
    page.block_thread()
