"""The gradio page of ``mm-cca demo``."""

from typing import Any

import gradio as gr
from PIL import Image

from mm_cca.cli.commands.demo_session import DemoImage, DemoSession
from mm_cca.cli.commands.serve import HOST
from mm_cca.errors import UserError

BASE_TITLES = ("base", "base with guidance")
SIDE = 320
EXAMPLE = "a red apple"


def page_of(session: DemoSession, prompt: str = EXAMPLE) -> gr.Blocks:
    """Prompt, seed, guidance scale and dial above three images."""
    scales = session.recipe.sample.guidance_scales
    start = scales[len(scales) // 2] if scales else 3
    trained = session.terms.model_name
    how = "with the same guidance" if session.terms.is_finetuning else "without guidance"
    titles = (*BASE_TITLES, f"{trained}, {how}")
    with gr.Blocks(title="mm_cca: with and without guidance", analytics_enabled=False) as page:
        gr.Markdown(
            "# With and without guidance\nThe same prompt and random numbers, sampled three ways: "
            "the base, the base with classifier-free guidance (two forward passes per code), and "
            f"{trained} {how}.{template_of(session)}"
        )
        with gr.Row():  # on a phone, anything at least SIDE wide gets its own row
            text = gr.Textbox(prompt, label="Prompt", scale=3, min_width=SIDE)
            seed = gr.Number(0, label="Seed", precision=0)
        with gr.Row():
            scale = gr.Slider(1, 10, start, step=0.1, label="Guidance scale", min_width=SIDE)
            dial_label = f"Dial of {trained}: 0 is the base, 1 as trained"
            dial = gr.Slider(0, 2, 1, step=0.05, label=dial_label, min_width=SIDE)
        button = gr.Button("Sample", variant="primary")
        with gr.Row():
            images, costs = zip(*map(image_column, titles), strict=True)

        def sample(text: str, seed: int | None, scale: float, dial: float) -> list[Any]:
            try:
                if seed is None:
                    raise UserError("the seed is empty; enter a whole number, 0 or more.")
                samples = session.sample(text, seed, scale, dial)
            except UserError as error:
                # Not gr.Error, which covers the images and prints a traceback.
                gr.Warning(str(error))
                return [gr.skip()] * 2 * len(titles)
            return [*(enlarged(one.image) for one in samples), *(cost_of(one) for one in samples)]

        gr.on(
            [button.click, text.submit],
            sample,
            [text, seed, scale, dial],
            [*images, *costs],
            show_progress_on=images,
        )
    return page


def template_of(session: DemoSession) -> str:
    """A sentence on ``sample.prompt_template``, after a space; empty without one."""
    template = session.recipe.sample.prompt_template
    return "" if template is None else f" Your prompt is put into the template `{template}`."


def image_column(title: str) -> tuple[gr.Image, gr.Markdown]:
    """A column with title, image and cost (seconds and forward passes)."""
    with gr.Column(min_width=SIDE):
        gr.Markdown(f"### {title}")  # gradio's own label would cover a corner of the image
        image = gr.Image(
            format="png",  # webp would blur small images
            type="pil",
            height=SIDE,
            show_label=False,
            alt_text=title,
            buttons=["download", "fullscreen"],  # no upload
        )
        return image, gr.Markdown()


def enlarged(image: Image.Image) -> Image.Image:
    """Small images scaled up to about ``SIDE``, as gradio shows images at their own size."""
    times = max(1, SIDE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def cost_of(sample: DemoImage) -> str:
    """Seconds and forward passes of an image, as text."""
    return f"`{sample.name}`: {sample.seconds:.2f} s, {sample.forward_passes} forward passes"


def launch(session: DemoSession, port: int | None) -> None:
    """Serve the page on this machine until Ctrl-C.

    Raises:
        UserError: the port is taken or not allowed.
    """
    page = page_of(session)
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port or None,  # gradio would show port 0 as the address
            inbrowser=True,
            share=False,
            quiet=True,  # no advertisement of public links
            footer_links=[],
            run_history=False,  # the browser keeps no images
            prevent_thread_lock=True,
        )
    except (OSError, OverflowError) as error:
        cause = str(error).partition(". ")[0].rstrip(".")  # without the advice on launch()
        if not port:
            raise UserError(f"the page can't be opened on {HOST}: {cause}.") from error
        raise UserError(
            f"--port is {port}, which can't be opened on {HOST}: {cause}. Allowed: a free port up "
            "to 65535; leave --port out for one from 7860 on."
        ) from error
    print(f"serving {address} (Ctrl-C ends it)", flush=True)
    page.block_thread()
