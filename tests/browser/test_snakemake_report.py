"""Snakemake's own report of a finished workflow: what stands in it, what is said of it, and how figures look in it."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import needs_chromium
from PIL import Image, ImageStat
from playwright.sync_api import Browser, Page

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture(scope="module")
def unpacked(finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first page of Snakemake's report of the tiny workflow."""
    folder = tmp_path_factory.mktemp("snakemake-report")
    finished.snakemake("--report", str(folder / "made.zip"))
    with zipfile.ZipFile(folder / "made.zip") as archive:
        archive.extractall(folder)
    (page,) = folder.glob("*/report.html")
    return page


@pytest.fixture
def page(browser: Browser, unpacked: Path) -> Iterator[Page]:
    """The report as somebody sees it whose system is dark; nothing may be fetched from elsewhere."""
    shown = browser.new_page(color_scheme="dark", viewport={"width": 1300, "height": 900})
    outside: list[str] = []
    shown.on(
        "request", lambda request: outside.append(request.url) if request.url.startswith("http") else None
    )
    shown.goto(unpacked.as_uri(), wait_until="load")
    shown.get_by_role("link", name="2 Key figures").wait_for()
    yield shown
    assert outside == []
    shown.close()


def _words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", "", html).split())


def test_everything_in_it_has_a_caption_of_its_own(page: Page) -> None:
    results = page.evaluate("results")
    names = {Path(path).parent.name + "/" + Path(path).name for path in results}
    assert {
        "report/index.html",
        "key-figures/summary.csv",
        "flow/loss.svg",
        "ridge/closed-form-positions.svg",
    } <= names
    for path, result in results.items():
        caption = _words(result["caption"])
        assert "system-message" not in result["caption"], f"{path}: {caption}"
        assert "problematic" not in result["caption"], f"{path}: {caption}"
        assert len(caption) > 200, path
        assert not caption.startswith("Figure "), f"{path}: nothing is said of what this figure shows"
        assert result["labels"], path
    of_sampler = next(
        result["caption"] for path, result in results.items() if path.endswith("heun-2-cosines.svg")
    )
    assert "Cosines of flow, sampler heun-2: one per image" in _words(of_sampler)


def test_it_begins_with_what_was_translated_into_what(page: Page) -> None:
    description = _words(page.evaluate("workflow_desc"))
    assert (
        "one frozen image encoder, demo-eva, are translated into those of another, demo-vit," in description
    )
    assert "The experiment is tiny." in description
    assert "system-message" not in page.evaluate("workflow_desc")


def test_a_figure_is_large_and_dark_on_light_whatever_the_system(page: Page) -> None:
    page.get_by_role("link", name="2 Key figures").click()
    page.get_by_role("link", name="flow", exact=True).click()
    row = page.locator("tr", has_text="loss").last
    row.locator("a").first.click()
    figure = page.locator("img[src$='loss.svg']")
    figure.wait_for()
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert figure.bounding_box()["width"] > 600
    grey = Image.open(io.BytesIO(figure.screenshot())).convert("L")
    assert ImageStat.Stat(grey).mean[0] > 200
    assert grey.getextrema()[0] < 60, "its letters are light on white"


def test_the_pages_open_inside_it(page: Page) -> None:
    page.get_by_role("link", name="1 Overview").click()
    page.locator("tr", has_text="all runs").last.locator("a").first.click()
    inside = page.frame_locator("iframe")
    inside.get_by_role("link", name="Gallery", exact=True).click()
    assert "allery" in inside.locator("title").text_content()
