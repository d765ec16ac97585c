"""Long tables and the comparison of two runs in a real headless browser, on a small report full of hostile names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import needs_chromium, watch
from interaction_material import (
    HOSTILE,
    IMAGE,
    QUOTED,
    RUNS,
    SCRIPT,
    comparison_site,
    details,
    tables_site,
    write,
)
from playwright.sync_api import Browser, Page, expect

from flowkit.evaluation.bootstrap import draw_counts
from flowkit.evaluation.differences import differences
from flowkit.report.paired import DRAWS, drawn_rows
from flowkit.report.scene import slug

pytestmark = [needs_chromium, pytest.mark.slow]
METRICS = [f"metric_{number}" for number in range(40)]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interaction")
    write(tables_site(25, 10, METRICS), folder)
    return write(comparison_site(list(RUNS)), folder)


@pytest.fixture
def visit(browser: Browser, site: Path) -> Iterator[Open]:
    """Opens pages and fails the test on any trouble with them."""
    troubles: list[str] = []
    contexts = []

    def opened(name: str, *, is_watched: bool = True, **settings: object) -> Page:
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        if is_watched:
            watch(page, troubles)
        path, sign, rest = name.partition("#")
        page.goto((site / path).as_uri() + sign + rest)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def table_of(page: Page, at: int = 0):
    """The table with its tools; waits for its rows."""
    page.wait_for_function(f"document.querySelectorAll('.tools').length > {at}")
    return page.locator("table").nth(at), page.locator(".tools").nth(at)


def column(page: Page, at: int, table: int = 0) -> list[str]:
    """What stands in a column, without the notes."""
    return page.evaluate(
        """([table, at]) => Array.from(document.querySelectorAll("table")[table].tBodies[0].rows,
            (row) => row.cells[at].firstChild.textContent)""",
        [table, at],
    )


def test_long_table_shows_a_page_of_rows_and_sorts_all_of_them(visit: Open) -> None:
    page = visit("index.html")
    table, tools = table_of(page)
    assert tools.locator("output").inner_text() == "rows 1 to 100 of 250"
    assert table.locator("caption .cut").count() == 0
    came = column(page, 0) + column(page, 1)
    head = table.locator("th", has_text="metric_0")
    at = head.evaluate("head => head.cellIndex")

    def walked() -> list[str]:
        found = column(page, at)
        while tools.get_by_role("button", name="Next 100").get_attribute("aria-disabled") == "false":
            tools.get_by_role("button", name="Next 100").click()
            found += column(page, at)
        return found

    for order, sign in (("descending", -1), ("ascending", 1)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        assert tools.locator("output").inner_text() == "rows 1 to 100 of 250"  # back on the first page
        values = walked()
        assert len(values) == 250
        measured = [float(value) for value in values if value != "–"]
        assert measured == sorted(measured, key=lambda value: sign * value)
        assert values[len(measured) :] == ["–"] * (250 - len(measured))  # missing stays last either way
        assert len(measured) < 250
    head.locator("button").click()
    assert head.get_attribute("aria-sort") is None
    assert column(page, 0) + column(page, 1) == came


def test_rows_that_are_equal_keep_their_order_and_names_sort_by_their_numbers(visit: Open) -> None:
    page = visit("index.html")
    table, _ = table_of(page)
    came = column(page, 0)
    for _ in range(2):
        table.locator("th", has_text="evaluations").locator("button").click()  # 49 everywhere
        assert column(page, 0) == came
    table.locator("th", has_text="sampler").locator("button").click()
    assert column(page, 1)[24:26] == ["heun-1", "heun-2"]
    assert "heun-10" not in column(page, 1)


def test_filter_matches_all_words_and_says_how_many_rows(visit: Open) -> None:
    page = visit("index.html")
    table, tools = table_of(page)
    output, field = tools.locator("output"), tools.locator("input")
    expect(tools.get_by_role("status")).to_have_count(1)  # read out when it changes
    field.fill("RUN-1 heun-1")
    expect(output).to_have_text("20 of 250 rows match")  # run-10 to run-19, each heun-1 and heun-10
    assert set(column(page, 1)) == {"heun-1", "heun-10"}
    assert all(name.startswith("run-1") for name in column(page, 0))
    expect(tools.get_by_role("button", name="Next 100")).to_be_hidden()
    field.fill("0.9")  # figures are not looked at
    expect(output).to_have_text("0 of 250 rows match")
    field.fill(SCRIPT)
    expect(output).to_have_text("10 of 250 rows match")
    field.fill("")
    expect(output).to_have_text("rows 1 to 100 of 250")
    field.fill("run-")
    expect(output).to_have_text("220 of 250 rows match, rows 1 to 100")
    assert len(table.locator("tbody tr").all()) == 100


def test_long_table_with_the_keyboard_alone(visit: Open) -> None:
    page = visit("index.html")
    table, tools = table_of(page)
    tools.locator("input").focus()
    page.keyboard.type("heun-2")
    expect(tools.locator("output")).to_have_text("25 of 250 rows match")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.press("Delete")
    expect(tools.locator("output")).to_have_text("rows 1 to 100 of 250")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Previous 100"
    page.keyboard.press("Enter")  # nothing before the first rows; the button keeps the focus
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Space")
    expect(tools.locator("output")).to_have_text("rows 201 to 250 of 250")
    assert page.evaluate("document.activeElement.textContent") == "Next 100"
    page.keyboard.press("Tab")  # the region that scrolls
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert table.locator("th[aria-sort]").inner_text().startswith("run")
    expect(tools.locator("output")).to_have_text("rows 1 to 100 of 250")


def test_closed_table_of_all_metrics_loads_when_opened(visit: Open) -> None:
    page = visit("index.html")
    table_of(page)
    assert page.locator("script[src*=results-all]").count() == 0
    page.get_by_text("All metrics", exact=True).click()
    table, tools = table_of(page, 1)
    assert tools.locator("output").inner_text() == "rows 1 to 30 of 250"  # wide rows, fewer of them
    table.locator("th", has_text="metric_39").locator("button").click()
    values = column(page, table.locator("th", has_text="metric_39").evaluate("head => head.cellIndex"), 1)
    assert values[0] > values[-1]


def test_long_table_without_scripts_says_what_it_leaves_out(visit: Open) -> None:
    page = visit("index.html", java_script_enabled=False)
    assert page.locator("table").first.locator("tbody tr").count() == 100
    caption = page.locator("caption").first.inner_text()
    assert "The first 100 of 250 lines; all of them are in data/summary.csv" in caption


def test_missing_data_file_leaves_the_printed_rows(browser: Browser, tmp_path: Path) -> None:
    files = tables_site(25, 10, METRICS[:2])
    write({name: content for name, content in files.items() if not name.startswith("data/tables")}, tmp_path)
    page = browser.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    expect(page.locator("caption").first).to_contain_text("could not be loaded")
    assert page.locator("table").first.locator("tbody tr").count() == 100
    page.close()


def words_of(page: Page) -> str:
    """Every word of the comparison, what is folded away too."""
    return re.sub(r"\s+", "", page.locator("#comparison").text_content() or "")


def pictures_of(page: Page) -> list[list[str]]:
    return page.evaluate(
        """Array.from(document.querySelectorAll("#comparison img"),
            (one) => [one.getAttribute("src"), one.alt, one.className.trim(), one.width, one.loading])"""
    )


def ready(page: Page) -> Page:
    """Wait for the data of the chosen pair."""
    page.wait_for_function("document.getElementById('sampler-b').options.length > 0")
    return page


def test_default_pair_is_printed_in_full_and_the_script_says_the_same(visit: Open) -> None:
    """The page without scripts, as it comes with scripts, and rendered by the script."""
    bare = visit("compare.html", java_script_enabled=False)
    assert "flow · heun-50 against regression · direct-1" in bare.locator("#about").inner_text()
    assert not bare.locator("#choice").is_visible()
    printed, pictures = words_of(bare), pictures_of(bare)
    assert "Whoisaheadisnotshown:flow·heun-50is0.0005aboveregression·direct-1" in printed
    assert len(pictures) > 4
    page = ready(visit("compare.html"))
    assert words_of(page) == printed
    page.select_option("#run-a", slug("ridge"))
    expect(page.locator("#verdict")).to_contain_text("ridge")
    page.select_option("#run-a", "flow")
    expect(page.locator("#side-a")).to_contain_text("flow")
    assert words_of(page) == printed
    assert pictures_of(page) == pictures


@pytest.mark.parametrize("b", ["ridge", IMAGE, SCRIPT, QUOTED])
def test_any_pair_is_said_alike_by_script_and_by_the_report(visit: Open, tmp_path: Path, b: str) -> None:
    """Hostile names too: both sides of each pair stay words."""
    write(comparison_site(["flow", b]), tmp_path)
    bare = visit("compare.html#", java_script_enabled=False)
    bare.goto((tmp_path / "compare.html").as_uri())
    page = ready(visit(f"compare.html#a=flow&b={slug(b)}"))
    expect(page.locator("#side-b")).to_contain_text(b.split()[0])
    assert words_of(page) == words_of(bare)
    assert pictures_of(page) == pictures_of(bare)


def test_interval_is_that_of_the_evaluation(visit: Open) -> None:
    page = ready(visit("compare.html#a=flow&as=euler-1&b=ridge"))
    expect(page.locator("#side-a")).to_contain_text("euler-1")
    found = re.search(
        r"by ([\d.]+) \(95 % interval ([\d.]+) to ([\d.]+)", page.locator("#verdict").inner_text()
    )
    assert found
    low, high = float(found[2]), float(found[3])
    ours, theirs = details(0.90, 1), details(0.88, 10 * list(RUNS).index("ridge"))
    arrays = [{"error_image": one.error_image, "spread_image": one.spread_image} for one in (ours, theirs)]
    rows = drawn_rows(len(ours.error_image), 0, DRAWS)
    counts = np.stack([np.bincount(row.astype(int), minlength=rows.shape[1]) for row in rows]).astype(float)
    same = differences({}, arrays[0], {}, arrays[1], counts)["r2"]
    width = same.high - same.low
    printed = 0.00005
    assert abs(low - same.low) < 0.01 * width + printed
    assert abs(high - same.high) < 0.01 * width + printed
    drawn = differences(
        {}, arrays[0], {}, arrays[1], draw_counts(len(ours.error_image), draws=20000, seed=0)
    )["r2"]
    # 1,000 draws know an end of the interval to 2 % of its width
    assert abs(low - drawn.low) < 0.08 * width
    assert abs(high - drawn.high) < 0.08 * width


@pytest.mark.parametrize("sides", ["a=flow&as=euler-1&b=SCRIPT", "a=SCRIPT&b=flow&bs=euler-1"])
def test_interval_is_that_of_the_summary_where_it_has_the_pair(visit: Open, sides: str) -> None:
    """A pair that no page comes with: only the script knows it."""
    page = ready(visit("compare.html#" + sides.replace("SCRIPT", slug(SCRIPT))))
    verdict = page.locator("#verdict")
    expect(verdict).to_contain_text("flow · euler-1 is ahead of")
    expect(verdict).to_contain_text("by 0.3000 (95 % interval 0.2812 to 0.3457, image by image)")
    expect(page.locator("#source")).to_contain_text("Here it is that of the summary")
    rows = page.locator("#key tbody tr")
    is_turned = sides.startswith("a=SCRIPT")
    distance = "−0.01234 to 0.61234" if is_turned else "−0.61234 to 0.01234"
    expect(rows.filter(has_text="Fréchet, images")).to_contain_text(distance)
    r2, skill = (rows.filter(has_text=label).locator("td").last for label in ("R²", "gap closed"))
    expect(skill).to_contain_text(f"{'B' if is_turned else 'A'} is ahead")
    assert skill.inner_text() == r2.inner_text()
    page.goto(page.url.replace("euler-1", "heun-50").replace(slug(SCRIPT), "ridge"))
    expect(page.locator("#source")).to_contain_text("from 1,000 draws of the images")


def test_choice_stands_in_the_address_and_goes_back(visit: Open) -> None:
    page = ready(visit("compare.html"))
    page.select_option("#sampler-a", "euler-1")
    expect(page.locator("#side-a")).to_contain_text("flow · euler-1")
    assert "a=flow&as=euler-1&b=regression" in page.url
    page.get_by_role("button", name="Swap").click()
    expect(page.locator("#side-b")).to_contain_text("flow · euler-1")
    assert page.input_value("#sampler-b") == "euler-1"
    page.go_back()
    expect(page.locator("#side-a")).to_contain_text("flow · euler-1")
    page.get_by_text("Skip to content").focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    assert "flow · euler-1" in page.locator("#side-a").inner_text()
    unknown = visit("compare.html#a=gone&b=flow")
    expect(unknown.get_by_role("alert")).to_have_text("There is no run “gone” in this report.")


def test_one_run_against_itself_and_alone(visit: Open, tmp_path: Path) -> None:
    page = ready(visit("compare.html#a=flow&b=flow"))
    expect(page.locator("#verdict")).to_have_text("Both sides are the same run with the same sampler.")
    page.goto((write(comparison_site(["flow"]), tmp_path) / "compare.html").as_uri())
    assert "There is nothing to compare flow with" in page.locator("main").inner_text()


def test_hostile_words_are_shown_as_words(visit: Open) -> None:
    page = ready(visit(f"compare.html#a={slug(IMAGE)}&as={'x'}&b={slug(SCRIPT)}"))
    expect(page.locator("#side-b")).to_contain_text(SCRIPT)
    page.get_by_text("All metrics", exact=True).click()
    text = page.locator("#comparison").inner_text()
    for word in (IMAGE, SCRIPT, f"train.{IMAGE}", "__proto__"):
        assert word in text
    assert page.locator("#run-a option").all_text_contents() == list(RUNS)
    assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    tables = visit("index.html")
    table_of(tables)
    assert [name for name in column(tables, 0)[::10] if name in HOSTILE] == list(HOSTILE)
    assert tables.evaluate("document.querySelectorAll('img').length") == 0


@pytest.mark.parametrize("name", ["compare.html", "compare.html#a=flow&b=ridge", "index.html"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390])
def test_axe_finds_nothing(visit: Open, name: str, scheme: str, width: int) -> None:
    # axe asks for the style sheet in a way that pages from a file may not, and the console says so
    page = visit(name, is_watched=False, color_scheme=scheme, viewport={"width": width, "height": 900})
    if name == "index.html":
        table_of(page)
    else:
        ready(page)
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "the page scrolls sideways"
    )
