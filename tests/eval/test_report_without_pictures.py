"""A report that was copied without its pictures says where they belong."""

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.support import runs
from tests.support.browsing import Open

WHERE = "open the report inside the run folder run"


@pytest.fixture(scope="module")
def light(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose report has no picture inside."""
    run = Path(shutil.copytree(reported.parent / "run", tmp_path_factory.mktemp("light") / "run"))
    runs.do(reported, f"run.dir={run}", "eval.report_megabytes=0", stages=["report"])
    return run


def alone(light: Path, folder: Path) -> Path:
    """The report as somebody gets it who is sent only this file."""
    return Path(shutil.copy(light / "report.html", folder / "report.html"))


def test_a_report_without_its_pictures_says_where_they_are(
    browser: Browser, light: Path, tmp_path: Path
):
    page = browser.new_page()
    page.goto(alone(light, tmp_path).as_uri())
    page.locator("#pictures").scroll_into_view_if_needed()
    for told in page.locator(".not-here").all():
        told.wait_for(state="visible")
        assert WHERE in told.inner_text()
    assert page.locator(".not-here").count() == 2, "above the first screen's strip and the grid"
    page.close()


def test_without_javascript_it_says_so_too(browser: Browser, light: Path, tmp_path: Path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(alone(light, tmp_path).as_uri())
    for told in page.locator(".probe p").all():
        assert told.is_visible()
        assert WHERE in told.inner_text()
    assert page.locator(".probe p").count() == 2
    for shots in (".card img", "noscript table img"):
        alt = str(page.locator(shots).last.get_attribute("alt"))
        assert re.search(r": .+ \(file samples/\S+/\d{6}\.png of the run folder\)$", alt)
    context.close()


def test_beside_its_pictures_it_says_nothing(open_page: Open, light: Path):
    page = open_page(light / "report.html", scripts=False)
    assert page.locator(".probe").count() == 2
    for probe in page.locator(".probe").all():
        box = probe.bounding_box()
        assert box is None or box["height"] == 0
        assert not probe.locator("p").is_visible()
