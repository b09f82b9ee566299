"""The report in headless Chromium: what a reader does with it, and that it asks the net nothing."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from mm_cca.eval.report import gallery as pictures
from mm_cca.eval.report import thumbnails
from tests.support import runs
from tests.support.browsing import WIDTHS, Open, assert_readable, contrast


@pytest.fixture(scope="module")
def report(reported: Path) -> Path:
    return reported.parent / "run" / "report.html"


@pytest.fixture(scope="module")
def large(report: Path) -> Path:
    """The same page with 10,000 prompts, whose pictures are not there except for the first."""
    page = report.read_text(encoding="utf-8")
    start = page.index('id="grid-data">') + len('id="grid-data">')
    end = page.index("</script>", start)
    data = json.loads(page[start:end])
    (grid, *_), count = data["grids"], 10_000
    grid["captions"] = [f"prompt {n} of many" for n in range(count)]
    grid["indices"] = list(range(count))
    for name, scores in grid["scores"].items():
        scores["alignment"] = [
            50 + (n * 7919 % count) / 500 * (name == "cca") for n in range(count)
        ]
        scores["rank"] = [n % 10 for n in range(count)]
    for column in grid["columns"]:
        column["thumbs"] = {str(n): column["thumbs"]["0"] for n in range(count)}
    target = report.with_name("large.html")
    target.write_text(page[:start] + json.dumps(data).replace("<", "\\u003c") + page[end:])
    return target


def captions(page: Page) -> list[str]:
    """Of the rows on the page of the grid."""
    found: list[str] = page.locator("#grid tbody th").evaluate_all(
        "rows => rows.map((row) => row.firstChild.textContent)"
    )
    return found


def grid_of(report: Path, split: int = 0) -> dict[str, Any]:
    return runs.grids_of(report)[split]


def gains(grid: dict[str, Any]) -> list[float]:
    ours, theirs = (grid["scores"][name]["alignment"] for name in ("cca", grid["baseline"]))
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def test_it_opens_with_the_verdict_and_loaded_pictures(open_page: Open, report: Path):
    page = open_page(report)
    assert page.locator("h2").first.inner_text() == "Verdict"
    assert page.locator(".verdicts .lead").count() == 2
    assert captions(page) == grid_of(report)["captions"][:3]
    loaded = page.locator("#grid img").evaluate_all(
        "all => all.every((image) => image.complete && image.naturalWidth === 16 && image.alt)"
    )
    assert loaded
    best = grid_of(report)["baseline"]
    headings = page.locator("#grid thead th").all_inner_texts()
    assert headings == ["prompt", "real", "base", best, "cca"]


def test_search_finds_words_in_any_order(open_page: Open, report: Path):
    page = open_page(report)
    everything = grid_of(report)["captions"]
    first, last = everything[2].split()
    page.get_by_label("Search prompts").fill(f"{last} {first.upper()}")
    assert captions(page) == [everything[2]]
    assert page.locator("#status").inner_text().startswith("1 of 8 prompts")
    page.get_by_label("Search prompts").fill("zebra")
    assert captions(page) == []
    assert page.locator("#status").inner_text() == "No prompt has these words (8 searched)."
    page.get_by_label("Search prompts").fill("")
    assert captions(page) == everything[:3]


@pytest.mark.parametrize(("order", "sign"), [("gain", -1), ("loss", 1)])
def test_sort_by_gain_and_loss(open_page: Open, report: Path, order: str, sign: int):
    page = open_page(report)
    page.get_by_label("Order").select_option(order)
    grid = grid_of(report)
    by_gain = sorted(range(8), key=lambda row: sign * gains(grid)[row])
    assert captions(page) == [grid["captions"][row] for row in by_gain[:3]]
    told = page.locator("#grid tbody th small").first.inner_text()
    assert told == f"CCA {gains(grid)[by_gain[0]]:+.1f}".replace("-", "−")
    page.get_by_label("Order").select_option("original")
    assert captions(page) == grid["captions"][:3]


def test_pages_and_splits(open_page: Open, report: Path):
    page = open_page(report)
    everything = grid_of(report)["captions"]
    assert page.locator("#back").is_disabled()
    page.get_by_role("button", name="Next", exact=True).click()
    assert captions(page) == everything[3:6]
    page.get_by_role("button", name="Last").click()
    assert captions(page) == everything[6:]
    assert page.locator("#more").is_disabled()
    page.get_by_label("Split").select_option("heldout")
    assert captions(page) == grid_of(report, 1)["captions"][:3]


def test_columns_can_be_added(open_page: Open, report: Path):
    page = open_page(report)
    hidden = next(c["name"] for c in grid_of(report)["columns"] if not c["shown"])
    page.get_by_text("Columns", exact=True).click()
    page.get_by_label(hidden, exact=True).check()
    assert hidden in page.locator("#grid thead th").all_inner_texts()
    assert page.locator("#grid tbody tr").first.locator("img").count() == 5


def test_enlarge_by_click(open_page: Open, report: Path):
    page = open_page(report)
    grid = grid_of(report)
    page.locator('.thumb[data-column="cca"]').nth(1).click()
    viewer = page.get_by_role("dialog")
    assert viewer.is_visible()
    assert page.locator("#viewer-caption").inner_text() == grid["captions"][1]
    assert page.locator("#viewer-arm").inner_text() == "cca"
    said = page.locator("#viewer-scores").inner_text()
    assert f"{grid['scores']['cca']['alignment'][1]:.1f}" in said
    assert page.locator("#viewer-image").evaluate("image => image.naturalWidth") == 16
    page.get_by_role("button", name="Close").click()
    assert not viewer.is_visible()


def test_everything_by_keyboard(open_page: Open, report: Path):
    page = open_page(report)
    grid = grid_of(report)
    page.get_by_label("Search prompts").focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "thumb":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "where the focus is must be seen"
    page.keyboard.press("Enter")

    def seen() -> tuple[str, str]:
        caption = page.locator("#viewer-caption").inner_text()
        return caption, page.locator("#viewer-arm").inner_text()

    first, second = grid["captions"][:2]
    assert seen() == (first, "real image")
    page.keyboard.press("ArrowLeft")
    assert seen() == (first, "real image"), "there is nothing before"
    page.keyboard.press("ArrowRight")
    assert seen() == (first, "base")
    page.keyboard.press("ArrowDown")
    assert seen() == (second, "base")
    page.keyboard.press("ArrowUp")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert seen() == (second, "real image"), "the next prompt follows"
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    assert seen()[0] == grid["captions"][3], "on the next page"
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()
    assert captions(page) == grid["captions"][3:6]
    assert page.evaluate("document.activeElement.dataset.row") == "3"


def test_points_of_the_plots_say_their_values(open_page: Open, report: Path):
    page = open_page(report)
    tip = page.locator("#tip")
    assert not tip.is_visible()
    point = page.locator('.point[aria-label^="cca:"]').first
    point.focus()
    page.wait_for_timeout(200)  # the page scrolls to the point, and what it says must stay
    assert tip.is_visible()
    assert re.match(
        r"cca: alignment ×100 [\d.-]+ \([\d.-]+ to [\d.-]+\), .*, 16 forward passes per image",
        tip.inner_text(),
    )
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    page.locator('.point[aria-label^="base:"]').first.hover()
    assert tip.inner_text().startswith("base: ")


def test_dark_mode_reaches_the_plots(open_page: Open, report: Path):
    def colours(scheme: str) -> list[str]:
        page = open_page(report, scheme=scheme)
        mark = page.locator('.point[aria-label^="cca:"] use').first
        return [
            page.locator("body").evaluate("one => getComputedStyle(one).backgroundColor"),
            page.locator("figure svg text").first.evaluate("one => getComputedStyle(one).fill"),
            mark.evaluate("one => getComputedStyle(one).fill"),
        ]

    light, dark = colours("light"), colours("dark")
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert light[0] == "rgb(255, 255, 255)"
    for background, *inks in (light, dark):
        assert all(contrast(background, ink) > 3 for ink in inks)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(open_page: Open, report: Path, scheme: str):
    page = open_page(report, scheme=scheme)
    whats = ("p", ".muted", ".badge", "nav a", "td small", ".grid thead th.cca", ".thumb")
    assert_readable(page, *whats)


def test_a_phone_scrolls_down_only(open_page: Open, report: Path):
    page = open_page(report, width=390)
    assert page.evaluate(WIDTHS) == [390, 390]
    table = page.locator("#scores-1 .scroll").first
    assert table.evaluate("box => box.scrollWidth > box.clientWidth"), "scrolls in its box"
    page.locator('.thumb[data-column="cca"]').first.click()
    assert page.evaluate(WIDTHS) == [390, 390]
    box = page.get_by_role("dialog").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390


def test_ten_thousand_prompts_stay_fluid(open_page: Open, large: Path):
    page = open_page(large)
    assert page.locator("#grid tbody tr").count() == 3, "rows are made when they are looked at"
    page.get_by_label("Order").select_option("gain")
    page.get_by_label("Search prompts").fill("prompt 99")
    count = sum("99" in str(n) for n in range(10_000))
    assert page.locator("#status").inner_text().startswith(f"{count} of 10,000 prompts")
    seconds = page.evaluate(
        """() => {
            const box = document.getElementById("search"), started = performance.now();
            for (const text of ["1", "12", "12 many", ""]) {
                box.value = text;
                box.dispatchEvent(new Event("input"));
                document.body.getBoundingClientRect();
            }
            return (performance.now() - started) / 4000;
        }"""
    )
    assert seconds < 0.5


def test_pictures_outside_the_report_are_read_when_looked_at(
    open_page: Open, reported: Path, tmp_path: Path
):
    run = shutil.copytree(reported.parent / "run", tmp_path / "run")
    keys = [f"run.dir={run}", "eval.report_megabytes=0"]
    runs.do(reported, *keys, stages=["report"])
    page = open_page(run / "report.html")
    page.locator("#pictures").scroll_into_view_if_needed()
    page.locator('.thumb[data-column="base"] img').first.scroll_into_view_if_needed()
    page.wait_for_function(
        "[...document.querySelectorAll('#grid img')].every((i) => i.complete && i.naturalWidth)"
    )
    sources = page.locator("#grid img").evaluate_all("all => all.map((image) => image.src)")
    best = grid_of(run / "report.html")["baseline"].replace("+", "%2B")
    assert sources[0].endswith("/run/real/000000.webp")
    assert sources[2].endswith(f"/run/samples/{best}/000000.png")


def test_what_is_shrunk_in_the_grid_is_whole_when_enlarged(
    open_page: Open, reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in (pictures, thumbnails):
        monkeypatch.setattr(module, "EXACT_SIDE", 8)
    monkeypatch.setattr(thumbnails, "THUMB_SIDE", 10)
    run = Path(shutil.copytree(reported.parent / "run", tmp_path / "run"))
    runs.do(reported, f"run.dir={run}", stages=["report"])
    page = open_page(run / "report.html")
    image = page.locator("#viewer-image")
    for column, file in (("cca", "samples/cca/000001.png"), ("real", "real/000001.webp")):
        small = page.locator(f'.thumb[data-column="{column}"]').nth(1)
        assert small.locator("img").evaluate("image => image.naturalWidth") == 10
        small.click()
        image.evaluate("image => image.decode()")
        assert image.evaluate("image => image.naturalWidth") == 16
        assert str(image.get_attribute("src")) == file
        page.keyboard.press("Escape")


def test_a_missing_picture_is_a_word_and_is_passed_over(
    open_page: Open, reported: Path, tmp_path: Path
):
    run = Path(shutil.copytree(reported.parent / "run", tmp_path / "run"))
    (run / "samples" / "base" / "000000.png").unlink()
    runs.do(reported, f"run.dir={run}", stages=["report"])
    page = open_page(run / "report.html")
    assert page.get_by_text("1 image can't be shown").is_visible()
    assert page.locator("#grid .gone").all_inner_texts() == ["no image"]
    page.locator('.thumb[data-column="real"]').first.click()
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-arm").inner_text() == grid_of(run / "report.html")["baseline"]


def test_the_first_screen_has_the_verdict_the_pictures_and_the_intervals(
    open_page: Open, report: Path
):
    page = open_page(report)
    for what in (".judge-verdicts", ".sample-strip", ".forests"):
        box = page.locator(what).bounding_box()
        assert box is not None
        assert box["y"] + 100 < 800, what
    shots = page.locator(".card img")
    assert shots.count() == 18
    assert shots.evaluate_all("all => all.every((image) => image.naturalWidth === 16)")
    mark = page.locator(".forests .point").first
    mark.hover()
    assert "emoji-clip, alignment" in page.locator("#tip").inner_text()


def test_small_pictures_are_enlarged_without_blur(open_page: Open, report: Path):
    page = open_page(report)
    for what, side in (("#grid img", 128), (".card img", 80)):
        image = page.locator(what).first
        assert image.evaluate("one => getComputedStyle(one).imageRendering") == "pixelated"
        assert image.evaluate("one => one.getBoundingClientRect().width") == side


def test_without_javascript_there_are_pictures(open_page: Open, report: Path):
    page = open_page(report, scripts=False)
    rows = page.locator("noscript table").first.locator("tbody tr")
    assert rows.count() == 3
    image = rows.first.locator("img").last
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    assert box is not None
    assert box["width"] == 128
    assert page.locator(".judge-verdicts").is_visible()
    assert not page.locator("#pager").is_visible()


def test_on_a_phone_pictures_come_early_and_alignment_and_fd_first(open_page: Open, report: Path):
    page = open_page(report, width=390)
    box = page.locator(".card img").first.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < 2 * 800
    headings = page.locator("#scores-1 thead th")
    assert headings.all_inner_texts()[:3] == ["arm", "alignment ×100", "FD"]
    fd = headings.nth(2).bounding_box()
    assert fd is not None
    assert fd["x"] + fd["width"] <= 390


def test_on_paper_no_column_falls_off(open_page: Open, report: Path):
    page = open_page(report, width=703)  # A4 less its margins
    page.emulate_media(media="print")
    tables = page.locator("main section > .scroll > table")
    assert tables.count() > 2
    for table in tables.all():
        box = table.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 703
    assert page.evaluate("document.documentElement.scrollWidth") <= 703
    assert not page.locator(".controls").is_visible()
    assert page.locator("#grid img").first.is_visible()
