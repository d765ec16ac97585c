"""The workflow page in a real headless browser: every rule of axe-core, a phone, and texts inside their boxes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import needs_chromium
from playwright.sync_api import Browser

from flowkit.report.data import RunFiles, StageRecord
from flowkit.report.rendering import TEMPLATES, Facts, Renderer
from flowkit.report.site import write_files
from flowkit.report.workflow import workflow_page
from flowkit.report.workflow_figure import BOX_WIDTH, PADDING
from flowkit.report.workflow_nodes import read_nodes

pytestmark = [needs_chromium, pytest.mark.slow]
NAMES = (
    "größenübertragung mit langem Namen",
    "WWWWWWWWWWWWWWWWWWWWWWW",
    "训练数据集的名字很长很长很长",
    "flow",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of four runs with long names, of which one is not done and one has lost its record."""
    folder = tmp_path_factory.mktemp("workflow")
    nodes = [{"name": "pairs", "stage": "pairs", "label": "x · y", "after": [], "folders": ["data:pairs"]}]
    for number, name in enumerate(NAMES):
        place = f"results:{number}"
        nodes.append(
            {"name": f"t{number}", "stage": "train", "label": name, "after": ["pairs"], "folders": [place]}
        )
        if number != 3:
            (folder / str(number)).mkdir()
            (folder / str(number) / "manifest.json").write_text("{}")
        if number in (0, 1):
            made = {
                "stage": "train",
                "seconds": 3000.0 + number,
                "started": "2026-01-02T03:00:00Z",
                "code": ["a@1"],
            }
            record = made | {"versions": {"torch": f"2.{number}"}, "host": {"name": f"node{number}"}}
            (folder / str(number) / "run.json").write_text(json.dumps(record))
    runs = [
        RunFiles(name, [], {}, [StageRecord("train", {"spec": {"values": {"train": {"seed": number}}}})])
        for number, name in enumerate(NAMES)
    ]
    render = Renderer(Facts("small", "small", "a", "b", is_demo=True), pages={}, legend={})
    found = read_nodes(nodes, folder, folder)
    command = "snakemake --profile profiles/local --configfile workflow/config/a-rather-long-name.yaml"
    files = workflow_page(
        render, found, runs, {"train": {"seed": 0}}, command, meanings={"train": "Train a run."}
    )
    files |= {name: (TEMPLATES / name).read_bytes() for name in ("style.css", "site.js")}
    write_files(files, folder / "report")
    return folder / "report"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1300])
def test_page_passes_axe_and_only_the_picture_scrolls(
    browser: Browser, site: Path, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto((site / "workflow.html").as_uri())
    for details in page.locator("details").all():
        details.evaluate("one => one.open = true")
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    image = page.locator(".dag img")
    assert image.evaluate("one => one.clientWidth / Number(one.getAttribute('width'))") >= 0.84
    page.close()


def test_texts_stay_inside_their_boxes_in_this_machines_own_letters(browser: Browser, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "figures/workflow.svg").as_uri())
    widths = page.evaluate(
        "[...document.querySelectorAll('text')].map(one => [one.textContent, one.getBBox().width])"
    )
    assert len(widths) > 12
    assert [text for text, width in widths if width > BOX_WIDTH - PADDING] == []
    page.close()
