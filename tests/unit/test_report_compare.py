"""Two runs against each other: what is kept of a run and what is said of a pair, with the names of enemies, too."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from interaction_material import HOSTILE, IMAGE, QUOTED, RUNS, SCRIPT, details, entry, one_run

from flowkit.errors import ReportError
from flowkit.evaluation.bootstrap import draw_counts, jackknife
from flowkit.evaluation.differences import differences
from flowkit.report.compare import Pair, default_pair, view_of
from flowkit.report.paired import DRAWS, drawn_rows, jackknife_interval, r2_interval
from flowkit.report.run_data import RunData, SamplerData, read_run_data, run_data
from flowkit.report.scene import slug
from flowkit.report.scripts import data_script, read_data_script
from flowkit.report.tables import Line


def data_of(run: str) -> RunData:
    return read_run_data(one_run(run)[f"data/runs/{slug(run)}.js"])


@pytest.fixture(scope="module")
def runs() -> dict[str, RunData]:
    return {run: data_of(run) for run in RUNS}


def pair(runs: dict[str, RunData], a: str, b: str, at: int = 0) -> Pair:
    return Pair(runs[a], runs[a].samplers[at], runs[b], runs[b].samplers[0])


def test_drawn_images_are_as_good_as_those_of_the_evaluation() -> None:
    """Every image equally often, and intervals that agree with those of 20,000 other draws."""
    rows = drawn_rows(400, 0, DRAWS).astype(int)
    assert rows.shape == (DRAWS, 400)
    assert np.array_equal(drawn_rows(400, 7, 9), rows[7:9])
    times = np.bincount(rows.ravel(), minlength=400)
    assert times.min() > 1000 - 5 * 1000**0.5
    assert times.max() < 1000 + 5 * 1000**0.5
    per_draw = np.stack([np.bincount(row, minlength=400) for row in rows])
    assert np.var(per_draw) == pytest.approx(1, rel=0.02)  # as of multinomial counts
    assert abs(np.corrcoef(per_draw[:-1].ravel(), per_draw[1:].ravel())[0, 1]) < 0.01
    ours, theirs = details(0.90, 1), details(0.88, 2)
    arrays = [{"error_image": one.error_image, "spread_image": one.spread_image} for one in (ours, theirs)]
    expected = differences({}, arrays[0], {}, arrays[1], draw_counts(400, draws=20_000, seed=0))["r2"]
    assert ours.spread_image is not None
    found = r2_interval(ours.error_image, theirs.error_image, ours.spread_image)
    assert found is not None
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.08 * width)
    assert found.high == pytest.approx(expected.high, abs=0.08 * width)


def test_intervals_are_those_of_the_evaluation() -> None:
    ours, theirs = details(0.90, 1), details(0.88, 2)
    arrays = [
        {
            "error_image": one.error_image,
            "spread_image": one.spread_image,
            "without_fd_img": one.without["fd_img"],
        }
        for one in (ours, theirs)
    ]
    counts = np.stack([np.bincount(row.astype(int), minlength=400) for row in drawn_rows(400, 0, DRAWS)])
    expected = differences({"fd_img": 0.11}, arrays[0], {"fd_img": 0.13}, arrays[1], counts.astype(float))
    assert ours.spread_image is not None
    found = r2_interval(ours.error_image, theirs.error_image, ours.spread_image)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected["r2"].low, expected["r2"].high), abs=1e-12)
    other = jackknife_interval(0.11 - 0.13, ours.without["fd_img"], theirs.without["fd_img"])
    assert (other.low, other.high) == pytest.approx((expected["fd_img"].low, expected["fd_img"].high))
    assert (
        jackknife(0.0, np.zeros(10), lowest=-1).low == jackknife_interval(0.0, np.zeros(10), np.zeros(10)).low
    )


def test_data_file_holds_no_sign_that_could_end_its_script() -> None:
    value = {"words": [*HOSTILE, "<!--", "\u2029", "😀"]}
    content = data_script(value)
    assert not re.search(rb"[<>&\x80-\xff]", content)
    assert content.count(b"\n") == 1
    assert read_data_script(content) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        data_script({"value": float("nan")})
    for damaged in (b"", b"alert(1)", content[:-4] + b");\n"):
        with pytest.raises(ReportError, match="again"):
            read_data_script(damaged)


def test_run_comes_back_as_it_was_written(runs: dict[str, RunData]) -> None:
    found = runs[IMAGE]
    assert (found.run, found.kind, found.question) == (IMAGE, "flow", f"Does {IMAGE} help?")
    assert dict(found.settings)["__proto__"] == IMAGE
    assert [one.sampler for one in found.samplers] == ["heun-50", QUOTED]
    known = details(0.70, 10 * list(RUNS).index(IMAGE))
    assert found.samplers[0].errors == pytest.approx(known.error_image, rel=1e-4)
    assert found.spread == pytest.approx(known.spread_image, rel=1e-4)
    value = found.samplers[0].value("fd_img")
    assert value is not None
    assert (value.value, value.low, value.high) == pytest.approx((0.31, 0.30, 0.32))
    assert value.without == pytest.approx(known.without["fd_img"], rel=1e-6)
    assert {one.index for one in found.samplers[0].images} == set(map(int, known.gallery_index))
    assert found.samplers[1].images == []
    assert {one.name for one in found.samplers[1].figures} == {"cosines", "positions"}
    for other in ({"run": "flow"}, [], "flow"):
        with pytest.raises(ReportError, match="make the run's page again"):
            read_run_data(data_script(other))


def test_run_of_5000_images_and_ten_samplers_is_light() -> None:
    known = {f"heun-{number}": details(0.9, number, images=5000) for number in range(10)}
    entries = [entry("flow", sampler, 0.9) for sampler in known]
    content = run_data("flow", "flow", entries, known, settings={}, figures={}, items=[])
    found = read_run_data(content)
    assert [len(one.errors) for one in found.samplers] == [5000] * 3 + [0] * 7
    assert len(content) < 250_000
    many = {"heun-1": details(0.9, 1, images=60_000)}
    content = run_data("flow", "flow", entries[1:2], many, settings={}, figures={}, items=[])
    assert len(content) < 1_000_000
    assert read_run_data(content).samplers[0].errors == []
    with pytest.raises(ReportError, match="was not evaluated"):
        run_data("flow", "flow", [], known, settings={}, figures={}, items=[])


def test_sampler_of_other_images_is_not_paired() -> None:
    mine, other = details(0.9, 1), details(0.8, 2)
    assert other.spread_image is not None
    other = replace(other, spread_image=other.spread_image[::-1])
    entries = [entry("flow", "heun-50", 0.9), entry("flow", "euler-1", 0.8)]
    content = run_data(
        "flow", "flow", entries, {"heun-50": mine, "euler-1": other}, settings={}, figures={}, items=[]
    )
    best, second = read_run_data(content).samplers
    assert (len(best.errors), second.errors) == (400, [])
    assert all(not value.without for value in second.values)


def test_runs_on_other_images_are_compared_by_their_intervals(runs: dict[str, RunData]) -> None:
    ridge = runs["ridge"]
    moved = {**runs, "ridge": replace(ridge, spread=[2 * value for value in ridge.spread])}
    view = view_of(pair(moved, "flow", "ridge"))
    assert view.verdict == "flow · heun-50 is 0.0400 above ridge in R² (intervals apart)."
    assert not view.axis
    assert not view.images.lines
    assert not view.shared
    assert view.metrics.lines[0].cells[4].note == "intervals apart"


def test_verdict_names_the_one_ahead_or_says_that_it_is_not_shown(runs: dict[str, RunData]) -> None:
    sure = view_of(pair(runs, "flow", "ridge"))
    assert re.fullmatch(
        r"flow · heun-50 is ahead of ridge in R² by 0\.0400 \(95 % interval 0\.03\d\d to 0\.04\d\d, image by image\)\.",
        sure.verdict,
    )
    turned = view_of(pair(runs, "ridge", "flow"))
    assert turned.verdict.startswith("flow · heun-50 is ahead of ridge in R² by 0.0400 (95 % interval 0.03")
    assert turned.metrics.lines[0].cells[3].text == "−0.0400"
    assert turned.metrics.lines[0].cells[4].text == "B is ahead"
    doubt = view_of(pair(runs, "flow", "regression"))
    assert doubt.verdict.startswith(
        "Who is ahead is not shown: flow · heun-50 is 0.0005 above regression · direct-1"
    )
    assert [cell.text for cell in doubt.metrics.lines[0].cells][4] == "not shown"
    assert doubt.metrics.lines[0].cells[4].note == "A ahead, 0 is possible"
    same = view_of(pair(runs, "flow", "flow"))
    assert same.verdict == "Both sides are the same run with the same sampler."
    assert {line.cells[4].text for line in same.metrics.lines} <= {"equal", "–"}


def test_r2_that_was_not_measured_is_said_to_be(runs: dict[str, RunData]) -> None:
    bare = replace(runs["ridge"].samplers[0], values=[])
    ridge = replace(runs["ridge"], samplers=[bare])
    view = view_of(Pair(runs["flow"], runs["flow"].samplers[0], ridge, bare))
    assert view.verdict == "Who is ahead is not known: R² was not measured for ridge."
    assert not view.axis
    assert all(line.cells[3].missing for line in view.metrics.lines)


def test_lower_is_ahead_where_lower_is_better(runs: dict[str, RunData]) -> None:
    line = line_of(pair(runs, "flow", "ridge"), "Fréchet, images")
    assert [cell.text for cell in line.cells] == [
        "Fréchet, images",
        "0.0900",
        "0.1300",
        "−0.04000",
        "A is ahead",
    ]
    assert line.cells[4].note == "image by image"


def test_metrics_are_counted_and_the_key_ones_stand_apart(runs: dict[str, RunData]) -> None:
    view = view_of(pair(runs, "flow", "ridge"))
    assert view.count == (
        "Of 6 metrics, A is ahead in 3 and B is ahead in 0; in 0 it is not shown who is. "
        "The rest: 2 equal, 1 without a direction."
    )
    assert [line.cells[0].text for line in view.key.lines] == [
        "R²",
        "gap closed",
        "Fréchet, images",
        "evaluations",
    ]
    assert [line.cells[0].text for line in view.metrics.lines][-1] == IMAGE
    doubt = view_of(pair(runs, "flow", "regression"))
    assert "A is ahead in 0 and B is ahead in 0; in 3 it is not shown who is." in doubt.count
    bare = replace(runs["ridge"].samplers[0], values=runs["ridge"].samplers[0].values[:1])
    view = view_of(
        Pair(runs["flow"], runs["flow"].samplers[0], replace(runs["ridge"], samplers=[bare]), bare)
    )
    assert view.count.endswith("in 0 it is not shown who is. The rest: 5 not measured in both.")


def line_of(chosen: Pair, label: str) -> Line:
    return next(line for line in view_of(chosen).metrics.lines if line.cells[0].text == label)


@pytest.mark.parametrize("at", [0, 1])
def test_what_the_summary_says_of_a_pair_is_what_the_page_says(runs: dict[str, RunData], at: int) -> None:
    """Each sampler of a run against the best of another, with the interval that the run's page shows."""
    chosen = pair(runs, "flow", SCRIPT, at)
    view = view_of(chosen)
    label = chosen.a.label
    assert view.verdict == (
        f"{label} is ahead of {SCRIPT} · heun-50 in R² by 0.3000 (95 % interval 0.2812 to 0.3457, image by image)."
    )
    assert view.source.startswith("Here it is that of the summary")
    distance = line_of(chosen, "Fréchet, images").cells
    assert [(cell.text, cell.note) for cell in distance[3:]] == [
        ("−0.30000", "−0.61234 to 0.01234"),
        ("not shown", "A ahead, 0 is possible"),
    ]
    bare = replace(chosen.a, errors=[])  # errors are not needed for it
    assert view_of(replace(chosen, a=bare)).verdict == view.verdict


def test_what_the_summary_says_is_turned_with_the_pair(runs: dict[str, RunData]) -> None:
    turned = view_of(pair(runs, SCRIPT, "flow"))
    assert turned.verdict.startswith("flow · heun-50 is ahead of")
    assert turned.verdict.endswith("by 0.3000 (95 % interval 0.2812 to 0.3457, image by image).")
    assert turned.metrics.lines[0].cells[3].note == "−0.3457 to −0.2812"
    other = pair(runs, "flow", QUOTED)
    assert view_of(other).metrics.lines[0].cells[3].note == "−0.0123 to 0.8123"
    assert line_of(other, "Fréchet, images").cells[3].note == "−0.42345 to −0.38123"


def test_only_the_best_of_the_other_run_is_in_the_summary(runs: dict[str, RunData]) -> None:
    computed = view_of(pair(runs, "flow", QUOTED, 1))
    assert computed.source.startswith("The summary does not hold these two against each other")
    assert "1,000 draws" in computed.source
    assert "−0.0123" not in computed.metrics.lines[0].cells[3].note
    unpaired = replace(runs["ridge"], spread=[])
    assert view_of(pair({**runs, "ridge": unpaired}, "flow", "ridge")).source == ""


@pytest.mark.parametrize("b", ["ridge", SCRIPT, "regression", QUOTED])
@pytest.mark.parametrize("is_turned", [False, True])
def test_gap_closed_is_as_sure_as_r2(runs: dict[str, RunData], b: str, is_turned: bool) -> None:
    """It is R2 over what ridge leaves, 0.12 here; its own intervals would say "not shown" of all."""
    chosen = pair(runs, *((b, "flow") if is_turned else ("flow", b)))
    r2, skill = line_of(chosen, "R²").cells, line_of(chosen, "gap closed").cells
    assert skill[4] == r2[4]
    assert r2[4].note in ("image by image", f"{'BA'[not is_turned]} ahead, 0 is possible")
    ours, theirs = chosen.interval("r2"), chosen.interval("skill_r2")
    assert ours is not None
    assert theirs is not None
    assert (theirs.low, theirs.high) == pytest.approx((ours.low / 0.12, ours.high / 0.12))


def test_settings_that_differ_are_listed(runs: dict[str, RunData]) -> None:
    view = view_of(pair(runs, "flow", SCRIPT))
    assert view.settings_words == "2 of 3 settings differ."
    assert [cell.text for cell in view.settings.lines[0].cells] == ["__proto__", "flow", SCRIPT]
    assert view_of(pair(runs, "flow", "ridge")).settings_words == "There is no record of settings of ridge."
    assert view_of(pair(runs, "flow", "flow", 1)).settings_words == "0 of 3 settings differ."


def test_images_that_differ_most_come_first(runs: dict[str, RunData]) -> None:
    chosen = pair(runs, "flow", "ridge")
    view = view_of(chosen)
    sizes = [abs(one) for one in chosen.differences]
    first = int(view.images.lines[0].cells[0].text.removeprefix("image "))
    assert sizes[first] == max(sizes)
    assert len(view.images.lines) == 10
    held = {one.index for one in chosen.a.images} & {one.index for one in chosen.b.images}
    assert held
    assert [one.a.index for one in view.shared] == sorted(held, key=lambda index: -sizes[index])[:8]
    assert all(one.a.error_map.path != one.b.error_map.path for one in view.shared)


def test_default_pair_is_the_best_flow_against_the_best_other() -> None:
    kinds = {"regression": "regression", "ridge": "closed form", "constant": "closed form", "true": "ceiling"}
    sampler = SamplerData("s", "s", [], [], [], [], [])

    def of(*names: str) -> tuple[str, str] | None:
        runs = [RunData(name, name, kinds.get(name, "flow"), "", [], [], [], [], [sampler]) for name in names]
        found = default_pair(runs)
        return (found.run_a.run, found.run_b.run) if found else None

    assert of("true", "regression", "ridge", "flow", "other") == ("flow", "regression")
    assert of("true", "flow", "other", "ridge") == ("flow", "other")
    assert of("constant", "ridge", "flow") == ("flow", "ridge")
    assert of("ridge", "regression") == ("regression", "ridge")
    assert of("true", "constant", "ridge") == ("true", "ridge")
    assert of("flow") is None
    assert of() is None
