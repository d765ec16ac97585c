"""How downloads wait: longer after each failure, as long as the server asks, and not for ever.

Waits double from `first_wait_seconds` to `longest_wait_seconds`; `Retry-After` (seconds or a date) and the hub's
`ratelimit` header go first. Refusals that waiting cannot change (401, 403, 404) are not retried anywhere.
`HF_HUB_OFFLINE=1` forbids every download, not only those from the hub.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from flowkit.errors import ShardError

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
TRUE_VALUES = frozenset({"1", "on", "yes", "true"})
_RATE_LIMIT = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
logger = logging.getLogger("flowkit")


class DownloadError(ShardError):
    """A file cannot be downloaded; what has arrived is kept and the next run goes on from there."""


class Refused(DownloadError):
    """The server answered with a status that waiting does not change."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Patience:
    """How often and how long to try; the defaults bridge an outage of about four minutes."""

    failures_in_a_row: int = 10
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    longest_asked_seconds: float = 3600.0
    timeout_seconds: float = 60.0
    sleep: Callable[[float], None] = time.sleep


class Retries:
    """Counts failures in a row and waits after each."""

    def __init__(self, what: str, patience: Patience) -> None:
        self.what, self.patience = what, patience
        self.failures = 0

    def renew(self) -> None:
        """Start to count afresh, because there was progress."""
        self.failures = 0

    def pause(self, reason: str, asked_seconds: float | None) -> None:
        """Wait before the next attempt; raises `DownloadError` when there were too many, or the wait is too long."""
        self.failures += 1
        if self.failures >= self.patience.failures_in_a_row:
            raise DownloadError(
                f"{self.what}: {self.failures} failures in a row, the last one: {reason}; "
                "check the network and run again, what has arrived is kept"
            )
        if asked_seconds is not None and asked_seconds > self.patience.longest_asked_seconds:
            raise DownloadError(
                f"{self.what}: {reason}, and the server asks to wait {asked_seconds:.0f} seconds, "
                f"more than {self.patience.longest_asked_seconds:.0f}; run again after that time"
            )
        growing = self.patience.first_wait_seconds * 2 ** (self.failures - 1)
        wait = min(growing, self.patience.longest_wait_seconds) if asked_seconds is None else asked_seconds
        logger.info(
            "download what=%s failure=%d reason=%r wait=%.1fs", self.what, self.failures, reason, wait
        )
        self.patience.sleep(wait)


def asked_seconds(headers: Mapping[str, str]) -> float | None:
    """Return how long a server asks to wait: `Retry-After` in seconds or as a date, or the hub's `ratelimit`."""
    lower = {name.lower(): value.strip() for name, value in headers.items()}
    value = lower.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    if value:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    match = _RATE_LIMIT.search(lower.get("ratelimit", ""))
    return float(match[1]) if match else None


def demand_online(what: str) -> None:
    """Raise `DownloadError` if the environment says that there is no network."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").lower() in TRUE_VALUES:
            raise DownloadError(
                f"{what} is not here and {variable}={os.environ[variable]} forbids downloads; "
                "run the download stage where there is internet, for instance on a login node"
            )
