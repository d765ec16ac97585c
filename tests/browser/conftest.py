"""One browser for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chromium import started
from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser
