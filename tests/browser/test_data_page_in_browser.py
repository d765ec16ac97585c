"""The data page with hostile names, refused images and similar pairs, opened from disk in a real headless browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import needs_chromium, opened
from playwright.sync_api import Browser
from survey_material import write_survey

from flowkit.report.data_page import data_page
from flowkit.report.rendering import TEMPLATES, Facts, Renderer
from flowkit.report.site import write_files

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a survey, and the one that says that there is none."""
    folder = tmp_path_factory.mktemp("pages")
    render = Renderer(Facts("small", "a report", "eva", "clip", is_demo=True), pages={}, legend={})
    surveys = {"measured": write_survey(folder / "survey"), "missing": None}
    for name, survey in surveys.items():
        files = data_page(render, survey, "flowkit survey --config own.yaml")
        beside = {file: (TEMPLATES / file).read_bytes() for file in ("style.css", "site.js")}
        write_files(files | beside, folder / name)
    return {name: folder / name / "data.html" for name in surveys}


@pytest.mark.parametrize("name", ["measured", "missing"])
@pytest.mark.parametrize("width", [390, 1300])
def test_page_loads_whole_and_without_trouble(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    page, troubles = opened(browser, pages[name], viewport={"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('img[loading=lazy]').forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "the page scrolls sideways"
    )
    assert page.locator("nav a[aria-current]").inner_text() == "Data"
    assert troubles == []
    page.close()


@pytest.mark.parametrize("name", ["measured", "missing"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, pages: dict[str, Path], name: str, scheme: str) -> None:
    page, _ = opened(browser, pages[name], color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []
    page.close()
