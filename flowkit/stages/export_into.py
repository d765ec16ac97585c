"""Exports into a folder of the user's, by hand: `<folder>/<run>` appears as a whole or not at all.

What is under way lies in a folder of its own beside it, so two exports at once cannot mix; the one that ends first gets
the name, and the other is refused. A kill leaves at most a folder `.<run>.*`, which may be deleted.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flowkit.errors import StageError
from flowkit.paths import MANIFEST
from flowkit.progress import logger
from flowkit.provenance import folder_digests, sync, sync_all, write_json
from flowkit.stages.export import write_all
from flowkit.stages.exported_tokens import ExportedTokens
from flowkit.stages.session import Spec


def run_into(specs: Sequence[Spec], folder: Path) -> Iterator[Path]:
    """Write the exports of every `target.run` into `<folder>/<run>` and yield it; no result is touched.

    Raises `StageError` before anything is written if one of them exists or `folder` is none that can be written.
    """
    for spec in specs:
        demand_new(folder / spec.target["run"])
    for spec in specs:
        yield _write_into(spec, folder / spec.target["run"])


def _write_into(spec: Spec, final: Path) -> Path:
    part = _own_folder(final)
    try:
        counts = write_all(part, ExportedTokens(spec))
        manifest = {
            "stage": "export",
            "files": folder_digests(part),
            "counts": counts,
            "experiment": spec.places.experiment,
            "target": {**spec.target},
            "values": spec.values,
            "code": spec.code,
        }
        write_json(part / MANIFEST, manifest)
        sync_all(part)
        demand_new(final)
        with _refusals(final):
            part.rename(final)  # fails where somebody has put a file, or a folder with anything in it
        sync(final.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    logger.info("stage=export run=%s written=%s", final.name, final)
    return final


def _own_folder(final: Path) -> Path:
    """Make a folder beside `final` that is nobody else's."""
    with _refusals(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        mask = os.umask(0o022)
        os.umask(mask)
        part.chmod(0o777 & ~mask)
    return part


def demand_new(folder: Path) -> None:
    """Raise `StageError` if there is anything at a place that an export is to fill, or no folder can be around it."""
    with _refusals(folder):
        is_taken = folder.is_symlink() or folder.exists()
        is_in_file = folder.parent.exists() and not folder.parent.is_dir()
    if is_taken:
        raise StageError(
            f"{folder}: exists, and exports are not written over one another; name another folder"
        )
    if is_in_file:
        raise StageError(f"{folder.parent}: is a file, and exports go into a folder; name another one")


@contextmanager
def _refusals(place: Path) -> Iterator[None]:
    """Turn what the system has against a place into one line; a full disk is left to those who say what to do then."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StageError(
            f"{place}: {error.strerror}; exports go into a new folder that can be written, name another one"
        ) from error
