"""The gradio page of ``mm-cca demo``."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from mm_cca.cli.commands.demo_session import MOST_IMAGES, DemoImages, DemoSession
from mm_cca.cli.commands.report_server import HOST
from mm_cca.errors import UserError

BASE_TITLES = ("base", "base with guidance")
SIDE = 320
EXAMPLE = "a red apple"
FEWEST_IMAGES = 4
TILE = 192
"""Side of one image in pixels, at least about."""
HEIGHT = 400
GAP = 4
MODELS = "models"
"""Whatever draws takes turns, as the models are shared."""
DRAWING = "drawing …"
WAITING = "waiting …"


def page_of(session: DemoSession) -> gr.Blocks:
    """Prompt and seeds above three columns, one per arm; guidance and dial stand in theirs.

    It draws the run's first prompt as it opens.
    """
    scales = session.recipe.sample.guidance_scales
    start = scales[len(scales) // 2] if scales else 3
    trained = session.terms.model_name
    how = "with the same guidance" if session.terms.is_finetuning else "without guidance"
    titles = (*BASE_TITLES, f"{trained}, {how}")
    examples = session.examples
    with gr.Blocks(title="mm_cca: with and without guidance", analytics_enabled=False) as page:
        gr.Markdown(
            "# With and without guidance\nThe same prompt and random numbers, sampled three ways: "
            "the base, the base with classifier-free guidance (two forward passes per code), and "
            f"{trained} {how}.{template_of(session)}"
        )
        with gr.Row():  # on a phone, anything at least SIDE wide gets its own row
            text = gr.Textbox((examples or [EXAMPLE])[0], label="Prompt", scale=3, min_width=SIDE)
            seed = gr.Number(0, label="First seed", precision=0)
            count = gr.Slider(
                FEWEST_IMAGES, MOST_IMAGES, FEWEST_IMAGES, step=1, label="Images per arm"
            )
        chosen = None
        if examples:
            chosen = gr.Examples(
                [[example] for example in examples], [text], label="Prompts of this run"
            )
        button = gr.Button("Sample", variant="primary")
        with gr.Row():
            with gr.Column(min_width=SIDE):
                base = arm_of(titles[0])
            with gr.Column(min_width=SIDE):
                guided = arm_of(titles[1])
                scale = gr.Slider(1, 10, start, step=0.1, label="Guidance scale", min_width=SIDE)
            with gr.Column(min_width=SIDE):
                ours = arm_of(titles[2])
                label = f"Dial of {trained}: 0 is the base, 1 as trained"
                dial = gr.Slider(0, 2, 1, step=0.05, label=label, min_width=SIDE)
        images, costs = zip(base, guided, ours, strict=True)

        def sample(
            text: str, seed: int | None, count: int, scale: float, dial: float
        ) -> Iterator[list[Any]]:
            try:
                if seed is None:
                    raise UserError("the seed is empty; enter a whole number, 0 or more.")
                arms = session.draw(text, seed, scale, dial, int(count))
                yield from one_by_one(arms, seed)
            except UserError as error:
                # Not gr.Error, which covers the images and prints a traceback.
                gr.Warning(str(error))
                yield [gr.skip()] * 2 * len(titles)

        inputs, outputs = [text, seed, count, scale, dial], [*images, *costs]
        gr.on(
            [page.load, button.click, text.submit],
            sample,
            inputs,
            outputs,
            show_progress_on=images,
            concurrency_id=MODELS,
        )
        if chosen is not None:
            chosen.load_input_event.then(sample, inputs, outputs, concurrency_id=MODELS)
    return page


def one_by_one(arms: Iterator[DemoImages], seed: int) -> Iterator[list[Any]]:
    """The values of all images, then of all costs, after every arm; the others stay as they are."""
    num_arms = len(BASE_TITLES) + 1
    for done in range(num_arms + 1):
        values: list[Any] = [gr.skip()] * 2 * num_arms
        if done > 0:
            drawn = next(arms)
            values[done - 1] = sheet_of(drawn.images)
            values[num_arms + done - 1] = cost_of(drawn, seed)
        if done < num_arms:
            values[num_arms + done] = DRAWING
        if done == 0:
            values[num_arms + 1 :] = [WAITING] * (num_arms - 1)
        yield values


def template_of(session: DemoSession) -> str:
    """A sentence on ``sample.prompt_template``, after a space; empty without one."""
    template = session.recipe.sample.prompt_template
    return "" if template is None else f" Your prompt is put into the template `{template}`."


def arm_of(title: str) -> tuple[gr.Image, gr.Markdown]:
    """Title, images and cost (seconds and forward passes) of an arm."""
    gr.Markdown(f"### {title}")  # gradio's own label would cover a corner of the image
    image = gr.Image(
        format="png",  # webp would blur small images
        type="pil",
        height=HEIGHT,
        show_label=False,
        alt_text=title,
        buttons=["download", "fullscreen"],  # no upload
    )
    return image, gr.Markdown()


def sheet_of(images: Sequence[Image.Image]) -> Image.Image:
    """All images of an arm in a square grid, small ones enlarged, row by row."""
    tiles = [enlarged(image) for image in images]
    columns = math.ceil(math.sqrt(len(tiles)))
    width, height = tiles[0].width + GAP, tiles[0].height + GAP
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGBA", (columns * width - GAP, rows * height - GAP))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * width, number // columns * height))
    return sheet


def enlarged(image: Image.Image) -> Image.Image:
    """Small images scaled up to about ``TILE``, as gradio shows images at their own size."""
    times = max(1, TILE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def cost_of(drawn: DemoImages, seed: int) -> str:
    """Seeds of an arm's images, and seconds and forward passes of each, as text."""
    last = seed + len(drawn.images) - 1
    return (
        f"`{drawn.name}`: seeds {seed} to {last}, {drawn.seconds:.2f} s and "
        f"{drawn.forward_passes} forward passes each"
    )


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
