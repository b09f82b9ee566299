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
from playwright.sync_api import Browser, Locator, Page

from mm_cca.cli.commands.demo_session import DemoSession
from tests.support import runs
from tests.support.training import at

TITLES = ("base", "base with guidance", "CCA, without guidance")
SCALE, DIAL = "number input for Guidance scale", "number input for Dial of CCA"
COST = re.compile(r"^[\w.+]+: \d+\.\d\d s, \d+ forward passes$")
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
    """Fill in fields by their labels, or parts of them, and press the button."""
    for label, value in fields.items():
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Sample").click()


def title_of(page: Page, title: str) -> Locator:
    return page.get_by_role("heading", name=title, exact=True)


def costs(page: Page) -> Locator:
    """Seconds and forward passes of the images, once all are there."""
    found = page.locator("p").filter(has_text=COST)
    found.nth(2).wait_for()
    return found


def image_files(page: Page) -> list[bytes]:
    """The files of the three images, once all are there."""
    files = []
    for title in TITLES:
        image = page.get_by_alt_text(title, exact=True)
        image.evaluate("image => image.decode()")
        assert image.evaluate("image => image.naturalWidth") == 320, "large enough to see"
        files.append(page.request.get(str(image.get_attribute("src"))).body())
    return files


def sample(page: Page, prompt: str, seed: int) -> list[bytes]:
    submit(page, {"Prompt": prompt, "Seed": str(seed)})
    costs(page)
    return image_files(page)


def pixels(png: bytes) -> np.ndarray:
    """At the original size."""
    return np.array(Image.open(io.BytesIO(png)).resize((16, 16), Image.Resampling.NEAREST))


def test_it_opens_with_a_prompt_and_three_empty_places(open_page: Open):
    page = open_page()
    assert page.get_by_role("heading", level=1).inner_text() == "With and without guidance"
    assert page.get_by_label("Prompt").input_value() == "a red apple"
    assert page.get_by_label("Seed").input_value() == "0"
    assert page.get_by_label(SCALE).input_value() == "2"
    assert page.get_by_label(DIAL).input_value() == "1"
    for title in TITLES:
        assert title_of(page, title).is_visible()
    assert page.locator("img").count() == 0
    assert page.locator("a").count() == 0, "no links"


def test_three_images_and_their_cost(open_page: Open, served: Served):
    page = open_page()
    submit(page, {"Prompt": "green owl", "Seed": "5", SCALE: "4", DIAL: "0.5"})
    expected = DemoSession(served.run).sample("green owl", 5, 4.0, 0.5)
    took = costs(page).all_inner_texts()
    assert [re.sub(r"\d+\.\d\d s", "_ s", one) for one in took] == [
        "base: _ s, 16 forward passes",
        "base+cfg4: _ s, 32 forward passes",
        "cca+dial0.5: _ s, 16 forward passes",
    ]
    shown = [pixels(png) for png in image_files(page)]
    for ours, theirs in zip(shown, expected, strict=True):
        assert np.array_equal(ours, np.array(theirs.image)), theirs.name
    assert len({one.tobytes() for one in shown}) == 3, "the test needs different images"


def test_the_seed_decides(open_page: Open):
    first = sample(open_page(), "green owl", 5)
    assert sample(open_page(), "green owl", 5) == first
    other = sample(open_page(), "green owl", 6)
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_enter_samples_too(open_page: Open):
    page = open_page()
    page.get_by_label("Prompt").press("Enter")
    assert costs(page).count() == 3


def test_invalid_input_gives_a_message_and_keeps_the_images(open_page: Open, served: Served):
    page = open_page()
    before = sample(page, "green owl", 5)
    took = costs(page).all_inner_texts()
    for label, value, message in (
        ("Seed", "", "the seed is empty; enter a whole number, 0 or more."),
        ("Seed", "-1", "the seed is -1; allowed: 0 or more."),
        ("Prompt", "  ", "the prompt is empty; describe the image."),
    ):
        submit(page, {label: value})
        page.get_by_text(message, exact=True).wait_for()
        assert page.get_by_text("Error").count() == 0
        assert image_files(page) == before
        assert costs(page).all_inner_texts() == took
    assert "Traceback" not in served.stderr.read_text()


def test_a_phone_scrolls_down_only_and_shows_one_below_the_other(open_page: Open):
    page = open_page(width=390)
    widths = "[document.documentElement.scrollWidth, innerWidth]"
    assert page.evaluate(widths) == [390, 390]
    sample(page, "green owl", 5)
    assert page.evaluate(widths) == [390, 390]
    order = [page.get_by_label("Prompt"), page.get_by_label("range slider for Guidance scale")]
    order.append(page.get_by_label("range slider for Dial of CCA"))
    for title, cost in zip(TITLES, costs(page).all(), strict=True):
        order += [title_of(page, title), page.get_by_alt_text(title, exact=True), cost]
    bottom = 0.0
    for element in order:
        box = element.bounding_box()
        assert box is not None
        assert box["y"] >= bottom, element
        assert box["x"] >= 0
        assert 200 < box["width"] <= 390 - box["x"], "wide enough for a prompt, or for a finger"
        bottom = box["y"] + box["height"]
