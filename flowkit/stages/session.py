"""One execution of one stage: adopt what is there, work where a kill does no harm, commit at the end.

A result folder holds

    manifest.json          declared to Snakemake; content digests and counts, the same for identical remakes
    run.json               spec, code, versions, host, times; read by people and the report
    <content digest>/      the files themselves, under the name of what they contain
    state/lock             one stage at a time
    state/work-<key>/      partial work; the key is spec + code + input manifests
    state/made-<key>.json  the manifest that this key led to, for adoption without work
    state/ran-<key>.json   its run record

Only the manifest is a declared output, because Snakemake deletes those before a rerun and after a failure. Work is
renamed to its content name in one step and the manifest is written last, so a kill leaves either state behind.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowkit.errors import FlowkitError, StageError
from flowkit.paths import MANIFEST, RUN_RECORD, Places
from flowkit.progress import logger
from flowkit.provenance import (
    RunRecord,
    digest_of,
    file_digest,
    folder_digests,
    read_json,
    sync_all,
    write_json,
)
from flowkit.runtime import exclusive

SCHEMA = 1
NOT_BY_HAND = b'"by_hand": []'
"""How the record of a result that Snakemake asked for says so."""
HIDDEN_MANIFEST = f"other-values-{MANIFEST}"
KEPT_GENERATIONS = 2
LOCK_WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Spec:
    """What a stage is asked to do. `values` are all configuration leaves that it can see, and all that is tracked."""

    stage: str
    target: Mapping[str, str]
    values: Mapping[str, Any]
    places: Places
    code: tuple[str, ...]
    by_hand: tuple[str, ...] = ()
    """What Snakemake would track, where a person started the stage: Snakemake itself knows nothing of such a result."""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form that the command line takes as `--spec`."""
        roots = {"results": str(self.places.results), "data_root": str(self.places.data_root)}
        return {
            "stage": self.stage,
            "target": dict(self.target),
            "experiment": self.places.experiment,
            "roots": roots,
            "values": dict(self.values),
        }


@dataclass
class Session:
    """The open result of one stage. Write below `work`, then call `commit` once."""

    spec: Spec
    folder: Path
    key: str
    record: RunRecord
    digests: Callable[[Path], dict[str, str]] = folder_digests

    @property
    def work(self) -> Path:
        """Folder of partial work that survives a kill; belongs to this spec, code and these inputs alone."""
        self._work.mkdir(parents=True, exist_ok=True)
        return self._work

    @property
    def _record_of_key(self) -> Path:
        return self.folder / "state" / f"ran-{self.key}.json"

    @property
    def _work(self) -> Path:
        return self.folder / "state" / f"work-{self.key}"

    @property
    def is_done(self) -> bool:
        """True when an earlier execution of the same key was adopted: its manifest is in place again."""
        made = self.folder / "state" / f"made-{self.key}.json"
        if not made.is_file():
            return False
        manifest = read_json(made)
        if not self._is_intact(manifest):
            made.unlink()
            return False
        shutil.rmtree(self._work, ignore_errors=True)
        ran = self._record_of_key
        record = read_json(ran) if ran.is_file() else self.record.as_dict()  # a kill can leave it out
        self._show(manifest, record)
        logger.info("stage=%s adopted=%s", self.spec.stage, self.folder / manifest["content"])
        return True

    def commit(
        self, counts: Mapping[str, Any], *, untracked: tuple[str, ...] = (), folder: Path | None = None
    ) -> Path:
        """Give the work its content name and write manifest and run record; returns the committed folder.

        `untracked` files travel with the result but not with its digest, because they hold times. `folder` is the part
        of the work that is the result; without it, all of it is.
        """
        made = self.work if folder is None else folder
        sync_all(made)
        digests = {name: value for name, value in self.digests(made).items() if name not in untracked}
        content = digest_of(digests)[:16]
        manifest = {"schema": SCHEMA, "stage": self.spec.stage, "content": content, "files": digests}
        manifest["counts"] = dict(counts)
        final = self.folder / content
        if final.exists():
            shutil.rmtree(final)
        # recorded before the rename: after a kill in between, the work is still there and is committed again
        write_json(self.folder / "state" / f"made-{self.key}.json", manifest)
        made.rename(final)
        shutil.rmtree(self._work, ignore_errors=True)
        record = self.record.as_dict()
        write_json(self._record_of_key, record)
        self._show(manifest, record)
        _prune(self.folder, keep=content)
        logger.info("stage=%s committed=%s", self.spec.stage, final)
        return final

    def _show(self, manifest: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        # first, or a kill in between would let the hidden one pass for this one
        (self.folder / HIDDEN_MANIFEST).unlink(missing_ok=True)
        write_json(self.folder / RUN_RECORD, {**record, "by_hand": list(self.spec.by_hand)})
        write_json(self.folder / MANIFEST, manifest)

    def _is_intact(self, manifest: Mapping[str, Any]) -> bool:
        content = self.folder / manifest["content"]
        if not all((content / name).is_file() for name in manifest["files"]) or not content.is_dir():
            return False
        try:
            found = self.digests(content)
        except FlowkitError:  # a damaged store cannot say its digests
            return False
        return all(found.get(name) == digest for name, digest in manifest["files"].items())


@contextmanager
def open_session(
    spec: Spec,
    folder: Path,
    inputs: Sequence[Path],
    content: Sequence[str] = (),
    digests: Callable[[Path], dict[str, str]] = folder_digests,
) -> Iterator[Session]:
    """Lock a result folder and yield its session.

    `inputs` are the result folders that are read; `content` are digests of what is read besides. Both are
    part of the key. `digests` names the content of the files in a folder, for formats that know it without reading all.
    """
    with exclusive(folder / "state" / "lock", wait_seconds=LOCK_WAIT_SECONDS):
        key = session_key(spec, inputs, content)
        _drop_old_work(folder, key)
        yield Session(spec, folder, key, RunRecord(spec.stage, spec.as_dict(), spec.code), digests)


def session_key(spec: Spec, inputs: Sequence[Path], content: Sequence[str] = ()) -> str:
    """Return the digest of all that a result is made from: spec, code, and what is read."""
    read = [*content, *(digest_of(read_json(path / MANIFEST)) for path in inputs)]
    return digest_of([spec.stage, spec.target, spec.values, spec.code, read])[:16]


def committed(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the content folder and the manifest of a committed result; raises `StageError` if it is not there."""
    manifest = read_json(folder / MANIFEST)
    content = folder / manifest["content"]
    if not content.is_dir():
        raise StageError(
            f"{content}: missing though {MANIFEST} names it, run stage {manifest['stage']} again"
        )
    return content, manifest


def hide_other_values(folder: Path, tracked: Sequence[str]) -> bool:
    """Hide the manifest of a result that was made by hand from other values or other code, or show it again.

    Snakemake has no record of such a result and would take it for the one that is asked for. Returns True if the
    result has a hidden manifest and no other.
    """
    shown, hidden = folder / MANIFEST, folder / HIDDEN_MANIFEST
    by_hand = _made_by_hand_from(folder)
    if by_hand and by_hand != set(tracked):
        if shown.is_file():
            shown.replace(hidden)
    elif will_be_shown_again(folder, tracked):
        hidden.replace(shown)
    return _is_hidden(folder)


def will_be_shown_again(folder: Path, tracked: Sequence[str]) -> bool:
    """Whether a result is hidden and was made from the values that are asked for now."""
    return _is_hidden(folder) and _made_by_hand_from(folder) == set(tracked)


def _is_hidden(folder: Path) -> bool:
    return os.path.isfile(f"{folder}/{HIDDEN_MANIFEST}") and not os.path.exists(f"{folder}/{MANIFEST}")


def _made_by_hand_from(folder: Path) -> set[str]:
    record = folder / RUN_RECORD
    try:
        content = record.read_bytes()
    except FileNotFoundError:
        return set()
    # true of nearly all: parsing thousands of records takes seconds
    return set() if NOT_BY_HAND in content else set(read_json(record).get("by_hand", []))


def was_lost(folder: Path) -> bool:
    """Whether a result was begun here and has no manifest: its job failed, or was stopped, in this or an earlier call.

    Snakemake makes no missing file anew that only finished rules read, so without being asked for, the results after a
    failed job would stay those of earlier values. What was removed as a whole is not missed, also where a file system
    that is emptied after some days leaves the folders.
    """
    if (folder / MANIFEST).is_file():
        return False
    state = folder / "state"
    return any(state.glob("made-*.json")) or any(state.glob("work-*/*"))


def reuse(folder: Path, name: str, sha256: str, to: Path) -> bool:
    """Link a file that another generation of a result holds, so that a change of code fetches nothing again."""
    for found in folder.glob(f"*/{name}"):
        if found.parent.name != "state" and file_digest(found) == sha256:
            to.unlink(missing_ok=True)
            os.link(found, to)
            return True
    return False


def _drop_old_work(folder: Path, key: str) -> None:
    """Delete partial work of other specs but the newest, which a user who goes back to it resumes."""
    others = [path for path in (folder / "state").glob("work-*") if path.name != f"work-{key}"]
    for path in sorted(others, key=lambda path: path.stat().st_mtime)[:-1]:
        shutil.rmtree(path)


def _prune(folder: Path, *, keep: str) -> None:
    """Keep the newest generations of a result, so that going back to earlier settings costs nothing."""
    made = sorted((folder / "state").glob("made-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    kept = {keep}
    for path in made:
        content = read_json(path)["content"]
        if content not in kept and len(kept) >= KEPT_GENERATIONS:
            path.unlink()
            path.with_name(path.name.replace("made-", "ran-")).unlink(missing_ok=True)
            shutil.rmtree(folder / content, ignore_errors=True)
        else:
            kept.add(content)
