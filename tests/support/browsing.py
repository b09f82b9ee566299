"""Pages opened in a browser: none may complain, or ask for anything but itself and its pictures."""

import re
from pathlib import Path
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, Request

WIDTHS = "[document.documentElement.scrollWidth, innerWidth]"
"""What a page's width takes, and what there is."""


class Open(Protocol):
    """Opens a file or an address."""

    def __call__(
        self,
        page: Path | str,
        *,
        width: int = 1280,
        scheme: str = "light",
        scripts: bool = True,
    ) -> Page: ...


class Tabs:
    """Everything opened in a test; at its end it is looked at what was said and asked for."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self._complaints: list[str] = []
        self._outside: list[str] = []

    def __enter__(self) -> "Tabs":
        return self

    def open(
        self,
        page: Path | str,
        *,
        width: int = 1280,
        scheme: str = "light",
        scripts: bool = True,
    ) -> Page:
        """See ``Open``."""
        address = page.as_uri() if isinstance(page, Path) else page
        own = ("data:", "file:///" if isinstance(page, Path) else _origin(address))
        context = self._browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme=scheme,  # type: ignore[arg-type]
            java_script_enabled=scripts,
        )
        self._contexts.append(context)

        def heard(message: ConsoleMessage) -> None:
            self._complaints.append(message.text)

        def failed(error: Error) -> None:
            self._complaints.append(str(error))

        def asked(request: Request) -> None:
            if not request.url.startswith(own):
                self._outside.append(request.url)

        opened = context.new_page()
        opened.on("console", heard)
        opened.on("pageerror", failed)
        opened.on("request", asked)
        opened.goto(address)
        return opened

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for context in self._contexts:
            context.close()
        if error is None:
            assert self._complaints == []
            assert self._outside == []


def _origin(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}/"


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two rgb() colours."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def assert_readable(page: Page, *selectors: str) -> None:
    """The first of each has WCAG's contrast of 4.5 to the page."""
    background = page.locator("body").evaluate("one => getComputedStyle(one).backgroundColor")
    for what in selectors:
        ink = page.locator(what).first.evaluate("one => getComputedStyle(one).color")
        assert contrast(background, ink) >= 4.5, what
