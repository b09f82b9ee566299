"""The page of ``mm-cca demo`` in headless Chromium, on a desktop and on a phone."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from mm_cca.cli.commands.demo_session import DemoSession
from tests.support import runs
from tests.support.training import at

TITLES = ("base", "base with guidance", "CCA, without guidance")
SCALE, DIAL = "number input for Guidance scale", "number input for Dial of CCA"
COST = r"^[\w.+]+: seeds {first} to {last}, \d+\.\d\d s and \d+ forward passes each$"
COUNT = 4
OUTSIDE = re.compile(r"^(?!https?://(127\.0\.0\.1|localhost)[:/])")
Open = Callable[..., Page]


@dataclass(frozen=True)
class Served:
    """A running ``mm-cca demo``."""

    run: Path
    address: str
    stderr: Path


@pytest.fixture(scope="module")
def served(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Started as a user does; it must make no requests to other hosts and end without errors."""
    folder = tmp_path_factory.mktemp("demo")
    # So far from the base that the trained model gives another image.
    runs.do(at(prepared, folder), "train.max_steps=3", "train.learning_rate=3e-2")
    stderr = folder / "stderr"
    with socket.create_server(("127.0.0.1", 0)) as proxy, stderr.open("w") as file:
        outside = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environment = {"http_proxy": outside, "https_proxy": outside, "all_proxy": outside}
        environment |= {name.upper(): value for name, value in environment.items()}
        environment |= {"no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}
        environment["BROWSER"] = "true"  # a program that opens nothing
        environment["GRADIO_TEMP_DIR"] = str(folder / "gradio")
        server = subprocess.Popen(
            [sys.executable, "-m", "mm_cca.cli", "demo", str(folder / "run")],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
        try:
            assert server.stdout
            line = server.stdout.readline()
            assert line.startswith("serving http://127.0.0.1:"), stderr.read_text()
            yield Served(folder / "run", line.split()[1], stderr)
            assert requests_to(proxy) == []
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=30)
        finally:
            server.kill()
    assert server.returncode == 0
    assert "Traceback" not in stderr.read_text()


def requests_to(proxy: socket.socket) -> list[str]:
    """The first lines of all requests that the proxy received."""
    proxy.setblocking(False)
    lines = []
    while True:
        try:
            connection, _ = proxy.accept()
        except BlockingIOError:
            return lines
        with connection:
            connection.settimeout(10)
            lines.append(connection.recv(1000).decode(errors="replace").splitlines()[0])


@pytest.fixture
def open_page(browser: Browser, served: Served) -> Iterator[Open]:
    """Opens the page; no errors and no requests to other hosts are allowed."""
    contexts, errors, outside = [], [], []

    def opened(*, width: int = 1280) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 800})
        contexts.append(context)
        context.route(OUTSIDE, lambda route: (outside.append(route.request.url), route.abort()))
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served.address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert outside == [], "the page requests other hosts"
    assert errors == []


def submit(page: Page, fields: dict[str, str]) -> None:
    """Fill in fields by their labels, or parts of them, and press the button, once the images that
    the page draws as it opens are there."""
    for label, value in fields.items():
        page.get_by_label(label, exact=label == "Prompt").fill(value)
    page.get_by_role("button", name="Sample").click()


def title_of(page: Page, title: str) -> Locator:
    return page.get_by_role("heading", name=title, exact=True)


def costs(page: Page, seed: int) -> Locator:
    """Seconds and forward passes of the images from this seed on, once all are there."""
    told = re.compile(COST.format(first=seed, last=seed + COUNT - 1))
    found = page.locator("p").filter(has_text=told)
    found.nth(2).wait_for()
    return found


def image_files(page: Page) -> list[bytes]:
    """The files of the three images, once all are there."""
    files = []
    for title in TITLES:
        image = page.get_by_alt_text(title, exact=True)
        image.evaluate("image => image.decode()")
        assert image.evaluate("image => image.naturalWidth") == 2 * 192 + 4, "large enough to see"
        files.append(page.request.get(str(image.get_attribute("src"))).body())
    return files


def sample(page: Page, prompt: str, seed: int) -> list[bytes]:
    costs(page, 0)
    submit(page, {"Prompt": prompt, "First seed": str(seed)})
    costs(page, seed)
    return image_files(page)


def pixels(png: bytes) -> list[np.ndarray]:
    """The four images of a sheet at their original size."""
    sheet = Image.open(io.BytesIO(png)).convert("RGB")
    places = [(left, top) for top in (0, 196) for left in (0, 196)]
    tiles = [sheet.crop((left, top, left + 192, top + 192)) for left, top in places]
    return [np.array(tile.resize((16, 16), Image.Resampling.NEAREST)) for tile in tiles]


def test_it_opens_with_a_prompt_of_the_run_and_draws_it(open_page: Open, served: Served):
    page = open_page()
    assert page.get_by_role("heading", level=1).inner_text() == "With and without guidance"
    examples = DemoSession(served.run).examples
    assert page.get_by_label("Prompt", exact=True).input_value() == examples[0]
    assert page.get_by_label("First seed").input_value() == "0"
    assert page.get_by_label(SCALE).input_value() == "2"
    assert page.get_by_label(DIAL).input_value() == "1"
    for title in TITLES:
        assert title_of(page, title).is_visible()
    costs(page, 0)
    assert len(image_files(page)) == 3
    page.get_by_text(examples[1], exact=True).click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(examples[1])
    links = [link.get_attribute("href") or "" for link in page.locator("a").all()]
    assert all(link.startswith(page.url) for link in links), "but for the pictures to download"


def test_three_images_and_their_cost(open_page: Open, served: Served):
    page = open_page()
    costs(page, 0)
    submit(page, {"Prompt": "green owl", "First seed": "5", SCALE: "4", DIAL: "0.5"})
    expected = DemoSession(served.run).draw("green owl", 5, 4.0, 0.5, COUNT)
    took = costs(page, 5).all_inner_texts()
    assert [re.sub(r"\d+\.\d\d s", "_ s", one) for one in took] == [
        "base: seeds 5 to 8, _ s and 16 forward passes each",
        "base+cfg4: seeds 5 to 8, _ s and 32 forward passes each",
        "cca+dial0.5: seeds 5 to 8, _ s and 16 forward passes each",
    ]
    shown = [pixels(png) for png in image_files(page)]
    for ours, theirs in zip(shown, expected, strict=True):
        assert np.array_equal(ours, np.array([np.array(one) for one in theirs.images])), theirs.name
    assert len({one.tobytes() for arm in shown for one in arm}) == 3 * COUNT, (
        "the test needs different images"
    )


def test_the_seed_decides(open_page: Open):
    first = sample(open_page(), "green owl", 5)
    assert sample(open_page(), "green owl", 5) == first
    other = sample(open_page(), "green owl", 6)
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_enter_samples_too(open_page: Open):
    page = open_page()
    costs(page, 0)
    page.get_by_label("First seed").fill("7")
    page.get_by_label("Prompt", exact=True).press("Enter")
    assert costs(page, 7).count() == 3


def test_invalid_input_gives_a_message_and_keeps_the_images(open_page: Open, served: Served):
    page = open_page()
    before = sample(page, "green owl", 5)
    took = costs(page, 5).all_inner_texts()
    for label, value, message in (
        ("First seed", "", "the seed is empty; enter a whole number, 0 or more."),
        ("First seed", "-1", "the seed is -1; allowed: 0 or more."),
        ("Prompt", "  ", "the prompt is empty; describe the image."),
    ):
        submit(page, {label: value})
        page.get_by_text(message, exact=True).wait_for()
        assert page.get_by_text("Error").count() == 0
        assert image_files(page) == before
        assert costs(page, 5).all_inner_texts() == took
    assert "Traceback" not in served.stderr.read_text()


def test_a_phone_scrolls_down_only_and_shows_one_below_the_other(open_page: Open):
    page = open_page(width=390)
    widths = "[document.documentElement.scrollWidth, innerWidth]"
    assert page.evaluate(widths) == [390, 390]
    sample(page, "green owl", 5)
    assert page.evaluate(widths) == [390, 390]
    order = [page.get_by_label("Prompt", exact=True)]
    sliders = (None, "Guidance scale", "Dial of CCA")
    for title, cost, slider in zip(TITLES, costs(page, 5).all(), sliders, strict=True):
        order += [title_of(page, title), page.get_by_alt_text(title, exact=True), cost]
        order += [] if slider is None else [page.get_by_label(f"range slider for {slider}")]
    bottom = 0.0
    for element in order:
        box = element.bounding_box()
        assert box is not None
        assert box["y"] >= bottom, element
        assert box["x"] >= 0
        assert 200 < box["width"] <= 390 - box["x"], "wide enough for a prompt, or for a finger"
        bottom = box["y"] + box["height"]
