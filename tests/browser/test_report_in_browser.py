"""The report of a finished workflow, opened from disk in a real headless browser."""

from __future__ import annotations

import re
from io import BytesIO

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import needs_chromium, opened
from PIL import Image, ImageStat
from playwright.sync_api import Browser, Page

pytestmark = needs_chromium
PAGES = (
    *("index.html", "compare.html", "gallery.html", "data.html", "workflow.html"),
    *("runs/flow.html", "runs/ridge.html"),
)


def _open(browser: Browser, finished, name: str, **settings: object) -> tuple[Page, list[str]]:
    return opened(browser, finished.folder / "results/tiny/report" / name, **settings)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [390, 1300])
def test_page_loads_whole_and_without_trouble(browser: Browser, finished, name: str, width: int) -> None:
    page, troubles = _open(browser, finished, name, viewport={"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('img[loading=lazy]').forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
    assert page.evaluate("[...document.images].filter(image => !image.alt).length") == 0
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "the page scrolls sideways"
    )
    assert troubles == []
    page.close()


def test_table_sorts_by_a_click_and_every_run_is_in_it(browser: Browser, finished) -> None:
    page, _ = _open(browser, finished, "index.html")
    table = page.locator("table:has(th:has-text('gap closed'))").first
    runs = "[...table.tBodies[0].rows].map(row => row.cells[0].innerText.split('\\n')[0].trim())"
    before = table.evaluate(f"table => {runs}")
    assert set(before) == {"flow", "regression", "constant", "ridge"}
    table.locator("th", has_text="evaluations").locator("button").click()
    after = table.evaluate(f"table => {runs}")
    assert sorted(after) == sorted(before)
    assert after[0] == "flow"  # heun-2 has the most evaluations
    page.close()


WITHOUT_SCRIPTS = {
    "index.html": ("not shown", "ridge", "All runs and samplers"),
    "compare.html": ("Metric by metric", "token cosine"),
    "gallery.html": ("Error maps of each run", "rank"),
    "data.html": ("From tars to pairs", "Channels"),
    "workflow.html": ("extract", "How the results came about"),
    "runs/flow.html": ("All numbers", "Thresholds", "Cosine per image"),
}


@pytest.mark.parametrize("name", WITHOUT_SCRIPTS)
def test_pages_are_readable_without_javascript(browser: Browser, finished, name: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((finished.folder / "results/tiny/report" / name).as_uri())
    text = page.locator("main").inner_html()
    for words in WITHOUT_SCRIPTS[name]:
        assert words in text
    assert page.locator("main img").count() > 0
    context.close()


def test_demo_is_called_a_demo(browser: Browser, finished) -> None:
    page, _ = _open(browser, finished, "index.html")
    assert "They say nothing about EVA-CLIP or CLIP ViT-L/14" in page.locator("body").inner_text()
    page.close()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, finished, name: str, scheme: str) -> None:
    """Contrast, names, landmarks, order of heads: every rule of axe-core, in both colour schemes."""
    page, _ = _open(browser, finished, name, color_scheme=scheme)
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []
    page.close()


def test_a_chosen_theme_holds_on_all_pages_and_for_figures(browser: Browser, finished) -> None:
    context = browser.new_context(color_scheme="light")
    page = context.new_page()
    folder = finished.folder / "results/tiny/report"

    def darkness() -> tuple[bool, bool]:
        """Whether the page is dark, and the first figure on it."""
        page.evaluate(
            "document.querySelectorAll('img[loading=lazy]').forEach(image => image.loading = 'eager')"
        )
        page.wait_for_function("[...document.images].every(image => image.complete)")
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        figure = Image.open(BytesIO(page.locator("img[src$='.svg']").first.screenshot())).convert("L")
        return sum(map(int, re.findall(r"\d+", paper))) < 200, ImageStat.Stat(figure).mean[0] < 128

    page.goto((folder / "runs/flow.html").as_uri())
    assert darkness() == (False, False)
    button = page.get_by_role("button", name="Colours")
    assert button.inner_text() == "Colours: as the system"
    button.click()
    assert button.inner_text() == "Colours: light"
    button.press("Enter")
    assert button.inner_text() == "Colours: dark"
    assert darkness() == (True, True)
    page.goto((folder / "runs/ridge.html").as_uri())
    assert darkness() == (True, True)
    context.close()


def test_tables_are_sorted_and_filtered_with_the_keyboard_alone(browser: Browser, finished) -> None:
    page, _ = _open(browser, finished, "index.html")
    head = page.locator("table.sortable th button").first
    head.focus()
    page.keyboard.press("Enter")
    assert head.locator("..").get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert head.locator("..").get_attribute("aria-sort") == "descending"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('th').cellIndex") == 1
    page.close()
