"""The picture that the README shows: the same each time, blind for figures and letters, not for pages and layouts."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest
from chromium import needs_chromium
from PIL import Image
from playwright.sync_api import Browser
from report_picture import BYTES, SIZE, UNLIKE, difference, first_screen, write_picture

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture(scope="module")
def report(finished) -> Path:
    return finished.folder / "results/tiny/report"


def test_the_same_report_gives_the_same_light_picture(browser: Browser, report: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    for path in (one, two):
        write_picture(first_screen(browser, report / "index.html"), path)
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size < BYTES
    assert Image.open(one).size == SIZE


def test_a_picture_that_is_too_heavy_is_refused(tmp_path: Path) -> None:
    noise = Image.frombytes("RGB", (1000, 1000), random.Random(0).randbytes(3_000_000))
    with pytest.raises(ValueError, match="expected less than 500,000"):
        write_picture(noise, tmp_path / "noise.png")


def test_letters_and_figures_make_little_difference(browser: Browser, report: Path, tmp_path: Path) -> None:
    picture = first_screen(browser, report / "index.html")
    shutil.copytree(report, tmp_path / "report")
    page, dice = tmp_path / "report/index.html", random.Random(0)
    changed = re.sub(r"\d\.\d{3}\b", lambda _: f"{dice.random():.3f}", page.read_text(encoding="utf-8"))
    assert changed != page.read_text(encoding="utf-8")
    page.write_text(changed, encoding="utf-8")
    assert difference(picture, first_screen(browser, page)) < UNLIKE / 2
    for spacing in ("-.02em", ".02em"):
        other = first_screen(
            browser, report / "index.html", style=f"body {{ letter-spacing: {spacing} !important }}"
        )
        assert difference(picture, other) < UNLIKE, spacing


@pytest.mark.parametrize("name", ["gallery.html", "runs/flow.html", "runs/ridge.html"])
def test_another_page_is_told_apart(browser: Browser, report: Path, name: str) -> None:
    assert (
        difference(first_screen(browser, report / "index.html"), first_screen(browser, report / name))
        > UNLIKE
    )


@pytest.mark.parametrize(
    "style",
    [
        "* { all: revert !important }",
        ".banner { display: none }",
        "body { max-width: 40rem !important }",
        ":root { color-scheme: dark !important }",
    ],
    ids=["no style", "no banner", "narrow", "dark"],
)
def test_another_layout_is_told_apart(browser: Browser, report: Path, style: str) -> None:
    page = report / "index.html"
    assert difference(first_screen(browser, page), first_screen(browser, page, style=style)) > UNLIKE
