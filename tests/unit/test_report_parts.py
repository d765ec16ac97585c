"""The parts of the report by themselves: reading, standings, tables, galleries and figures against hand examples."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_material import STANDINGS, details, row

from flowkit.errors import ReportError
from flowkit.report.curves import training_curves
from flowkit.report.data import (
    Results,
    RunFiles,
    StageRecord,
    artifact,
    finite,
    read_lines,
)
from flowkit.report.details import TokenLayout, read_details
from flowkit.report.drawing import Canvas
from flowkit.report.figures import position_maps
from flowkit.report.gallery import (
    Album,
    common_indices,
    draw_map,
    groups,
    map_alt,
    split,
)
from flowkit.report.measures import measure, plain, short
from flowkit.report.run_tables import changed_settings
from flowkit.report.scene import slug
from flowkit.report.standings import best, comparisons, entries, kind_of
from flowkit.report.tables import numbers, results_table, sample, thresholds_table, to_csv
from flowkit.report.thumbnails import THUMBNAIL_BYTES, encode_thumbnail


def test_closed_forms_and_true_features_are_never_the_best_run() -> None:
    found = entries(STANDINGS)
    assert found[0].run == "true"
    champion, flow = best(found, "flow", "regression"), best(found, "flow")
    assert champion is not None
    assert champion.name == "regression · direct-1"
    assert flow is not None
    assert flow.name == "flow · euler-1"
    assert found[-1].run == "lost", "a run that was not measured comes last"


def test_comparisons_say_side_distance_and_overlap() -> None:
    found = entries(STANDINGS)
    flow = best(found, "flow")
    assert flow is not None
    assert [(one.against, one.sentence) for one in comparisons(flow, found)] == [
        ("constant", "0.930 above (intervals apart)"),
        ("ridge", "0.060 below (intervals apart)"),
        ("regression · direct-1", "0.010 below (intervals overlap: no difference shown)"),
    ]


@pytest.mark.parametrize(
    ("run", "samplers", "kind"),
    [
        ("true", {"-"}, "ceiling"),
        ("ridge", {"-"}, "closed form"),
        ("procrustes_scaled", {"-"}, "closed form"),
        ("anything", {"closed-form"}, "closed form"),
        ("flow", {"euler-1", "heun-50"}, "flow"),
        ("regression_wide", {"direct-1"}, "regression"),
    ],
)
def test_kind_follows_from_name_and_samplers(run: str, samplers: set[str], kind: str) -> None:
    assert kind_of(run, samplers) == kind


def test_best_mark_goes_to_the_best_trained_run_in_the_metric_direction() -> None:
    rows = [
        row("flow", "euler-1", 0.02, metric="fd_img"),
        row("regression", "direct-1", 0.03, metric="fd_img"),
    ]
    rows += [row("ridge_ot", "-", 0.001, metric="fd_img"), row("flow", "euler-1", 0.9)]
    rows += [row("regression", "direct-1", 0.95), row("ridge_ot", "-", 0.99)]
    table = results_table(entries(Results("x", rows, [], {})), ["r2", "fd_img"], {}, "caption")
    marked = [
        (line.cells[0].text, at) for line in table.lines for at, cell in enumerate(line.cells) if cell.best
    ]
    assert marked == [("regression", 2), ("flow", 3)]


@pytest.mark.parametrize(
    ("tokens", "layout"),
    [
        (17, TokenLayout(True, 4, 4)),
        (16, TokenLayout(False, 4, 4)),
        (257, TokenLayout(True, 16, 16)),
        (256, TokenLayout(False, 16, 16)),
        (1, TokenLayout(False, 1, 1)),
        (7, TokenLayout(False, 1, 7)),
    ],
)
def test_token_layout(tokens: int, layout: TokenLayout) -> None:
    assert TokenLayout.of(tokens) == layout


def test_positions_are_named_row_by_row() -> None:
    layout = TokenLayout.of(17)
    assert [layout.name(at) for at in (0, 1, 4, 5, 16)] == [
        "CLS",
        "row 1, column 1",
        "row 1, column 4",
        "row 2, column 1",
        "row 4, column 4",
    ]
    token, patches = layout.split(np.arange(17.0))
    assert token.tolist() == [0]
    assert patches[1, 0] == 5


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(0.9408, 3, "0.941"), (-0.5, 2, "−0.50"), (-0.0001, 3, "0.000"), (99, 0, "99"), (-20, 0, "−20")],
)
def test_plain_numbers(value: float, decimals: int, text: str) -> None:
    assert plain(value, decimals) == text


def test_missing_numbers_are_said_to_be_missing() -> None:
    assert measure("r2").text(None) == "not measured"
    assert short(None) == "not measured"
    assert measure("r2").interval(None, 1.0) == ""
    assert finite(float("nan")) is None
    assert finite(True) is None


def test_ratios_are_best_near_one() -> None:
    assert measure("var_ratio").is_better(0.98, than=1.05)
    assert not measure("var_ratio").is_better(1.2, than=0.9)


def test_unknown_metrics_are_shown_under_their_own_name() -> None:
    assert measure("brand_new").label == "brand_new"


def test_gallery_split_is_best_worst_and_the_rest_without_repeats() -> None:
    best_places, worst, others = split(details(), 9)
    assert best_places == [0, 1, 2]
    assert worst == [11, 10, 9]
    assert others == [3, 4, 5]
    small = split(details(images=2), 9)
    assert sorted(place for places in small for place in places) == [0, 1]


def test_common_images_are_those_of_several_galleries() -> None:
    galleries = [replace(details(), gallery_index=np.array(rows)) for rows in (range(12), [3, 5, 11])]
    one, two = (groups(Album(None, [], 1.0), "run", found, 12) for found in galleries)
    assert common_indices([one, two], 9) == [3, 5, 11]
    assert common_indices([one], 3) == [0, 1, 2]
    assert common_indices([], 3) == []


def test_error_map_is_dark_for_small_errors_and_saturates(tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    path.write_bytes(draw_map(np.array([[0.0, 1.0], [5.0, np.nan]]), limit=1.0))
    pixels = np.asarray(Image.open(path).convert("RGBA")).astype(int)
    assert pixels[0, 0, :3].sum() < 30
    assert (pixels[0, 1] == pixels[1, 0]).all()
    assert pixels[0, 1, :3].sum() > 500
    assert pixels[1, 1, 3] == 0


def test_error_map_words_name_the_worst_place() -> None:
    values = np.array([0.5, 0.1, 0.1, 0.9, 0.1])
    text = map_alt(7, TokenLayout.of(5), values)
    assert text == ("Error map of image 7: mean 0.340, largest 0.900 at row 2, column 1, class token 0.500.")
    assert "not measured" in map_alt(7, TokenLayout.of(5), np.full(5, np.nan))


def test_thumbnail_of_the_hardest_image_fits() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    data, suffix, size = encode_thumbnail(Image.fromarray(noise), 3)
    assert len(data) <= THUMBNAIL_BYTES
    assert suffix == "jpg"
    assert max(size) == 160
    assert encode_thumbnail(Image.new("RGB", (32, 32)), 3)[1:] == ("png", (32, 32))
    small, suffix, size = encode_thumbnail(Image.fromarray(noise), 3, side=80)
    assert len(small) < len(data) / 2
    assert (suffix, max(size)) == ("jpg", 80)


def test_thresholds_stand_beside_the_constant_prediction() -> None:
    table = thresholds_table(details())
    assert [cell.text for cell in table.lines[0].cells] == ["above 0.7", "83.3 %", "0.0 %", "–"]


def test_details_errors_name_file_and_array(tmp_path: Path) -> None:
    path = tmp_path / "details-euler-1.npz"
    arrays = {name: values for name, values in vars(details()).items() if isinstance(values, np.ndarray)}
    np.savez(path, **{name: values for name, values in arrays.items() if name != "self_rank"})
    with pytest.raises(ReportError, match=r"details-euler-1.npz lacks the arrays self_rank"):
        read_details(path)
    np.savez(path, **(arrays | {"error_map": np.zeros((12, 4))}))
    with pytest.raises(ReportError, match=r"error_map has shape \(12, 4\), expected \(12, 5\)"):
        read_details(path)
    for name, rows in (("gallery_index", np.arange(12) + 1), ("query_true", np.array([[0, 1, 2, 3, 12]]))):
        np.savez(path, **(arrays | {name: rows}))
        with pytest.raises(ReportError, match=f"{name} reaches 12, there are 12 images"):
            read_details(path)
    np.savez(path, **(arrays | {"neighbours_true": np.zeros((3, 5), np.int64)}))
    with pytest.raises(ReportError, match=r"neighbours_true has shape \(3, 5\), expected 12 rows"):
        read_details(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ReportError, match="cannot be read"):
        read_details(path)


def test_several_artifacts_need_a_choice(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").touch()
    with pytest.raises(ReportError, match="several results"):
        artifact(tmp_path, "metrics.jsonl", None)
    assert artifact(tmp_path, "metrics.jsonl", "new") == tmp_path / "new"
    with pytest.raises(ReportError, match=r"gone holds no metrics\.jsonl"):
        artifact(tmp_path, "metrics.jsonl", "gone")
    assert artifact(tmp_path / "nowhere", "metrics.jsonl", None) is None


def test_damaged_metrics_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "lo', encoding="utf-8")
    with pytest.raises(ReportError, match=r"metrics.jsonl line 2"):
        read_lines(path)
    path.write_text('{"step": 1, "loss": NaN}\n', encoding="utf-8")
    assert read_lines(path) == [{"step": 1.0, "loss": None}]


def test_curves_show_what_the_lines_hold() -> None:
    lines = [json.loads(f'{{"step": {step}, "loss": {4 / step}}}') for step in range(1, 5)]
    plots = training_curves("flow", lines)
    assert [plot.name for plot in plots] == ["loss"]
    assert "4 at step 1, 1 at step 4" in plots[0].alt
    assert plots[0].data.iloc[-1].to_dict() == {"step": 4, "loss": 1.0}
    assert training_curves("flow", []) == []


def test_alt_text_of_positions_is_made_from_the_numbers() -> None:
    plot = position_maps("flow", details())
    assert "R² lies between 0.000 (CLS) and 1.000; the cosine between 0.500 and 1.000;" in plot.alt
    assert "the norm ratio between 1.000 and 1.000." in plot.alt


def test_drawing_follows_dark_mode_and_keeps_no_date() -> None:
    with Canvas() as canvas:
        canvas.axes[0].set_title("$not math$ <b>")
        svg = canvas.svg()
    assert "prefers-color-scheme:dark" in svg
    assert "$not math$ &lt;b&gt;" in svg
    assert "<metadata" not in svg
    assert not re.search(r"#0[0-9a]0\d0\d", svg), "a placeholder colour was left"


@pytest.mark.parametrize("name", ["..", "a/b", "", "<b>", "ünï"])
def test_file_names_of_odd_runs_stay_inside_the_folder(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+", slug(name))
    assert slug("flow_seed-1.2") == "flow_seed-1.2"


def test_long_tables_are_thinned_with_both_ends() -> None:
    thin = sample(numbers(("step",), [(step,) for step in range(1000)]), 10)
    assert list(thin["step"]) == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    few = numbers(("step",), [(1,), (2,)])
    assert list(sample(few)["step"]) == [1, 2]


def test_csv_has_full_precision_whole_numbers_and_empty_fields() -> None:
    table = numbers(
        ("epoch", "loss, total", "note"),
        [(1, 1 / 3, 'said "no"'), (None, 1e-7, None), (3, None, "two\nlines"), (2**53 + 1, 2.0, "")],
    )
    assert to_csv(table) == (
        'epoch,"loss, total",note\n'
        '1,0.3333333333333333,"said ""no"""\n'
        ",1e-07,\n"
        '3,,"two\nlines"\n'
        "9007199254740993,2.0,\n"
    )
    assert to_csv(numbers(("a", "b"), [])) == "a,b\n"
    assert to_csv(numbers(("a", "b"), [(None, 1)])) == "a,b\n,1\n"


def record(run: str, folder: str, /, **values: object) -> RunFiles:
    return RunFiles(run, [], {}, [StageRecord(folder, values)])


def test_settings_are_held_against_the_defaults() -> None:
    run = record("a", "train", spec={"values": {"train": {"optimizer": "adamw", "seed": 0}}})
    table = changed_settings(run, {"train": {"optimizer": "muon", "seed": 0}})
    assert table is not None
    assert [[cell.text for cell in line.cells] for line in table.lines] == [
        ["train.optimizer", "adamw", "muon"]
    ]
    alike = changed_settings(run, {"train": {"optimizer": "adamw"}})
    assert alike is not None
    assert alike.lines == []
    assert changed_settings(record("a", "train"), {"train": {"optimizer": "muon"}}) is None


def test_long_trainings_are_thinned_in_their_data_too() -> None:
    lines = [{"step": step, "loss": 1 / step} for step in range(1, 50_001)]
    (plot,) = training_curves("flow", lines)
    assert len(plot.data) <= 2001
    assert plot.data["step"].iloc[0] == 1
    assert plot.data["step"].iloc[-1] == 50_000
    assert "the CSV has one in 25, metrics.jsonl all" in plot.caption
