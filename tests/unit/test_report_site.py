"""The report as a whole, built from a tiny fabricated experiment: what a reader and a browser would notice.

The experiment has the files that the stages write; hostile names and captions stand in on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from site_material import HOSTILE, Experiment, build, pictures, write_details, write_experiment, write_summary

from flowkit.errors import ReportError
from flowkit.evaluation.collected import collect, collect_true
from flowkit.evaluation.details import per_image
from flowkit.report.data import Difference, Measurement, Picture, Results, RunFiles, read_results, read_run
from flowkit.report.details import read_details
from flowkit.report.made_page import read_made_page
from flowkit.report.pages import Site, render_site
from flowkit.report.rendering import Facts
from flowkit.report.run_page import RunPage, render_run
from flowkit.report.site import IMAGE_BYTES, PAGE_BYTES, check_budgets
from flowkit.report.standings import kind_of
from flowkit.report.states import RunState
from flowkit.report.tables import thresholds_table

PLAIN = Facts("bare", "bare", "a", "b", is_demo=False)


class Page(HTMLParser):
    """Collects what the tests ask of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture
def inputs(tmp_path: Path) -> Experiment:
    return write_experiment(tmp_path)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished report that no test changes."""
    folder = tmp_path_factory.mktemp("site")
    build(write_experiment(folder), folder / "report")
    return folder / "report"


def page_paths(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_same_inputs_give_the_same_bytes(inputs: Experiment, tmp_path: Path) -> None:
    first = build(inputs, tmp_path / "one")
    second = build(inputs, tmp_path / "two")
    assert [path.relative_to(tmp_path / "one") for path in first] == [
        path.relative_to(tmp_path / "two") for path in second
    ]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


def test_pages_have_one_headline_in_order_and_words_for_each_image(site: Path) -> None:
    for path in page_paths(site):
        page = Page(path)
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels.count(1) == 1, path.name
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels)), path.name
        assert all(image["alt"] for image in page.all("img")), path.name
        assert all("scope" in head for head in page.all("th")), path.name


def test_pages_need_no_network_and_every_link_leads_somewhere(site: Path) -> None:
    for path in page_paths(site):
        page = Page(path)
        links = [
            value for tag in page.tags for name, value in tag[1].items() if name in ("src", "href") and value
        ]
        for link in links:
            assert not re.match(r"[a-z]+://|//", link), f"{path.name}: {link}"
            if not link.startswith(("#", "data:,")):
                assert (path.parent / link).is_file(), f"{path.name}: {link}"
    for path in [*site.rglob("*.svg"), *site.glob("*.css"), *site.glob("*.js")]:
        text = re.sub(r'xmlns(:\w+)?="[^"]*"', "", path.read_text(encoding="utf-8"))
        text = text.replace("http://www.w3.org/2000/svg", "a name, no address")
        assert "http" not in text, path.name


def test_ids_are_not_used_twice(site: Path) -> None:
    for path in page_paths(site):
        ids = [attributes["id"] for _, attributes in Page(path).tags if "id" in attributes]
        assert len(ids) == len(set(ids)), path.name


def test_hostile_words_stay_words(site: Path) -> None:
    for path in page_paths(site):
        page = Page(path)
        scripts = [str(script.get("src")).removeprefix("../") for script in page.all("script")]
        assert set(scripts) <= {"site.js", "compare.js"}, path.name
    assert any(HOSTILE in (image["alt"] or "") for image in Page(site / "gallery.html").all("img"))
    for path in site.rglob("*.svg"):
        assert "<script" not in path.read_text(encoding="utf-8"), path.name


def test_first_page_says_which_run_is_best_and_what_holds(site: Path) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", Page(site / "index.html").text).split())
    assert "Best trained run regression · direct-1 R² 0.940" in text
    assert "Goals: 1 of 2 shown" in text
    assert "✓ shown" in text
    assert "– not shown" in text
    assert "not measured, asked for 0.5" in text
    assert "measured not measured" not in text
    assert "against ridge R² 0.140 above (intervals apart)" in text
    assert "against regression · direct-1 R² 0.040 below (intervals apart)" in text
    assert "is ahead of every trained run" not in text
    assert text.index("true ceiling") < text.index("regression regression direct-1")


def test_banner_is_on_demo_pages_only(inputs: Experiment, tmp_path: Path, site: Path) -> None:
    build(inputs, tmp_path / "demo")
    build(replace(inputs, facts=replace(inputs.facts, is_demo=False)), tmp_path / "real")
    assert all(
        "synthetic shapes" in path.read_text(encoding="utf-8") for path in page_paths(tmp_path / "demo")
    )
    assert not any(
        "synthetic shapes" in path.read_text(encoding="utf-8") for path in page_paths(tmp_path / "real")
    )


def test_figures_have_data_beside_them(site: Path) -> None:
    figures = list(site.rglob("*.svg"))
    assert {"fidelity", "loss", "validation", "gradient", "cosines", "positions"} <= {
        path.stem for path in figures
    }
    for path in figures:
        header, *rows = path.with_suffix(".csv").read_text(encoding="utf-8").splitlines()
        assert rows, path
        assert all(len(header.split(",")) <= row.count(",") + 1 for row in rows)
    assert "<td>3</td><td>0.1</td><td>–</td><td>–</td>" in (site / "runs/flow.html").read_text(
        encoding="utf-8"
    )


def test_report_without_pictures_details_or_training_is_still_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    write_summary(folder, {("constant", "-"): 0.0})
    (folder / "verdicts.json").write_text('{"schema": 1, "rows": []}', encoding="utf-8")
    build(Experiment(folder, PLAIN), tmp_path / "report")
    assert "No trained run was measured" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_old_report_stays_until_a_new_one_replaces_all_of_it(inputs: Experiment, tmp_path: Path) -> None:
    report, summary = tmp_path / "report", inputs.folder / "summary.json"
    build(inputs, report)
    before, rows = (report / "index.html").read_bytes(), summary.read_text(encoding="utf-8")
    (report / "runs" / "gone.html").write_text("old", encoding="utf-8")
    summary.write_text("{}", encoding="utf-8")
    with pytest.raises(ReportError, match="schema None, expected 1"):
        build(inputs, report)
    assert (report / "index.html").read_bytes() == before
    summary.write_text(rows, encoding="utf-8")
    build(inputs, report)
    assert not (report / "runs" / "gone.html").exists()


def test_foreign_folder_is_not_overwritten(inputs: Experiment, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(ReportError, match="is no report"):
        build(inputs, tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").is_file()


def test_budgets_name_the_largest_files() -> None:
    check_budgets({"index.html": b"x" * PAGE_BYTES, "images/1.png": b"x" * IMAGE_BYTES})
    with pytest.raises(ReportError, match=r"pages over 1,500,000 bytes: runs/a.html \(1,500,001\)"):
        check_budgets({"index.html": b"", "runs/a.html": b"x" * (PAGE_BYTES + 1)})
    with pytest.raises(ReportError, match=r"thumbnails over 20,000 bytes: images/1.png"):
        check_budgets({"images/1.png": b"x" * (IMAGE_BYTES + 1)})
    with pytest.raises(ReportError, match="shows 201 images"):
        check_budgets({"gallery.html": b'<img src="images/1.png">' * 201})


def test_images_are_asked_for_once_and_all_must_come(inputs: Experiment, tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def counting(indices: Sequence[int]) -> list[Picture]:
        asked.append(list(indices))
        return pictures(indices)

    flow = read_run(inputs.folder / "runs" / "flow")
    asking = RunPage(inputs.facts, flow, read_results(inputs.folder), pictures=counting)
    render_run(asking)
    # of galleries, of neighbours, of what captions find
    assert asked == [[*range(18), *range(20, 26), *range(30, 36)]]
    with pytest.raises(ReportError, match="asked for 30 pictures and got 29"):
        render_run(replace(asking, pictures=lambda indices: pictures(indices)[1:]))


def test_a_baseline_ahead_of_every_network_is_said_first(tmp_path: Path) -> None:
    folder = tmp_path / "sober"
    folder.mkdir()
    write_summary(folder, {("flow", "euler-1"): 0.5, ("ridge", "closed-form"): 0.7})
    (folder / "verdicts.json").write_text('{"schema": 1, "rows": []}', encoding="utf-8")
    build(Experiment(folder, PLAIN), tmp_path / "report")
    assert (
        "The baseline ridge is ahead of every trained run" in (tmp_path / "report" / "index.html").read_text()
    )


def test_folders_of_runs_that_left_the_experiment_are_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "moved_on"
    for artifact in ("old", "older"):
        write_details(folder / "runs" / "abandoned" / "evaluation" / artifact, "euler-1", 0.5)
    write_summary(folder, {("flow", "euler-1"): 0.5})
    (folder / "verdicts.json").write_text('{"schema": 1, "rows": []}', encoding="utf-8")
    files = build(Experiment(folder, PLAIN), tmp_path / "report")
    assert [path.name for path in files if path.parent == tmp_path / "report/runs"] == ["flow.html"]


def test_notes_stand_on_the_page_of_their_run(site: Path) -> None:
    """A missing figure is explained where it is missing; the note of a stranger stays text."""
    page = (site / "runs" / "flow.html").read_text(encoding="utf-8")
    assert "What was not measured" in page
    assert "too few &lt;script&gt;" in page
    assert f"too few {HOSTILE}" not in page


def test_tokens_of_the_target_made_anew_are_no_baseline(tmp_path: Path) -> None:
    """They are what no translation needs to be better than; as a baseline they would head the first page."""
    for run in ("true", "true_fp16", "true_jpeg75", "true_crop"):
        assert kind_of(run, ["closed-form"]) == "ceiling"
    for run in ("constant", "procrustes", "ridge_ot_flat"):
        assert kind_of(run, ["closed-form"]) == "closed form"


def test_shares_above_a_level_are_those_of_the_cosine_they_name(tmp_path: Path) -> None:
    """From tokens to the table: wrong tokens whose means are right pass every level, and the table says of what."""
    generator = np.random.default_rng(0)
    target = (generator.normal(size=(60, 6, 8)) + 2).astype(np.float32)
    swapped = target[:, ::-1]
    true = collect_true(target, target.mean(axis=0, dtype=np.float64), None)
    np.savez(tmp_path / "details-x.npz", **per_image(swapped, collect(swapped, true), true))
    details = read_details(tmp_path / "details-x.npz")
    assert details.cos_image == pytest.approx(np.ones(60), abs=1e-5)
    assert details.cos_token_mean.mean() < 0.9
    table = thresholds_table(details)
    assert "token means" in table.caption
    assert table.headers[0].text == "cosine of token means"
    assert all(line.cells[1].text.startswith("100") for line in table.lines)


def test_unfinished_runs_are_named_with_what_makes_them(inputs: Experiment, tmp_path: Path) -> None:
    states = [
        RunState("flow", ""),
        RunState(HOSTILE, "train", "120 steps taken"),
        RunState("ridge", "baselines"),
        RunState("other", "page"),
    ]
    build(replace(inputs, states=states), tmp_path / "report")
    text = " ".join(re.sub(r"<[^>]+>", " ", Page(tmp_path / "report" / "index.html").text).split())
    assert "3 of 4 runs are not complete" in text
    assert "not trained, 120 steps taken. flowkit train --config CONFIG --run &lt;script&gt;" in text
    assert "ridge : not fitted. flowkit baselines --config CONFIG --run ridge" in text
    missing = "evaluated, its page is missing or of an earlier evaluation"
    assert f"other : {missing}. flowkit page --config CONFIG --run other" in text


def test_report_of_nothing_measured_says_so(tmp_path: Path) -> None:
    """Before any run was evaluated there is no row; the page still opens and names what comes first."""
    site = Site(PLAIN, Results("bare", [], [], {}), {}, [RunState("flow", "train")])
    page = render_site(site)["index.html"].decode()
    assert "No trained run was measured" in page
    assert "flowkit train --config CONFIG --run flow" in page


def test_page_of_a_run_tells_its_seeds_and_what_it_finds(tmp_path: Path) -> None:
    folder = tmp_path / "seeds"
    folder.mkdir()
    values = {("flow", "euler-1"): 0.9, ("flow_seed_1", "euler-1"): 0.92, ("flow_seed_1", "heun-2"): 0.8}
    write_summary(folder, values)
    (folder / "verdicts.json").write_text('{"schema": 1, "rows": []}', encoding="utf-8")
    results = read_results(folder)
    where = {"run": "flow", "sampler": "euler-1", "data": "evaluation", "seed_spread": None}
    found = Measurement(**where, metric="t2i_r1", value=0.6, low=0.5, high=0.7)
    of_true = replace(found, run="true", sampler="closed-form", value=0.8)
    r2_of_true = replace(of_true, metric="r2", value=1.0)
    results = replace(results, measurements=[*results.measurements, found, of_true, r2_of_true])
    page = RunPage(PLAIN, RunFiles("flow", [], {}, []), results, seeds=["flow_seed_1"])
    text = " ".join(re.sub(r"<[^>]+>", " ", render_run(page)["runs/flow.html"].decode()).split())
    assert "The same training with 2 seeds, each with euler-1" in text
    assert "mean 0.910" in text
    assert "standard deviation 0.0141" in text
    assert "0.600 0.500 to 0.700 0.800 75.0 %" in text


def test_a_page_depends_on_its_run_and_those_beside_it_alone(inputs: Experiment) -> None:
    """Rows of any other run change no byte of it: so it stays as it is when they do."""
    flow, results = read_run(inputs.folder / "runs" / "flow"), read_results(inputs.folder)
    asked = RunPage(inputs.facts, flow, results, pictures=inputs.pictures)
    fewer = [
        row for row in results.measurements if row.run in ("flow", "constant", "ridge", "regression", "true")
    ]
    assert len(fewer) < len(results.measurements)
    assert render_run(asked) == render_run(replace(asked, results=replace(results, measurements=fewer)))


def test_a_made_page_that_is_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"about.json cannot be read .* run stage page again"):
        read_made_page(tmp_path)
    (tmp_path / "about.json").write_text('{"run": "flow"')
    with pytest.raises(ReportError, match="run stage page again"):
        read_made_page(tmp_path)


def test_a_page_made_again_has_the_same_bytes(inputs: Experiment) -> None:
    """Its own record lies in the folder of the run by then; what it says is of the first making."""
    asked = RunPage(inputs.facts, read_run(inputs.folder / "runs" / "flow"), read_results(inputs.folder))
    first = render_run(asked)
    made = inputs.folder / "runs" / "flow" / "page"
    made.mkdir()
    (made / "run.json").write_text('{"stage": "page", "seconds": 3.5}', encoding="utf-8")
    assert render_run(replace(asked, run=read_run(inputs.folder / "runs" / "flow"))) == first


def test_what_is_sure_image_by_image_is_no_tie(tmp_path: Path) -> None:
    """Intervals that overlap say nothing where the difference itself was measured."""
    folder = tmp_path / "close"
    folder.mkdir()
    write_summary(
        folder, {("flow", "euler-1"): 0.978, ("regression", "direct-1"): 0.980, ("ridge", "-"): 0.981}
    )
    (folder / "verdicts.json").write_text('{"schema": 1, "rows": []}', encoding="utf-8")
    results = read_results(folder)
    page = render_site(Site(PLAIN, results))["index.html"].decode()
    assert "Not told apart from flow · euler-1" in page
    assert "has the highest R², not told apart from the best trained run" in page
    surely = [
        Difference("flow", "euler-1", "evaluation", "regression", "r2", -0.002, -0.003, -0.001),
        Difference("regression", "direct-1", "evaluation", "ridge", "r2", -0.001, -0.0015, -0.0005),
    ]
    page = render_site(Site(PLAIN, replace(results, differences=surely)))["index.html"].decode()
    assert "Not told apart" not in page
    assert "is ahead of every trained run" in page


def test_a_run_of_which_nothing_could_be_measured_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "diverged"
    folder.mkdir()
    write_summary(folder, {("flow", "euler-1"): 0.9, ("other", "euler-1"): 0.8})
    (folder / "verdicts.json").write_text('{"schema": 1, "rows": []}', encoding="utf-8")
    results = read_results(folder)
    rows = [
        replace(row, value=None, low=None, high=None) if row.run == "flow" else row
        for row in results.measurements
    ]
    results = replace(results, measurements=rows)
    text = " ".join(re.sub(r"<[^>]+>", " ", render_site(Site(PLAIN, results))["index.html"].decode()).split())
    assert "Nothing could be measured of flow : the notes on their pages say why" in text
    assert "nothing could be measured" in text.split("All runs and samplers")[1]
    page = RunPage(PLAIN, RunFiles("flow", [], {}, []), results)
    assert "Nothing could be measured; the notes below say why" in render_run(page)["runs/flow.html"].decode()


def test_the_gallery_calls_nothing_the_best_run_that_is_not(inputs: Experiment, tmp_path: Path) -> None:
    """Without the page of the best run, the best flow heads the gallery under its own name."""
    build(inputs, tmp_path / "report")
    results = read_results(inputs.folder)
    made = {
        name: read_made_page(folder)
        for folder in (tmp_path / "report-pages").iterdir()
        if (name := read_made_page(folder).run) != "regression"
    }
    files = render_site(Site(inputs.facts, results, made))
    text = files["gallery.html"].decode()
    assert "flow · euler-1, the best flow" in text
    assert "the best run" not in text
    assert "The page of regression is not made, so its images are not here" in files["index.html"].decode()


def test_many_pages_may_weigh_more_in_all(tmp_path: Path) -> None:
    heavy = {f"data/{number}": bytes(1_000_000) for number in range(60)}
    with pytest.raises(ReportError, match=r"the report has 60,000,\d+ bytes, at most 50,000,000 with 1 runs"):
        check_budgets(heavy | {"runs/a.html": b""})
    check_budgets(heavy | {f"runs/{number}.html": b"" for number in range(40)})
