"""Work ahead in a thread: the next items of an iterator are made while the current one is used.

One thread, items in order. While the consumer holds item k, the items up to k + `depth` are made and no later one
is begun. Errors of the source arrive at the consumer in their place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class _End:
    """Marks the end of the source."""


def prefetched(source: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield the items of `source`, made by a thread up to `depth` items ahead; closing it ends the thread.

    A source that is a generator is closed with it.
    """
    end = _End()
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        waiting = deque(pool.submit(next, source, end) for _ in range(depth))
        while not isinstance(item := waiting.popleft().result(), _End):
            waiting.append(pool.submit(next, source, end))
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if isinstance(source, Generator):
            source.close()
