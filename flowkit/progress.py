"""What a person sees while a stage works: a bar on a terminal, one line with rate and remaining time in a log."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

LOG_EVERY_SECONDS = 15.0
logger = logging.getLogger("flowkit")


def set_up_logging() -> None:
    """Send one line per event to standard error, with the time in front."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )


class Progress:
    """Counts work towards `total`; a tqdm bar on a terminal, otherwise a log line every 15 seconds."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.start_done = self.done = done
        self.start = self.last_log = time.monotonic()
        self.bar = (
            tqdm(total=total, initial=done, unit=f" {unit}", desc=what) if sys.stderr.isatty() else None
        )

    def advance(self, count: int = 1) -> None:
        """Add `count` pieces of finished work."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif time.monotonic() - self.last_log > LOG_EVERY_SECONDS:
            self.last_log = time.monotonic()
            logger.info("%s done=%d of=%d %s", self.what, self.done, self.total, self._pace())

    def close(self) -> None:
        """End the bar, or log the final count and rate."""
        if self.bar is not None:
            self.bar.close()
        else:
            logger.info("%s done=%d of=%d rate=%.1f/s", self.what, self.done, self.total, self.rate)

    @property
    def rate(self) -> float:
        """Pieces per second since the start of this process."""
        return (self.done - self.start_done) / max(time.monotonic() - self.start, 1e-9)

    def _pace(self) -> str:
        remaining = (self.total - self.done) / max(self.rate, 1e-9)
        return f"rate={self.rate:.1f}_{self.unit}/s remaining={remaining:.0f}s"
