"""The picture of a report's start page that the README shows: taken always the same way, and compared with another.

`python tests/report_picture.py REPORT PICTURE` takes it. Letters are those that come with matplotlib, because fonts
differ between machines; figures differ between trainings, so pictures are compared as a reader sees them from afar:
in grey, a cell for every few letters.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import matplotlib
import numpy as np
from chromium import started
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser

VIEWPORT = (1300, 1170)
SIZE = (975, 878)
COLOURS = 128
BYTES = 500_000
CELLS = (49, 44)
"""Columns and rows of the view from afar: a cell is twenty pixels wide and high."""
UNLIKE = 0.65
"""Pictures that differ by more show another page or layout. Measured on the demo's start page: other figures .01,
tighter lines and letters up to .5; one column instead of two .8, pages of runs .9 to 1.3, no style 1.2, dark 11."""
FONTS = {"": "400", "-Bold": "700"}


def first_screen(browser: Browser, page: Path, *, style: str = "") -> Image.Image:
    """Return what a reader sees first of a page, `SIZE` large; `style` is CSS that is added to the page."""
    width, height = VIEWPORT
    shown = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme="light", device_scale_factor=1, locale="en"
    )
    shown.goto(page.resolve().as_uri(), wait_until="load")
    shown.add_style_tag(content=_same_letters() + style)
    shown.evaluate("document.fonts.ready")
    shown.evaluate("document.querySelectorAll('img[loading=lazy]').forEach(image => image.loading = 'eager')")
    shown.wait_for_function("[...document.images].every(image => image.complete)")
    taken = Image.open(io.BytesIO(shown.screenshot(animations="disabled")))
    shown.close()
    return taken.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)


def _same_letters() -> str:
    """Return CSS that sets a page in DejaVu Sans; the font is in it, because a page from disk may load no font file."""
    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    faces = ""
    for name, weight in FONTS.items():
        content = base64.b64encode((folder / f"DejaVuSans{name}.ttf").read_bytes()).decode()
        source = f"src: url(data:font/ttf;base64,{content})"
        faces += f"@font-face {{ font-family: picture; font-weight: {weight}; {source}; }}\n"
    return f"{faces} body, button, input {{ font-family: picture !important; }}\n"


def write_picture(picture: Image.Image, to: Path) -> None:
    """Write a picture with few colours; raises `ValueError` when it is too heavy for a README."""
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(to, optimize=True)
    if to.stat().st_size >= BYTES:
        raise ValueError(
            f"{to}: {to.stat().st_size:,} bytes, expected less than {BYTES:,}; use fewer colours"
        )


def from_afar(picture: Image.Image) -> NDArray[np.float64]:
    """Return the grey of each cell, from 0 to 1."""
    return (
        np.asarray(picture.convert("RGB").convert("L").resize(CELLS, Image.Resampling.BOX), np.float64) / 255
    )


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return how unlike two pictures are: 0 for the same, 1 for what has nothing to do with each other.

    The mean absolute difference of their cells, over that of the first picture and an even grey.
    """
    first, second = from_afar(one), from_afar(other)
    return float(np.abs(first - second).mean() / np.abs(first - np.median(first)).mean())


def take(report: Path, to: Path) -> None:
    """Take the picture of a report's start page."""
    with started() as browser:
        write_picture(first_screen(browser, report / "index.html"), to)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
