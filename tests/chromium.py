"""The system's Chromium, quiet and headless, for everything that looks at pages; pages are opened from disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@contextmanager
def started() -> Iterator[Browser]:
    """Start a browser and end it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


def watch(page: Page, troubles: list[str]) -> None:
    """Collect every message, failed request, address of a network and dialog of a page."""
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("requestfailed", lambda request: troubles.append(request.url))
    page.on("request", lambda request: request.url.startswith("http") and troubles.append(request.url))
    page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))


def opened(browser: Browser, path: Path, **settings: object) -> tuple[Page, list[str]]:
    """Open a page from disk; returns it with its troubles, to which later ones are added."""
    page = browser.new_page(**settings)
    troubles: list[str] = []
    watch(page, troubles)
    page.goto(path.as_uri(), wait_until="load")
    return page, troubles
