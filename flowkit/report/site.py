"""The report as a folder of files: written, read back, checked against the budgets, copied to where people open it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from flowkit.errors import ReportError
from flowkit.report.rendering import Files

PAGE_BYTES = 1_500_000
IMAGE_BYTES = 20_000
IMAGES_PER_PAGE = 200
SITE_BYTES = 50_000_000
RUN_BYTES, RUNS_IN_SITE = 1_000_000, 25
"""What every further page of a run may add to the whole, and from which on."""
MARK = "style.css"
"""A folder without it is no report and is not replaced."""


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files by their path below a folder, in place of what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read_files(folder: Path, *, without: str) -> Files:
    """Return every file below a folder by its path, but the one called `without`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in found.items() if name != without}


def copy_report(content: Path, to: Path) -> None:
    """Put a copy of a report in place of the one at `to`, which stays as it is until the copy is complete.

    Raises `ReportError` when something else is at `to`.
    """
    if to.exists() and not (to / MARK).is_file() and any(to.iterdir()):
        raise ReportError(f"{to} exists and is no report, give another folder or remove it")
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(content, partial)
    if to.exists():
        shutil.rmtree(to)
    partial.rename(to)


def check_budgets(files: Mapping[str, bytes]) -> None:
    """Raise `ReportError` naming the largest files when a page, an image or the whole report is too heavy."""
    pages = {name: data for name, data in files.items() if name.endswith(".html")}
    images = {name: data for name, data in files.items() if name.startswith(("images/", "maps/"))}
    _check(pages, PAGE_BYTES, "pages", "show fewer runs or fewer rows")
    _check(images, IMAGE_BYTES, "thumbnails", "make them smaller")
    for name, data in pages.items():
        if (count := data.count(b"/images/") + data.count(b'"images/')) > IMAGES_PER_PAGE:
            raise ReportError(
                f"{name} shows {count} images, at most {IMAGES_PER_PAGE}; lower report.gallery_images"
            )
    runs = sum(name.startswith("runs/") for name in pages)
    total, most = sum(map(len, files.values())), SITE_BYTES + RUN_BYTES * max(0, runs - RUNS_IN_SITE)
    if total > most:
        raise ReportError(
            f"the report has {total:,} bytes, at most {most:,} with {runs} runs; lower report.gallery_images or make "
            f"an experiment of some of its runs; the largest files are {_largest(files)}"
        )


def _check(files: Mapping[str, bytes], limit: int, what: str, remedy: str) -> None:
    heavy = {name: data for name, data in files.items() if len(data) > limit}
    if heavy:
        raise ReportError(f"{what} over {limit:,} bytes: {_largest(heavy)}; {remedy}")


def _largest(files: Mapping[str, bytes]) -> str:
    ranked = sorted(files.items(), key=lambda item: (-len(item[1]), item[0]))[:5]
    return ", ".join(f"{name} ({len(data):,})" for name, data in ranked)
