"""Keys of views: where an object has several images, each of them has a key of its own.

<key>.0, <key>.1 ...    the views of the object <key>
"""

from __future__ import annotations


def key_of_view(key: str, view: int) -> str:
    """Return the key of a view of the object `key`."""
    return f"{key}.{view}"


def object_and_view(key: str) -> tuple[str, int]:
    """Return what `key_of_view` was given; a key of a tar has no dot in its last part, so there is no doubt."""
    name, _, view = key.rpartition(".")
    return name, int(view)
