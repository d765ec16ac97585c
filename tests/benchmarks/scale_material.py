"""A data set of thousands of tars as its bookkeeping sees it, in a few hundred megabytes.

Listings, manifests, run records, metadata and tables are what the stages leave for tars of a hub. The arrays of a store
are true ones, too, but only a few different ones exist: the stores of all other tars are links to their files, with a
group document that names their own tar. So every store opens, verifies and reads, and nothing of it was computed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from flowkit.config import load_config
from flowkit.features.metadata import DOCUMENT, group_document, read_group
from flowkit.features.tables import RejectRow, SampleRow
from flowkit.features.writer import TokenStoreWriter
from flowkit.paths import LOCATION, MANIFEST, RUN_RECORD, Places
from flowkit.provenance import RunRecord, digest_of, write_json
from flowkit.stages.jobs import Job
from flowkit.stages.specs import Plan
from flowkit.stages.stores import digests_of_store

TARS, EVALUATED_TARS, VARIANTS = 2000, 2, 4
CONFIG = "stub.yaml"
MEMBERS = 2506
"""Of a tar; each encoder refuses another one or two of them, so 2,000 tars make over five million pairs."""
MOST_REFUSED = 4
BATCH, TAR_BYTES, POOLED_WIDTH = 358, 250_000_000, 768
TOKEN_SHAPES = {"demo-eva": (17, 128), "demo-vit": (17, 96)}
REPOSITORIES = {"train": "stub/train", "test": "stub/test"}


def stub_plan(folder: Path, *, tars: int = TARS, evaluated: int = EVALUATED_TARS) -> Plan:
    """Return the plan of an experiment on listed tars, of which nothing is there; writes configuration and listings."""
    counts = {"train": tars, "test": evaluated}
    datasets = {
        name: {"kind": "hub", "repository": REPOSITORIES[name], "shards": count}
        for name, count in counts.items()
    }
    raw: dict[str, Any] = {
        "experiment": "stub",
        "datasets": datasets,
        "data": {"train": "train", "evaluation": "test"},
        "encoders": {"source": {"name": "demo-eva"}, "target": {"name": "demo-vit"}},
        "evaluation": {"images": min(5000, (MEMBERS - MOST_REFUSED) * evaluated)},
        "baselines": ["constant", "ridge"],
        "runs": {"flow": {}, "regression": {"objective": {"kind": "regression"}}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(raw))  # JSON is YAML
    for name, count in counts.items():
        listed = [_tar(name, number) for number in range(count)]
        listing = {"repository": REPOSITORIES[name], "revision": "main", "commit": "c" * 40, "tars": listed}
        write_json(_places(folder).listing(REPOSITORIES[name], "main"), listing)
    return existing_plan(folder)


def existing_plan(folder: Path) -> Plan:
    """Return the plan of a folder in which `stub_plan` was called before."""
    return Plan(load_config(folder / CONFIG), _places(folder))


def _places(folder: Path) -> Places:
    return Places("stub", folder / "results", folder / "results/data")


def refused_of(dataset: str, number: int, name: str) -> set[int]:
    """Return the members of a tar that an encoder refused."""
    variant, side = _variant_number(dataset, number), list(TOKEN_SHAPES).index(name)
    return {7 + 5 * variant + 100 * side, 50 + variant // 2}


def _variant_number(dataset: str, number: int) -> int:
    return number % VARIANTS + (VARIANTS if dataset == "test" else 0)


def write_stub_stores(plan: Plan, scratch: Path, pooled_width: int | None = POOLED_WIDTH) -> None:
    """Commit what `plan` fetches and extracts: token stores, and weights and tars without their bytes.

    The stores that all others are links to lie in `scratch`, which may serve several plans.
    """
    for job in plan.jobs.values():
        if job.spec.stage == "fetch":
            commits, dataset = _Commits(job), job.spec.target["dataset"]
            for tar, folder in commits.results():
                described = _tar(dataset, _number(tar))
                commits.add(tar, folder, digest_of(described)[:16], {}, {"tars": [described]})
        elif job.spec.stage == "extract":
            _link_stores(job, scratch, pooled_width)
        elif job.spec.stage == "weights":
            commits = _Commits(job)
            counts = {"encoder": job.spec.values["encoder"]["name"], "sha256": "0" * 64}
            commits.add("", job.folders[0], "weights", {}, counts)
            write_json(job.folders[0] / "weights" / LOCATION, {"path": "tower", "outside": {}})


def _link_stores(job: Job, scratch: Path, pooled_width: int | None) -> None:
    dataset, name = job.spec.target["dataset"], job.spec.values["encoder"]["name"]
    commits = _Commits(job)
    for tar, folder in commits.results():
        number = _number(tar)
        variant = _variant(scratch, name, dataset, number % VARIANTS, pooled_width)
        own = group_document({**variant.attributes, "source": _tar(dataset, number)}, variant.tables)
        digests = {**variant.digests, DOCUMENT: digest_of(own)}
        content = folder / digest_of(digests)[:16]
        for array in variant.attributes["arrays"]:
            (content / array).mkdir(parents=True)
        for file in variant.digests:
            if file != DOCUMENT:
                os.link(variant.folder / file, content / file)
        (content / DOCUMENT).write_text(json.dumps(own, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        counts = {kind: variant.attributes["counts"][kind] for kind in ("samples", "rejects")}
        commits.add(tar, folder, content.name, digests, counts)


@dataclass(frozen=True)
class _Variant:
    """A true store, and what its documents and files say."""

    folder: Path
    attributes: dict[str, Any]
    tables: dict[str, str]
    digests: dict[str, str]


@cache
def _variant(scratch: Path, name: str, dataset: str, number: int, pooled_width: int | None) -> _Variant:
    """Write the store of tar `number`, and return it."""
    folder = scratch / f"{name}-{dataset}-{number}"
    _write_variant(folder, name, dataset, number, pooled_width)
    attributes, tables = read_group(folder / DOCUMENT, unfinished="", remedy="")
    return _Variant(folder, attributes, tables, digests_of_store(folder))


def _write_variant(store: Path, name: str, dataset: str, number: int, pooled_width: int | None) -> None:
    """Write a true store of random tokens, as extraction would."""
    side, variant = list(TOKEN_SHAPES).index(name), _variant_number(dataset, number)
    generator, refused = np.random.default_rng([variant, side]), refused_of(dataset, number, name)
    attributes = {
        "encoder": name,
        "has_cls": True,
        "grid": [4, 4],
        "limit": None,
        "precision": "fp32",
        "preprocessing": {"decoder": "pillow", "mean": [0.5, 0.5, 0.5], "size": 32, "version": "13.0.0"},
        "source": {"name": "variant", "sha256": ""},
        "weights_sha256": f"{side:064x}",
    }
    shape = TOKEN_SHAPES[name]
    with TokenStoreWriter(
        store, token_shape=shape, pooled_width=pooled_width, attributes=attributes
    ) as writer:
        for start in range(0, MEMBERS, BATCH):
            kept = [index for index in range(start, start + BATCH) if index not in refused]
            writer.append(
                generator.standard_normal((len(kept), *shape), np.float32),
                None
                if pooled_width is None
                else generator.standard_normal((len(kept), pooled_width), np.float32),
                [_row(variant, index) for index in kept],
                rejects=[
                    RejectRow(index, _key(index), "image undecodable: torn")
                    for index in sorted(refused & set(range(start, start + BATCH)))
                ],
                next_index=start + BATCH,
            )
        writer.finish()


def _key(index: int) -> str:
    return f"{index:09d}"


def _row(variant: int, index: int) -> SampleRow:
    digest = f"{variant * MEMBERS + index:064x}"
    caption = f"a photograph of something, number {index} of the sort {variant}"
    return SampleRow(index, _key(index), (caption,), 640, 480, digest)


def _tar(dataset: str, number: int) -> dict[str, Any]:
    return {
        "name": f"{number:05d}.tar",
        "bytes": TAR_BYTES,
        "sha256": f"{number + 10**6 * (dataset == 'test'):064x}",
    }


class _Commits:
    """Writes what sessions of one job leave beside the content, tar by tar."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._record = {
            **RunRecord(job.spec.stage, job.spec.as_dict(), job.spec.code).as_dict(),
            "by_hand": [],
        }

    def results(self) -> Iterator[tuple[str, Path]]:
        """Name and result folder of each tar."""
        return zip(self._job.spec.target["tars"].split(","), self._job.folders, strict=True)

    def add(
        self, tar: str, folder: Path, content: str, files: dict[str, str], counts: dict[str, Any]
    ) -> None:
        """Commit the result of one tar."""
        stage = self._job.spec.stage
        (folder / content).mkdir(parents=True, exist_ok=True)
        (folder / "state").mkdir(exist_ok=True)
        manifest = {"schema": 1, "stage": stage, "content": content, "files": files, "counts": counts}
        spec = {**self._record["spec"], "target": self._target(tar)}
        for name, document in ((MANIFEST, manifest), (RUN_RECORD, {**self._record, "spec": spec})):
            (folder / name).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")

    def _target(self, tar: str) -> dict[str, str]:
        return {**self._job.spec.target, "tars": tar} if tar else dict(self._job.spec.target)


def _number(tar: str) -> int:
    return int(tar.removesuffix(".tar"))
