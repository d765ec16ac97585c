"""The commit protocol: adoption, content names, kills between its steps, and one worker at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowkit.errors import StageError
from flowkit.paths import Places
from flowkit.runtime import exclusive, process_identity
from flowkit.stages.session import Session, Spec, committed, open_session, was_lost


def _spec(tmp_path: Path, code: str = "module@1", **values: object) -> Spec:
    return Spec("toy", {"name": "x"}, values, Places("e", tmp_path, tmp_path / "data"), (code,))


def _make(spec: Spec, folder: Path, text: str = "tokens", inputs: tuple[Path, ...] = ()) -> bool:
    """Run a toy stage; True if it worked, False if it adopted an earlier result."""
    with open_session(spec, folder, inputs) as session:
        if session.is_done:
            return False
        (session.work / "result.txt").write_text(text)
        (session.work / "times.txt").write_text(str(time.time()))
        session.commit({"n": 1}, untracked=("times.txt",))
    return True


def test_second_execution_adopts_even_when_the_manifest_was_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    assert _make(_spec(tmp_path), folder)
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").unlink()
    assert not _make(_spec(tmp_path), folder)
    assert (folder / "manifest.json").read_bytes() == manifest


def test_identical_remake_by_other_code_leaves_an_identical_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    _make(_spec(tmp_path), folder)
    manifest = (folder / "manifest.json").read_bytes()
    assert _make(_spec(tmp_path, code="module@2"), folder)
    assert (folder / "manifest.json").read_bytes() == manifest


def test_going_back_to_earlier_values_costs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    assert _make(_spec(tmp_path, steps=1), folder, "one")
    assert _make(_spec(tmp_path, steps=2), folder, "two")
    assert not _make(_spec(tmp_path, steps=1), folder, "one")
    assert (committed(folder)[0] / "result.txt").read_text() == "one"
    assert json.loads((folder / "run.json").read_text())["spec"]["values"] == {"steps": 1}


def test_old_generations_are_pruned(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    for steps in range(5):
        _make(_spec(tmp_path, steps=steps), folder, str(steps))
    contents = [path for path in folder.iterdir() if path.is_dir() and path.name != "state"]
    assert len(contents) == 2
    assert (committed(folder)[0] / "result.txt").read_text() == "4"


def test_a_changed_input_is_no_earlier_result(tmp_path: Path) -> None:
    upstream, folder = tmp_path / "u", tmp_path / "r"
    _make(_spec(tmp_path), upstream, "a")
    assert _make(_spec(tmp_path), folder, inputs=(upstream,))
    assert not _make(_spec(tmp_path), folder, inputs=(upstream,))
    _make(_spec(tmp_path, other=1), upstream, "b")
    assert _make(_spec(tmp_path), folder, inputs=(upstream,))


def test_damaged_result_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    _make(_spec(tmp_path), folder)
    (committed(folder)[0] / "result.txt").write_text("flipped")
    assert _make(_spec(tmp_path), folder)
    assert (committed(folder)[0] / "result.txt").read_text() == "tokens"


def test_missing_content_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    _make(_spec(tmp_path), folder)
    content, _ = committed(folder)
    content.rename(folder / "elsewhere")
    with pytest.raises(StageError, match=f"{content.name}: missing"):
        committed(folder)


@pytest.mark.parametrize("stop_at", ["write_json", "rename", "_prune"])
def test_kill_between_the_steps_of_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    """Whatever step the kill precedes, the next execution ends with the same result."""
    folder = tmp_path / "r"

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if stop_at == "rename":
            patch.setattr(Path, "rename", die)
        else:
            patch.setattr(f"flowkit.stages.session.{stop_at}", die)
        with pytest.raises(KeyboardInterrupt):
            _make(_spec(tmp_path), folder)
    _make(_spec(tmp_path), folder)
    content, manifest = committed(folder)
    assert (content / "result.txt").read_text() == "tokens"
    assert manifest["files"].keys() == {"result.txt"}


def test_partial_work_survives_and_belongs_to_its_spec(tmp_path: Path) -> None:
    folder = tmp_path / "r"

    def work_of(spec: Spec) -> Session:
        with open_session(spec, folder, ()) as session:
            return session

    (work_of(_spec(tmp_path, steps=1)).work / "part").write_text("half")
    assert not (work_of(_spec(tmp_path, steps=2)).work / "part").exists()
    assert (work_of(_spec(tmp_path, steps=1)).work / "part").read_text() == "half"


HOLD = """
import sys, time
from pathlib import Path
from flowkit.runtime import end_with, exclusive
end_with(int(sys.argv[2]))
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def _holder(lock: Path, parent: int = 0) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock), str(parent)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_worker_is_refused_with_the_number_of_the_first(tmp_path: Path) -> None:
    process = _holder(tmp_path / "lock")
    try:
        with pytest.raises(StageError, match=f"held by process {process.pid}"), exclusive(tmp_path / "lock"):
            pass
    finally:
        process.kill()
        process.wait()
    with exclusive(tmp_path / "lock", wait_seconds=5):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_stage_ends_soon_after_its_parent_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(["sleep", "60"])
    process = _holder(tmp_path / "lock", parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert process.wait(timeout=10) == 113


def test_identity_tells_a_process_from_a_later_one_with_its_number() -> None:
    process = subprocess.Popen(["sleep", "60"])
    assert process_identity(process.pid) == process_identity(process.pid) != process_identity(os.getpid())
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process_identity(process.pid) is None  # a zombie works on nothing
    process.wait()


def test_identity_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.runtime.HAS_PROC", False)
    process = subprocess.Popen(["sleep", "60"])
    assert process_identity(process.pid) == str(process.pid)
    process.kill()
    process.wait()
    assert process_identity(process.pid) is None


def test_run_record_holds_what_the_manifest_must_not(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    _make(_spec(tmp_path), folder)
    record, manifest = (json.loads((folder / name).read_text()) for name in ("run.json", "manifest.json"))
    assert record["code"] == ["module@1"]
    assert record["seconds"] >= 0
    assert "torch" in record["versions"]
    assert not {"started", "seconds", "host", "code"} & manifest.keys()


def test_a_result_is_lost_when_its_job_failed_and_not_when_it_was_removed(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    assert not was_lost(folder), "nobody began it"
    assert _make(_spec(tmp_path), folder)
    assert not was_lost(folder)
    (folder / "manifest.json").unlink()  # as Snakemake does before it runs a job again
    assert was_lost(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.unlink()
    assert (folder / "state").is_dir(), "a file system that removes old files leaves the folders"
    assert not was_lost(folder)
