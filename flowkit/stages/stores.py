"""How a token store tells what is in it: by the checksums of its records, without reading terabytes again."""

from __future__ import annotations

from pathlib import Path

from flowkit.features.store import TokenStore


def digests_of_store(folder: Path) -> dict[str, str]:
    """Return {file name: digest} of a finished store; raises `StoreError` if it is damaged."""
    return TokenStore(folder).file_digests()
