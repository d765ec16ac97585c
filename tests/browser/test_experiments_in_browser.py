"""The index of experiments, opened from disk in a real headless browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import needs_chromium
from experiments_material import ABOUT, write_experiment
from playwright.sync_api import Browser, Page

from flowkit.report.experiments import write_experiments_index

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of a demo, an experiment whose baseline is ahead, a damaged one and some more."""
    results = tmp_path_factory.mktemp("many") / "results"
    write_experiment(results, "demo", about=ABOUT, flow=0.924, ridge=0.872)
    write_experiment(results, "ünï code", about={**ABOUT, "title": "<b>bold</b>"}, flow=0.7, ridge=0.74)
    write_experiment(results, "unnamed", flow=None)
    (write_experiment(results, "damaged", about=ABOUT) / "summary.json").write_text("{")
    for number in range(8):
        write_experiment(results, f"more-{number}", about=ABOUT, flow=0.1 * number)
    return write_experiments_index(results)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiments_index(tmp_path_factory.mktemp("none"))


def _open(browser: Browser, path: Path, **settings: object) -> tuple[Page, list[str]]:
    """Open the page from disk; returns it with every console message, failed request and request beside its own."""
    page = browser.new_page(**settings)
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on(
        "request",
        lambda request: (
            troubles.append(request.url) if request.url not in (path.as_uri(), "data:,") else None
        ),
    )
    page.goto(path.as_uri(), wait_until="load")
    return page, troubles


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1300])
@pytest.mark.parametrize("which", ["index", "empty"])
def test_page_is_whole_quiet_and_clean(
    browser: Browser, request: pytest.FixtureRequest, which: str, width: int, scheme: str
) -> None:
    path = request.getfixturevalue(which)
    page, troubles = _open(browser, path, viewport={"width": width, "height": 900}, color_scheme=scheme)
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "the page scrolls sideways"
    )
    assert troubles == []
    page.close()


def test_rows_sort_by_numbers_with_what_is_missing_last_and_can_be_filtered(
    browser: Browser, index: Path
) -> None:
    page, troubles = _open(browser, index)
    table = page.locator("table.sortable")
    names = "[...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[0].innerText)"
    table.locator("th", has_text="best flow").locator("button").click()
    sorted_names = table.evaluate(f"table => {names}")
    assert "demo/" in sorted_names[0]
    assert "damaged/" in sorted_names[-2] + sorted_names[-1]
    assert "unnamed" in sorted_names[-2] + sorted_names[-1]
    table.locator("th", has_text="goals shown").locator("button").click()
    page.get_by_label("Show rows with").fill("<b>bold")
    page.wait_for_function("document.querySelector('table.sortable').tBodies[0].rows.length === 1")
    (only,) = table.evaluate(f"table => {names}")
    assert only.startswith("<b>bold</b>")
    assert troubles == []
    page.close()


def test_links_lead_to_the_reports(browser: Browser, index: Path) -> None:
    page, _ = _open(browser, index)
    page.get_by_role("link", name="<b>bold</b>").click()
    assert page.title() == "ünï code"
    page.close()


def test_page_is_readable_without_javascript(browser: Browser, index: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(index.as_uri())
    text = page.locator("main").inner_text()
    assert "12 experiments" in text
    assert "ahead of every flow" in text
    assert "Not readable: summary.json" in text
    context.close()
