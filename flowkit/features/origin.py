"""The file behind a store: which one its members are read from, and whether that is the tar that the list names.

Hashing a tar takes as long as reading it, so it happens beside the model. Until the digest is known nobody can say
whether the batches written meanwhile are worth anything. So each batch in the journal names its origin, which is the
size and the times of the file it was read from, and an origin whose digest was right gets a line of its own. Whoever
goes on later keeps the batches of such origins alone. None of this is in the finished store.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from flowkit.errors import ShardError
from flowkit.features.writer import TokenStoreWriter
from flowkit.shards.catalogue import TarDescription, describe_tar


def origin_of(tar: Path) -> str:
    """Size and times of a file, which change with its content; raises `ShardError` if it is gone."""
    # the time of the last change tells a copy from the original even where both have the same date
    return f"{_state(tar)}, changed {_stat(tar).st_ctime_ns}"


class CheckedTar:
    """The tar `path` while a store is made of it. `listed` is what it must be; without it, it is what it is.

    Enter it before the writer closes: leaving waits for the digest.
    """

    def __init__(self, path: Path, listed: TarDescription | None) -> None:
        self.path = path
        self.origin, self._state_before = origin_of(path), _state(path)
        self.description = listed or describe_tar(path)
        self._is_known = listed is None and origin_of(path) == self.origin
        self._pool = ThreadPoolExecutor(1, "digest")
        self._digest: Future[TarDescription] | None = None

    def begin(self, writer: TokenStoreWriter) -> None:
        """Leave in `writer` the batches that are known to be of the right tar, and begin to verify this file.

        A digest that decides about batches of an earlier attempt is waited for. Raises `ShardError` if it is wrong.
        """
        writer.origin = self.origin
        if self._is_known:
            writer.verify_origin(self.origin)
        elif writer.next_index and self.origin not in writer.verified_origins:
            self._digest = self._pool.submit(self._verify, writer)
            self.finish(writer)
        writer.drop_unverified()
        if self.origin not in writer.verified_origins:
            self._digest = self._pool.submit(self._verify, writer)

    def is_sound(self, writer: TokenStoreWriter) -> bool:
        """False if what was just read is worth nothing: `finish` will say why."""
        if _state(self.path) != self._state_before:
            return False
        return self._digest is None or not self._digest.done() or self.origin in writer.verified_origins

    def finish(self, writer: TokenStoreWriter) -> None:
        """Wait for the digest; if it is wrong, or the file changed, take back what came of it: `ShardError`."""
        found = self.description if self._digest is None else self._digest.result()
        if found != self.description:
            writer.drop_unverified()
            listed = self.description
            raise ShardError(
                f"{self.path} has {found['bytes']} bytes and SHA-256 {found['sha256']}, its list says "
                f"{listed['bytes']} and {listed['sha256']}; fetch it again, or list the data set again"
            )
        if _state(self.path) != self._state_before or self.origin not in writer.verified_origins:
            raise ShardError(
                f"{self.path} changed while it was read, from {self.origin} to {origin_of(self.path)}; "
                "run this again when nobody writes it"
            )

    def _verify(self, writer: TokenStoreWriter) -> TarDescription:
        found = describe_tar(self.path)
        if found == self.description and origin_of(self.path) == self.origin:
            writer.verify_origin(self.origin)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()


def _state(tar: Path) -> str:
    status = _stat(tar)
    return f"{status.st_size} bytes, modified {status.st_mtime_ns}"


def _stat(tar: Path) -> os.stat_result:
    try:
        return tar.stat()
    except OSError as error:
        raise ShardError(f"{tar} cannot be read ({error.strerror}); fetch or write it again") from error
