"""The index of all experiments: what each row says, whatever the files of one experiment look like."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from experiments_material import ABOUT, write, write_experiment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowkit.report import experiments
from flowkit.report.experiments import experiments_page, write_experiments_index

HOSTILE = '<script>alert("x")</script> & "quotes" \''


class Table(HTMLParser):
    """The cells of every row of the table's body as text, and where its links lead."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.scripts = 0
        self._is_in_body = False
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self._is_in_body |= tag == "tbody"
        if self._is_in_body and tag == "tr":
            self.rows.append([])
        elif self._is_in_body and tag in ("td", "th"):
            self.rows[-1].append("")
        elif self._is_in_body and tag == "a":
            self.links.append(dict(attrs)["href"] or "")

    def handle_endtag(self, tag: str) -> None:
        self._is_in_body &= tag != "tbody"

    def handle_data(self, data: str) -> None:
        if self._is_in_body and self.rows and self.rows[-1]:
            self.rows[-1][-1] = " ".join((self.rows[-1][-1] + " " + data).split())


def table(results: Path) -> Table:
    return Table(experiments_page(results))


def test_a_row_says_what_is_translated_and_how_it_ended(tmp_path: Path) -> None:
    write_experiment(tmp_path, "demo", about=ABOUT)
    found = table(tmp_path)
    assert found.rows == [
        [
            "Shapes demo demo-eva → demo-vit demo/",
            "0.900 flow · euler-1 0.890 to 0.910",
            "0.800 ridge 0.790 to 0.810",
            "2 of 3",
            "2",
            "1,000",
        ]
    ]
    assert found.links == ["demo/report/index.html"]
    assert "<h1>1 experiment</h1>" in experiments_page(tmp_path).decode()


def test_a_real_experiment_is_not_called_a_demo_and_a_baseline_ahead_is_said(tmp_path: Path) -> None:
    write_experiment(tmp_path, "blip3o", about={**ABOUT, "title": "BLIP3o", "is_demo": False}, ridge=0.91)
    ((head, _, baseline, *_),) = table(tmp_path).rows
    assert head == "BLIP3o demo-eva → demo-vit blip3o/"
    assert baseline == "0.910 ridge 0.900 to 0.920 ahead of every flow"


def test_an_experiment_without_a_report_or_behind_a_link_is_not_listed(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write_experiment(results, "done")
    write_experiment(results, "running")
    (results / "running/report/index.html").unlink()
    write_experiment(tmp_path, "elsewhere")
    (results / "linked").symlink_to(tmp_path / "elsewhere")
    (results / "half").mkdir()
    (results / "half/report").symlink_to(tmp_path / "elsewhere/report")
    assert table(results).links == ["done/report/index.html"]


def test_without_any_report_the_page_says_how_to_make_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        page = experiments_page(folder).decode()
        assert "<h1>No experiments</h1>" in page
        assert "No experiment here has a report yet" in page
        assert "<table" not in page


@pytest.mark.parametrize("name", ["with space", "ünïcödé 実験", "a?b#c%41&d", "quote'\"<b>"])
def test_odd_names_stay_words_and_their_links_lead_to_the_report(tmp_path: Path, name: str) -> None:
    write_experiment(tmp_path, name, about={**ABOUT, "title": HOSTILE, "source_encoder": HOSTILE})
    found = table(tmp_path)
    assert found.rows[0][0] == f"{HOSTILE} demo {HOSTILE} → demo-vit {name}/"
    assert found.scripts == 1
    (link,) = found.links
    assert not re.search(r"[\s?#\"'<>]", link)
    assert (tmp_path / unquote(link)).is_file()


def test_a_name_that_is_no_text_is_listed(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/na\xffme")
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/na\xffme"))
    write_experiment(tmp_path, "model")
    (tmp_path / "model").rename(folder) if not any(folder.iterdir()) else None
    found = table(tmp_path)
    assert found.links == ["na%FFme/report/index.html"]
    assert found.rows[0][0] == "na�me unknown encoders"


DAMAGES = {
    "summary.json": ["", "{", "[]", '{"schema": 2, "rows": []}', '{"schema": 1, "rows": [3]}', "\xff"],
    "verdicts.json": ["{", '{"schema": 1, "rows": [{"goal": "a", "verdict": "perhaps"}]}'],
    "report/about.json": ["{", "[]"],
}


@pytest.mark.parametrize(
    ("file", "text"), [(file, text) for file, texts in DAMAGES.items() for text in texts]
)
def test_a_damaged_file_is_said_in_its_row_and_others_are_shown(tmp_path: Path, file: str, text: str) -> None:
    write_experiment(tmp_path, "broken", about=ABOUT)
    write_experiment(tmp_path, "whole", about=ABOUT)
    (tmp_path / "broken" / file).write_bytes(text.encode("latin-1"))
    broken, whole = table(tmp_path).rows
    assert "Not readable: " in broken[0]
    assert ".json" in broken[0]
    assert broken[1:] == ["–"] * 5
    assert whole[3] == "2 of 3"


def test_an_experiment_under_way_is_not_called_damaged(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, "running")
    for name in ("summary.json", "verdicts.json"):
        (folder / name).unlink()
    ((head, *_),) = table(tmp_path).rows
    assert head == "running unknown encoders Not finished: its report says how far the runs are."


def test_trouble_is_said_without_the_place_of_the_results(tmp_path: Path) -> None:
    (write_experiment(tmp_path, "broken") / "verdicts.json").unlink()
    ((head, *_),) = table(tmp_path).rows
    assert head.startswith("broken unknown encoders Not readable: verdicts.json cannot be read")
    assert str(tmp_path) not in experiments_page(tmp_path).decode()


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, "untrained", flow=None)
    write(folder / "verdicts.json", {"schema": 1, "rows": []})
    write(folder / "runs/flow/evaluation/manifest.json", {"counts": None})
    ((_, flow, baseline, goals, _, images),) = table(tmp_path).rows
    assert (flow, goals, images) == ("–", "–", "–")
    assert baseline == "0.800 ridge 0.790 to 0.810"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    summary=st.fixed_dictionaries({"schema": st.just(1), "rows": anything}, optional={"notes": anything}),
    more=anything,
    about=anything,
    manifest=anything,
)
def test_no_content_of_one_experiment_hides_the_others(
    tmp_path: Path, summary: object, more: object, about: object, manifest: object
) -> None:
    for name in ("strange", "whole"):
        if not (tmp_path / name).exists():
            write_experiment(tmp_path, name, about=ABOUT)
    row = {"run": more, "sampler": more, "data": more, "metric": "r2", "value": more, "low": more}
    for rows in (summary, {**summary, "rows": [row], "differences": more}):  # type: ignore[dict-item]
        write(tmp_path / "strange/summary.json", rows)
        write(tmp_path / "strange/report/about.json", about)
        write(tmp_path / "strange/runs/flow/evaluation/manifest.json", manifest)
        strange, whole = table(tmp_path).rows
        assert len(strange) == len(whole) == 6
        assert whole[3] == "2 of 3"


def test_fifty_experiments_make_one_light_page_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    for number in reversed(range(50)):
        write_experiment(tmp_path, f"experiment-{number:02}", about=ABOUT, flow=0.5 + number / 100)
    page = experiments_page(tmp_path)
    assert page == experiments_page(tmp_path)
    assert len(page) < 200_000
    names = [row[0].split()[-1] for row in Table(page).rows]
    assert names == [f"experiment-{number:02}/" for number in range(50)]


def test_the_page_stands_alone(tmp_path: Path) -> None:
    write_experiment(tmp_path, "demo", about=ABOUT)
    page = experiments_page(tmp_path).decode().replace("http://www.w3.org/2000/svg", "a name, no address")
    assert not re.search(r"<link[^>]+stylesheet|<script[^>]+src=|@import|url\(|https?://", page)
    assert "--paper:" in page
    assert "sortBy" in page


def test_writing_again_changes_nothing_and_a_new_report_is_added(tmp_path: Path) -> None:
    write_experiment(tmp_path, "one")
    path = write_experiments_index(tmp_path)
    assert path == tmp_path / "index.html"
    before = path.stat()
    assert write_experiments_index(tmp_path).stat().st_mtime_ns == before.st_mtime_ns
    write_experiment(tmp_path, "two")
    assert Table(write_experiments_index(tmp_path).read_bytes()).links == [
        f"{name}/report/index.html" for name in ("one", "two")
    ]
    assert sorted(child.name for child in tmp_path.iterdir()) == ["index.html", "one", "two"]


WRITER = """
import sys, time
from pathlib import Path
from experiments_material import write_experiment
from flowkit.report import experiments
from flowkit.report.experiments import write_experiments_index

results, mine = Path(sys.argv[1]), sys.argv[2]
for number in range(12):
    write_experiment(results, f"{mine}-{number}")
    write_experiments_index(results)
"""


def test_processes_that_write_at_once_leave_all_their_reports_in_the_index(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], env=environment)
        for name in "ab"
    ]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "index.html").is_file():
            assert (tmp_path / "index.html").read_bytes().endswith(b"</html>"), "half a page was to be seen"
            seen += 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen
    assert len(Table((tmp_path / "index.html").read_bytes()).rows) == 24
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EROFS])
def test_an_index_that_belongs_to_somebody_else_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: int
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(reason, os.strerror(reason))

    write_experiment(tmp_path, "one")
    before = write_experiments_index(tmp_path).read_bytes()
    write_experiment(tmp_path, "two")
    monkeypatch.setattr(experiments, "write_whole", refuse)
    assert write_experiments_index(tmp_path).read_bytes() == before
    assert "is not brought up to date" in caplog.text
    reason = errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        write_experiments_index(tmp_path)


def test_about_may_be_that_of_a_later_version(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, "later", about={**ABOUT, "title": 3, "more": [1]})
    assert table(tmp_path).rows[0][0] == "later demo demo-eva → demo-vit"
    assert json.loads((folder / "report/about.json").read_text())["more"] == [1]
