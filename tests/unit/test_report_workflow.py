"""What the report says of how results came about: run records read into nodes, tables, and the page as a whole."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from workflow_material import known, node, record, write_result

from flowkit.report.data import RunFiles, StageRecord
from flowkit.report.rendering import Facts, Files, Renderer
from flowkit.report.workflow import workflow_page
from flowkit.report.workflow_nodes import Node, read_nodes
from flowkit.report.workflow_tables import (
    RUNS_AS_COLUMNS,
    code_table,
    hardware_table,
    settings_of_runs,
    stages_table,
    versions_table,
)

HOSTILE = '<script>alert("x")</script>'


def read(tmp_path: Path, *nodes: dict[str, Any]) -> list[Node]:
    return read_nodes(nodes, tmp_path / "results", tmp_path / "data")


def test_tars_made_by_one_process_in_turn_count_its_start_once(tmp_path: Path) -> None:
    for number, (before, seconds, cpu) in enumerate([(4.0, 10.0, 9.0), (14.0, 2.0, 11.0), (16.5, 3.0, 15.0)]):
        folder = tmp_path / "data/features/d/e" / f"{number:05d}"
        found = record(
            seconds, process=7, before=before, cpu=cpu, rates={"images_per_s": 10.0 * (number + 1)}
        )
        write_result(folder, found)
    row = {"before": "data:features/d/e/", "first": 0, "last": 2, "digits": 5, "after": ""}
    (extract,) = read(tmp_path, node("extract", folders=[row]))
    assert (extract.results, extract.done, extract.processes, extract.state) == (3, 3, 1, "done")
    assert extract.seconds == pytest.approx(4 + 10 + 2 + 3)
    assert extract.longest == extract.seconds
    assert extract.cpu_seconds == pytest.approx(15)
    assert extract.rates == {"images_per_s": (10.0, 30.0)}


def test_results_made_side_by_side_are_counted_once(tmp_path: Path) -> None:
    """The sessions of all baselines open together; each record says the time until its own commit."""
    for name, before, seconds, cpu in (("mean", 2.0, 5.0, 6.0), ("ridge", 2.01, 9.0, 12.0)):
        write_result(tmp_path / "results" / name, record(seconds, process=7, before=before, cpu=cpu))
    (baselines,) = read(tmp_path, node("baselines", folders=["results:mean", "results:ridge"]))
    assert baselines.seconds == pytest.approx(2.0 + 9.01)
    assert baselines.cpu_seconds == pytest.approx(12)


def test_processes_add_up_and_the_longest_is_known(tmp_path: Path) -> None:
    for number in range(3):
        write_result(
            tmp_path / f"data/{number}", record(10.0 * (number + 1), process=number, before=1.0, cpu=2.0)
        )
    (extract,) = read(tmp_path, node("extract", folders=[f"data:{number}" for number in range(3)]))
    assert extract.processes == 3
    assert extract.seconds == pytest.approx(10 + 20 + 30 + 3 * 1)
    assert extract.longest == pytest.approx(31)
    assert extract.cpu_seconds == pytest.approx(6)


def test_a_process_that_serves_two_nodes_is_shared_out(tmp_path: Path) -> None:
    write_result(tmp_path / "results/small/a", record(10.0, process=7, before=3.0, cpu=8.0))
    write_result(tmp_path / "results/small/b", record(5.0, process=7, before=14.0, cpu=12.0))
    first, second = read(tmp_path, node("a"), node("b"))
    assert (first.seconds, second.seconds) == (pytest.approx(13), pytest.approx(5))
    assert (first.cpu_seconds, second.cpu_seconds) == (pytest.approx(8), pytest.approx(4))


def test_idle_time_of_a_prompt_is_no_start(tmp_path: Path) -> None:
    write_result(tmp_path / "results/small/a", record(10.0, process=7, before=9000.0))
    assert read(tmp_path, node("a"))[0].seconds == pytest.approx(10)


def test_records_of_earlier_versions_are_read_without_guessing(tmp_path: Path) -> None:
    """They name no process: what several of them took of the CPU is not known, and baselines were made together."""
    for name, seconds in (("x", 5.0), ("y", 9.0)):
        write_result(tmp_path / "data" / name, record(seconds, cpu=20.0))
        write_result(tmp_path / "results" / name, record(seconds, cpu=20.0, stage="baselines"))
    write_result(tmp_path / "results/small/train", record(7.0, cpu=20.0))
    extract, baselines, train = read(
        tmp_path,
        node("extract", folders=["data:x", "data:y"]),
        node("baselines", folders=["results:x", "results:y"]),
        node("train"),
    )
    assert (extract.seconds, extract.cpu_seconds) == (pytest.approx(14), None)
    assert (baselines.seconds, baselines.cpu_seconds) == (pytest.approx(9), None)
    assert (train.seconds, train.cpu_seconds) == (7.0, 20.0)
    assert train.accelerators == [None]


def test_missing_and_damaged_records_leave_their_part_unknown(tmp_path: Path) -> None:
    write_result(tmp_path / "data/0", record(5.0, process=1))
    write_result(tmp_path / "data/1", None)
    write_result(tmp_path / "data/2", record(5.0, process=1))
    (tmp_path / "data/2/run.json").write_text('{"stage": "extr', encoding="utf-8")
    write_result(tmp_path / "data/3", record(5.0, process=1) | {"seconds": "soon"})
    write_result(tmp_path / "data/4", record(9.0, process=1))
    (tmp_path / "data/4/manifest.json").unlink()
    extract, nothing = read(
        tmp_path, node("extract", folders=[f"data:{number}" for number in range(6)]), node("train", "extract")
    )
    assert (extract.done, extract.results, extract.state) == (4, 6, "4 of 6 done")
    assert [Path(file).parent.name for file in extract.without_record] == ["1", "2", "3"]
    assert extract.seconds == pytest.approx(5.0)
    assert (nothing.state, nothing.seconds, nothing.started, nothing.hosts) == ("not run yet", None, None, [])


@pytest.mark.parametrize(
    "content", ["[]", "null", '{"seconds": 1, "host": 3, "process": [], "started": 5, "code": 1}']
)
def test_records_of_any_shape_are_survived(tmp_path: Path, content: str) -> None:
    write_result(tmp_path / "results/small/train", {})
    (tmp_path / "results/small/train/run.json").write_text(content, encoding="utf-8")
    (train,) = read(tmp_path, node("train"))
    assert train.done == 1
    assert stages_table([train], {}).lines


def test_stage_lines_say_what_is_not_done_and_link_runs(tmp_path: Path) -> None:
    write_result(
        tmp_path / "results/small/train",
        record(70.0, process=1, before=2.0, cpu=200.0, by_hand=["a=1"], tasks=8),
    )
    nodes = read(tmp_path, node("train", label="flow"), node("sample", "train", label="flow"))
    first, second = stages_table(nodes, {"flow": "runs/flow.html"}).lines
    assert [cell.text for cell in first.cells] == [
        "train", "flow", "1", "2026-01-02 03:00", "1 min 12 s", "100 %", "3 min 20 s", "100 MB", "",
    ]  # fmt: skip
    assert first.cells[1].page == "runs/flow.html"
    assert first.cells[2].note == "8 tasks together, by hand"
    assert [cell.text for cell in second.cells][2:6] == ["0 of 1", "not run yet", "–", "–"]


def test_hosts_and_accelerators_are_columns_only_where_they_differ(tmp_path: Path) -> None:
    gpu = {"name": "node8", "accelerator": {"name": "NVIDIA H200", "count": 4}}
    write_result(tmp_path / "results/small/a", record(1.0, host={"name": "node7", "accelerator": None}))
    write_result(tmp_path / "results/small/b", record(1.0, host=gpu, slurm_job="31"))
    nodes = read(tmp_path, node("a"), node("b"))
    table = stages_table(nodes, {})
    assert [header.text for header in table.headers[-2:]] == ["host", "accelerator"]
    assert [line.cells[-1].text for line in table.lines] == ["none", "4 × NVIDIA H200"]
    assert table.lines[1].cells[-2].note == "Slurm job 31"
    alone = stages_table(nodes[1:], {})
    assert len(alone.headers) == len(table.headers) - 2
    assert "Accelerator of all: 4 × NVIDIA H200" in alone.caption
    assert len(hardware_table(nodes).lines) == 1, "an accelerator is not told of stages that cannot use one"


def test_versions_and_code_name_the_stages_that_differ(tmp_path: Path) -> None:
    write_result(tmp_path / "results/small/a", record(1.0))
    write_result(tmp_path / "results/small/b", record(1.0))
    write_result(
        tmp_path / "results/small/c", record(1.0, versions={"torch": "2.14"}, code=["flowkit.model@bbbb"])
    )
    nodes = read(tmp_path, node("a"), node("b"), node("c"))
    (line,) = versions_table(nodes).lines
    assert (line.cells[1].text, line.cells[1].note) == ("2.14, 2.15", "differs between stages: 2.14 in c x")
    modules, code = code_table(nodes)
    assert modules == 1
    assert [cell.text for cell in code.lines[0].cells] == ["flowkit.model", "aaaa, bbbb"]
    assert code_table(nodes[:2])[1].lines == []


def runs_with(settings: dict[str, dict[str, object]]) -> list[RunFiles]:
    return [
        RunFiles(run, [], {}, [StageRecord("train", {"spec": {"values": {"train": values}}})])
        for run, values in settings.items()
    ]


def test_only_settings_that_differ_are_compared_beside_the_default() -> None:
    runs = runs_with(
        {"a": {"seed": 0, "steps": 9}, "b": {"seed": 1, "steps": 9}, "c": {"seed": 2, "steps": 9, "x": 1}}
    )
    found = settings_of_runs([*runs, RunFiles("ridge", [], {}, [])], {"train": {"seed": 0, "steps": 5}})
    assert found is not None
    assert found.columns == ["default", "a", "b", "c"]
    assert found.lines == [
        ("train.seed", [("0", True), ("0", True), ("1", False), ("2", False)]),
        ("train.x", [("–", True), ("–", True), ("–", True), ("1", False)]),
    ]
    assert [[cell.text for cell in line.cells] for line in found.shared.lines] == [["train.steps", "9", "5"]]
    assert settings_of_runs([RunFiles("ridge", [], {}, [])], {}) is None


def test_many_runs_are_lines_with_what_is_not_the_default() -> None:
    runs = runs_with({f"r{seed}": {"seed": seed} for seed in range(RUNS_AS_COLUMNS + 1)})
    found = settings_of_runs(runs, {"train": {"seed": 0}})
    assert found is not None
    assert not found.has_runs_as_columns
    assert found.lines[0] == ("r0", [("the default in all that differs", True)])
    assert found.lines[12] == ("r12", [("train.seed 12", False)])


def page(nodes: list[Node], runs: list[RunFiles] | None = None, **more: Any) -> Files:
    facts = Facts("small", "small", "a", "b", is_demo=False)
    render = Renderer(facts, pages={}, legend={})
    return workflow_page(render, nodes, runs or [], {}, "snakemake --configfile x.yaml", **more)


def text_of(files: Files) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", files["workflow.html"].decode()).split())


def test_page_says_what_is_there_and_how_to_make_it_again(tmp_path: Path) -> None:
    write_result(tmp_path / "results/small/train", record(70.0, process=1, cpu=3.0))
    nodes = read(tmp_path, node("train", label="flow"), node("sample", "train", label="flow"))
    files = page(nodes, meanings={"train": "Train a run.", "fetch": "Fetch."})
    text = text_of(files)
    assert (
        "1 of 2 pieces of work are done, on node7, the first from 02 January 2026, 03:00, the last until"
        in text
    )
    assert f"rm -r {tmp_path}/results/small/train snakemake --configfile x.yaml --forcerun train" in text
    assert "Train a run." in text
    assert "Fetch." not in text
    assert {"workflow.html", "figures/workflow.svg", "figures/workflow.csv"} == set(files)


def test_page_names_results_without_a_record(tmp_path: Path) -> None:
    write_result(tmp_path / "results/small/train", None)
    text = text_of(page(read(tmp_path, node("train", label="flow"))))
    assert "1 result has no readable record" in text
    assert "small/train/run.json" in text
    assert "time unknown" in page(read(tmp_path, node("train")))["figures/workflow.svg"].decode()


def test_page_without_nodes_or_records_is_still_a_page() -> None:
    assert "made without the list of its stages" in text_of(page([]))
    assert "not run yet" in text_of(page([known("train", seconds=None, done=0)]))


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    host = {"name": HOSTILE, "cpu_model": HOSTILE}
    write_result(
        tmp_path / "results/small/train",
        record(1.0, host=host, versions={HOSTILE: HOSTILE}, rates={HOSTILE: 1}),
    )
    nodes = read(tmp_path, node("train", label=HOSTILE))
    runs = runs_with({HOSTILE: {HOSTILE: HOSTILE}, "b": {HOSTILE: 1}})
    for name, content in page(nodes, runs, meanings={"train": HOSTILE}).items():
        if not name.endswith(".csv"):
            assert HOSTILE.encode() not in content, name
    assert "&lt;script&gt;" in page(nodes, runs)["workflow.html"].decode()


def test_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "abc":
        write_result(
            tmp_path / "results/small" / name, record(3.0, process=ord(name), versions={"x": name, "y": "1"})
        )
    made = [page(read(tmp_path, node("a"), node("b", "a"), node("c", "a"))) for _ in range(2)]
    assert made[0] == made[1]


def test_a_folder_name_that_a_shell_would_split_is_quoted() -> None:
    train = replace(known("train_a", stage="train"), folder="my results/a;rm -r x")
    assert "rm -r 'my results/a;rm -r x'" in page([train])["workflow.html"].decode().replace("&#39;", "'")
