"""One export: tokens of many images into the file that a consumer takes, in bounded memory.

    read + convert | read + convert | write

Two threads read chunks and make rows of them while a third writes the chunk before, in order; all three spend their
time outside Python's lock. A chunk belongs to one of a few slots whose buffers are used again, so memory depends on
neither the number of images nor on how fast the disk is. Rows that are not finite are left out and named.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowkit.errors import StoreError
from flowkit.export.consumers import Consumer, demand_form
from flowkit.export.layouts import Grid, Head, Pooled, RowMaker
from flowkit.export.sources import TokenSource
from flowkit.export.tensor_files import TENSOR, Format, TensorFile
from flowkit.features.stream import disk_errors
from flowkit.provenance import read_json, write_json

KEYS, DESCRIPTION = "keys.json", "export.json"
CHUNK_BYTES = 2**22
"""What a slot holds of tokens, or of finished rows, about."""
WORKERS, SLOTS = 2, 4
REFUSED = "refused when they were sampled: not finite, or beyond float16"
LOST = "not finite, or without a direction"
LeftOut = dict[str, dict[str, list[str]]]
"""Keys by reason: under `samples` those of the data set, under `rows` those that an export gives its rows."""


@dataclass(frozen=True)
class Content:
    """What tokens are: their layout (`data.layout`), how many views a row holds, and the tower's head if needed."""

    layout: str
    views: int = 1
    head: Head | None = None


@dataclass
class _Slot:
    """The buffers of one chunk, used again for a later one."""

    maker: RowMaker
    tokens_BTD: torch.Tensor
    rows: torch.Tensor
    taken: int = 0
    lost: tuple[int, ...] = ()


def write_export(
    folder: Path,
    consumer: Consumer,
    source: TokenSource,
    content: Content,
    *,
    file_format: Format = "safetensors",
    about: dict[str, Any] | None = None,
    advance: Callable[[int], object] = int,
) -> dict[str, Any]:
    """Write tensor, keys and description into the new folder `folder`; returns the description.

    `about` is added to the description: run, sampler, encoder and whatever else only the caller knows. `advance` is
    told how many images are done. With V views, a row of the source holds the tokens of all of them one after the
    other, and image `k` makes the rows `k.0` to `k.V-1`. Raises `ConfigError` for tokens that do not hold what the
    consumer takes, `StoreError` for tokens that do not divide into views, damaged records, a full disk, or where no
    row is left.
    """
    demand_form(consumer, content.layout)
    make_row = _row_maker(consumer, source, content)
    folder.mkdir(parents=True)
    keys = _row_keys(source.keys, content.views)
    lost: list[str] = []
    with (
        _one_thread_each(),
        TensorFile(folder, file_format, make_row().row_shape, len(keys)) as file,
    ):
        for first, slot in _slots(source, content.views, make_row):
            rows = slot.rows[: slot.taken * content.views].numpy()
            if slot.lost:
                lost += [keys[first * content.views + row] for row in slot.lost]
                rows = np.delete(rows, slot.lost, axis=0)
            file.append(rows)
            advance(slot.taken)
        left_out = {"samples": {REFUSED: source.refused_keys}, "rows": {LOST: lost}}
        if len(lost) == len(keys):
            raise StoreError(_nothing_left(consumer, source, left_out))
        shape = file.finish()
    gone = set(lost)
    write_json(folder / KEYS, [key for key in keys if key not in gone])
    described = {
        **_described(consumer, content, file_format, shape),
        "left_out": left_out,
        **(about or {}),
    }
    write_json(folder / DESCRIPTION, described)
    return described


def _nothing_left(consumer: Consumer, source: TokenSource, left_out: LeftOut) -> str:
    counts = [
        f"{len(keys)} {what} {reason}"
        for what, reasons in left_out.items()
        for reason, keys in reasons.items()
        if keys
    ]
    if not counts:
        return f"{consumer.name}: there are no samples to export; sample the run again"
    return (
        f"{consumer.name}: no row is left to export: {'; '.join(counts)}; the run has diverged, lower its learning "
        "rate or guidance"
    )


def share_export(folder: Path, consumer: Consumer, made: Path) -> dict[str, Any]:
    """Make an export for a consumer that takes what lies in `made` for another one: the same files, by hard links
    where the file system has them.

    Returns the description; raises `ValueError` if the two take different forms.
    """
    described = read_json(made / DESCRIPTION)
    if described["layout"] != consumer.form:
        raise ValueError(f"{consumer.name} takes {consumer.form}, {made} holds {described['layout']}")
    folder.mkdir(parents=True)
    for name in (described["file"], KEYS):
        try:
            os.link(made / name, folder / name)
        except (
            OSError
        ):  # some file systems have no hard links; where it is the disk that is full, the copy says so
            with disk_errors(folder / name):
                shutil.copyfile(made / name, folder / name)
    described |= _of_consumer(consumer)
    write_json(folder / DESCRIPTION, described)
    return described


def _of_consumer(consumer: Consumer) -> dict[str, Any]:
    return {
        "consumer": consumer.name,
        "title": consumer.title,
        "source": consumer.source,
        "hook": f"flowkit.export.hooks.{consumer.hook}",
    }


def _described(
    consumer: Consumer, content: Content, file_format: Format, shape: tuple[int, ...]
) -> dict[str, Any]:
    drops = not consumer.needs_class_token and content.layout == "cls_patches"
    axes = {"channels_first": "image, channel, patch", "channels_last": "image, patch, channel"}
    return {
        **_of_consumer(consumer),
        "file": f"{TENSOR}.{file_format}",
        "tensor": TENSOR,
        "dtype": "float32",
        "shape": list(shape),
        "layout": consumer.form,
        "axes": axes.get(consumer.form, "image, channel"),
        "norm": consumer.norm,
        "views": content.views,
        "dropped": "class token" if drops else "",
    }


def _row_maker(consumer: Consumer, source: TokenSource, content: Content) -> Callable[[], RowMaker]:
    """Return what makes a fresh maker of rows for each slot; raises `StoreError` if rows hold no whole views."""
    _, tokens, channels = source.shape
    if tokens % content.views:
        raise StoreError(
            f"{tokens} tokens per image are no {content.views} views of the same size; give the data's number of views"
        )
    if consumer.needs_class_token:
        head = None if content.layout == "pooled" else content.head
        if head is None and content.layout != "pooled":
            raise ValueError("pooled embeddings of tokens need the tower's head")
        width = channels if head is None else len(head["projection.weight"])
        return lambda: Pooled(width, head)
    has_class_token = content.layout == "cls_patches"
    return lambda: Grid(
        tokens // content.views - int(has_class_token),
        channels,
        channels_first=consumer.form == "channels_first",
        drops_first=has_class_token,
    )


def _slots(source: TokenSource, views: int, make_row: Callable[[], RowMaker]) -> Iterator[tuple[int, _Slot]]:
    """Yield (first image, filled slot) in order; a slot is filled again once the next one is asked for."""
    images, tokens, channels = source.shape
    row_bytes = 4 * views * int(np.prod(make_row().row_shape))
    step = max(1, CHUNK_BYTES // max(row_bytes, source.dtype.itemsize * tokens * channels))
    starts = iter(range(0, images, step))

    def fill(slot: _Slot, first: int) -> _Slot:
        slot.taken = min(step, images - first)
        taken = slot.tokens_BTD[: slot.taken]
        source.read(first, first + slot.taken, taken)
        by_view = taken.view(slot.taken * views, tokens // views, channels)
        slot.lost = tuple(slot.maker.fill(slot.rows[: len(by_view)], by_view))
        return slot

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="export") as pool:
        under_way: deque[tuple[int, Future[_Slot]]] = deque()
        for _, first in zip(range(SLOTS), starts, strict=False):
            under_way.append((first, pool.submit(fill, _slot(source, views, make_row(), step), first)))
        while under_way:
            first, filled = under_way.popleft()
            slot = filled.result()
            yield first, slot
            if (following := next(starts, None)) is not None:
                under_way.append((following, pool.submit(fill, slot, following)))


def _slot(source: TokenSource, views: int, maker: RowMaker, images: int) -> _Slot:
    tokens_BTD = torch.empty(images, *source.shape[1:], dtype=source.dtype)
    return _Slot(maker, tokens_BTD, torch.empty(images * views, *maker.row_shape))


def _row_keys(keys: list[str], views: int) -> list[str]:
    return keys if views == 1 else [f"{key}.{view}" for key in keys for view in range(views)]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep torch from sharing out copies of a megabyte among threads, which takes longer than the copies."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
