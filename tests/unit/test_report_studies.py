"""Figures that ask one thing of a run, and strips of images, against hand examples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report_material import STANDINGS, details, pictures_of, row

from flowkit.report import neighbours
from flowkit.report.data import Difference, Measurement
from flowkit.report.gallery import Album
from flowkit.report.standings import comparisons, entries
from flowkit.report.studies import components, error_over_time, evaluations_study
from flowkit.report.tables import differences_table, results_table


def test_strips_show_what_true_and_predicted_vectors_find() -> None:
    shown = details()
    asked = neighbours.indices(shown)
    album = Album(pictures_of, sorted(asked), 1.0)
    near = neighbours.neighbour_strips(album, shown)
    assert [strip.title for strip in near] == ["best"] * 2 + ["worst"] * 2 + ["random"] * 2
    assert near[0].words == "image 0"
    assert [one.alt for one in near[0].true] == [f"Image {n}: image {n}" for n in range(5)]
    assert [one.alt for one in near[0].predicted] == [f"Image {n}: image {n}" for n in range(1, 6)]
    assert near[0].common == 4
    (query,) = neighbours.query_strips(album, shown)
    assert query.own == "its own image at place 1 with both"
    elsewhere = replace(shown, query_predicted=np.array([[5, 4, 3, 2, 1]]))
    (query,) = neighbours.query_strips(album, elsewhere)
    assert query.own == "its own image at place 1 with true and not among 5 with predicted tokens"
    assert neighbours.neighbour_strips(Album(None, [], 1.0), shown) == []


def test_error_over_time_has_the_times_that_were_logged() -> None:
    lines = [
        {"step": step, "error_t_0": 4 / step, "error_t_below_0.25": 2 / step, "error_t_below_1.00": 1 / step}
        for step in range(1, 101)
    ]
    plot = error_over_time("flow", lines)
    assert plot is not None
    assert list(plot.data["t"]) == [0.0, 0.125, 0.875]
    expected = np.mean([4 / step for step in range(91, 101)])
    assert plot.data.iloc[0, 3] == pytest.approx(expected, abs=1e-6)
    assert "at t = 0 and" in plot.caption
    plain_flow = error_over_time("flow", [{key: line[key] for key in list(line)[2:]} for line in lines])
    assert plain_flow is not None
    assert "at t = 0.125 and" in plain_flow.caption
    assert error_over_time("regression", [{"step": 1, "loss": 1.0}]) is None


def test_components_say_which_directions_are_lost() -> None:
    plot = components("flow", details())
    assert plot is not None
    assert "first 2 of 2 components hold 90 % of the variance. R² lies below .5 on 1 of 2" in plot.alt
    assert "the last has 0.100, with 0.500 of the true variance" in plot.alt
    assert plot.data.to_numpy().tolist() == [[1, 0.7, 0.9, 1.0], [2, 0.3, 0.1, 0.5]]
    unknown = np.full(2, np.nan)
    assert components("flow", replace(details(), component_r2=unknown)) is None


def test_solver_study_needs_several_samplers_and_names_the_best_and_the_dearest() -> None:
    def of(run: str, sampler: str, r2: float, nfe: float) -> list[Measurement]:
        return [
            row(run, sampler, r2),
            row(run, sampler, nfe, metric="nfe"),
            row(run, sampler, 1 - r2, metric="fd_img"),
        ]

    rows = [
        *of("flow", "euler-1", 0.97, 1),
        *of("flow", "euler-8-shift3", 0.96, 8),
        *of("ridge", "-", 0.9, 0),
    ]
    assert evaluations_study("flow", entries(replace(STANDINGS, measurements=rows))) is None
    rows += of("flow", "heun-50", 0.95, 99)
    plot = evaluations_study("flow", entries(replace(STANDINGS, measurements=rows)))
    assert plot is not None
    assert (
        "Highest R² 0.970 with euler-1 (1 evaluation); the most evaluations, heun-50 (99 evaluations)"
        in plot.alt
    )
    assert list(plot.data["sampler"]) == ["euler-1", "euler-8-shift3", "heun-50"]
    assert all(label in plot.svg for label in ("euler shift3", "heun", "ridge"))
    assert evaluations_study("ridge", entries(replace(STANDINGS, measurements=rows))) is None


def less_ridge(metric: str, value: float, low: float, high: float) -> Difference:
    return Difference("flow", "euler-1", "evaluation", "ridge", metric, value, low, high)


def test_differences_image_by_image_stand_beside_r2_and_in_a_table_of_their_own() -> None:
    """The intervals of both overlap, the paired difference is sure."""
    rows = [row("flow", "euler-1", 0.95, half=0.02), row("ridge", "-", 0.94, half=0.02)]
    found = entries(replace(STANDINGS, measurements=rows, differences=[less_ridge("r2", 0.01, 0.008, 0.012)]))
    (sentence,) = (one.sentence for one in comparisons(found[0], found))
    assert sentence == "0.0100 above (0.0080 to 0.0120, image by image)"
    table = results_table(found, ["r2"], {}, "caption")
    assert [header.text for header in table.headers] == ["run", "sampler", "R²", "R² − ridge"]
    assert [(line.cells[3].text, line.cells[3].note) for line in table.lines] == [
        ("+0.0100", "0.0080 to 0.0120"),
        ("–", ""),
    ]
    both = [less_ridge("r2", 0.01, 0.008, 0.012), less_ridge("fd_img", -0.0001, -0.0003, 0.0001)]
    (flow, ridge) = entries(replace(STANDINGS, measurements=rows, differences=both))
    shown = differences_table(flow)
    assert shown is not None
    assert [cell.text for cell in shown.lines[0].cells] == ["ridge", "+0.0100", "−0.00010"]
    assert shown.lines[0].cells[2].note == "−0.00030 to 0.00010, no difference shown"
    assert differences_table(ridge) is None
