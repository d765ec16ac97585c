"""A browser for the tests of a module: Playwright allows no second one in the same process while it is open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chromium import started
from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser
