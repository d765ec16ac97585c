"""Writes the report: a folder of static pages that opens from a file, without network and without JavaScript.

`build_site` makes every file in memory, checks the budgets, writes the folder under a temporary name and
only then puts it in place of the old one. The same inputs give the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from flowkit.errors import ReportError
from flowkit.report.data import ReportInputs, load_results
from flowkit.report.pages import render_site

PAGE_BYTES = 1_500_000
IMAGE_BYTES = 20_000
IMAGES_PER_PAGE = 200
SITE_BYTES = 50_000_000
MARK = "style.css"


def build_site(inputs: ReportInputs, out: Path) -> list[Path]:
    """Write the report of `inputs.experiment` to the folder `out` and return its files, sorted.

    Raises `ReportError` when a result is missing or damaged, when a budget is exceeded (the largest files
    are named), or when `out` exists and is no report. An earlier report at `out` stays as it is until the
    new one is complete.
    """
    if out.exists() and not (out / MARK).is_file() and any(out.iterdir()):
        raise ReportError(f"{out} exists and is no report, give another folder or remove it")
    files = render_site(inputs, load_results(inputs))
    check_budgets(files)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, content in files.items():
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return sorted(out / name for name in files)


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
    total = sum(map(len, files.values()))
    if total > SITE_BYTES:
        raise ReportError(
            f"the report has {total:,} bytes, at most {SITE_BYTES:,}; the largest files are {_largest(files)}"
        )


def _check(files: Mapping[str, bytes], limit: int, what: str, remedy: str) -> None:
    heavy = {name: data for name, data in files.items() if len(data) > limit}
    if heavy:
        raise ReportError(f"{what} over {limit:,} bytes: {_largest(heavy)}; {remedy}")


def _largest(files: Mapping[str, bytes]) -> str:
    ranked = sorted(files.items(), key=lambda item: (-len(item[1]), item[0]))[:5]
    return ", ".join(f"{name} ({len(data):,})" for name, data in ranked)
