"""Data from the network: the workflow on a hub repository and on COCO, served on loopback, with faults on the way."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image
from support import Project, copy_project
from web_material import CAPTIONS_MEMBER, INSTANCES_MEMBER, instances
from web_server import Fault, WebServer, storage_path

from flowkit.features.store import TokenStore
from flowkit.shards.demo_pictures import draw_pictures
from flowkit.shards.demo_shapes import write_shards

REPOSITORY = "someone/shapes"
TARS, IMAGES_PER_TAR, COCO_IMAGES = 3, 40, 48
SETTLED = {
    "experiment": "fetched",
    "encoders": {"source": {"name": "demo-eva"}, "target": {"name": "demo-vit"}, "batch_size": 16},
    "data": {"train": "shapes", "evaluation": "coco"},
    "model": {"size": "demo", "adapter_layers": 0, "cross_attention": False},
    "train": {"steps": 4, "batch_size": 16, "warmup_steps": 1, "validation_samples": 16},
    "sampling": {"samplers": ["euler-1"]},
    "evaluation": {"images": 24, "bootstrap_draws": 100},
    "report": {"gallery_images": 6},
    "runs": {"flow": {}},
    "baselines": ["constant"],
}


@dataclass
class Site:
    """A server with its content, and a project that is configured to fetch from it."""

    web: WebServer
    project: Project
    tars: dict[str, bytes]

    def storage(self, tar: str) -> str:
        """Where the hub sends those who ask for a tar."""
        return storage_path(self.tars[tar])

    @property
    def offline(self) -> Project:
        """The same project where the hub cannot be reached."""
        return Project(self.project.folder, {"HF_ENDPOINT": "http://127.0.0.1:9"})

    def downloads(self) -> int:
        """How often the bytes of a tar or archive were asked for."""
        with self.web.lock:
            return sum(path.path.startswith(("/storage/", "/coco/")) for path in self.web.requests)


def make_site(folder: Path, web: WebServer) -> Site:
    made = folder / "made"
    made.mkdir()
    paths = write_shards(made, images=TARS * IMAGES_PER_TAR, images_per_shard=IMAGES_PER_TAR, seed=3)
    tars = {path.name: path.read_bytes() for path in paths}
    web.commit(REPOSITORY, {**tars, "README.md": b"drawn shapes"})
    project = Project(copy_project(folder / "project"), {"HF_ENDPOINT": web.url, "HF_TOKEN": "secret"})
    coco = {"kind": "coco", "images": COCO_IMAGES, "images_per_shard": 32, **coco_archives(web)}
    datasets = {"shapes": {"kind": "hub", "repository": REPOSITORY, "samples_per_shard": 32}, "coco": coco}
    (project.folder / "tiny.yaml").write_text(yaml.safe_dump({**SETTLED, "datasets": datasets}))
    return Site(web, project, tars)


def coco_archives(web: WebServer) -> dict[str, dict[str, object]]:
    """Serve the two archives of a small COCO and return their part of the configuration."""
    drawn = draw_pictures(5, COCO_IMAGES)
    images, texts = io.BytesIO(), io.BytesIO()
    listed, captions, shown = [], [], {}
    with zipfile.ZipFile(images, "w") as archive:
        for number, (picture, caption) in enumerate(zip(drawn.pixels_NHWC, drawn.captions, strict=True)):
            jpeg = io.BytesIO()
            Image.fromarray(picture).save(jpeg, "JPEG", quality=95)
            name = f"{7 * number + 3:012d}.jpg"
            archive.writestr(f"val2017/{name}", jpeg.getvalue())
            listed.append({"id": 7 * number + 3, "file_name": name, "width": 32, "height": 32})
            shown[7 * number + 3] = [1 + number % 10]
            captions += [
                {"id": 10 * number + way, "image_id": 7 * number + 3, "caption": f"{caption} {way}"}
                for way in range(6)
            ]
    with zipfile.ZipFile(texts, "w") as archive:
        record = json.dumps({"images": listed, "annotations": captions})
        archive.writestr(CAPTIONS_MEMBER, record)
        archive.writestr(INSTANCES_MEMBER, json.dumps(instances(shown)))
    found: dict[str, dict[str, object]] = {}
    for key, content in (("pictures", images.getvalue()), ("annotations", texts.getvalue())):
        digest = hashlib.sha256(content).hexdigest()
        url = web.serve(f"/coco/{key}.zip", content)
        found[key] = {"url": url, "bytes": len(content), "sha256": digest}
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A finished workflow whose downloads met a cut connection, a busy server and a corrupted answer."""
    with WebServer() as web:
        made = make_site(tmp_path_factory.mktemp("fetched"), web)
        web.fail(made.storage("00000.tar"), Fault(cut_after=5000), Fault(cut_after=9000, reset=True))
        web.fail(made.storage("00001.tar"), Fault(status=503, headers={"Retry-After": "0"}))
        web.fail("/coco/pictures.zip", Fault(status=429, headers={"Retry-After": "0"}), Fault(cut_after=3000))
        made.project.flowkit("fetch", "--config", "tiny.yaml")
        made.project.flowkit("weights", "--config", "tiny.yaml")
        asked = len(web.requests)
        made.offline.snakemake()
        assert len(web.requests) == asked, "nothing after the fetch needs the network"
        yield made


@pytest.mark.slow
def test_whole_workflow_runs_on_fetched_data(site: Site) -> None:
    data = site.project.folder / "results/data"
    found = sorted(path.parent for path in data.glob("features/shapes/demo-vit-*/*/*/zarr.json"))
    assert [len(TokenStore(path)) for path in found] == [32] * TARS
    coco = [TokenStore(path.parent) for path in sorted(data.glob("features/coco/demo-vit-*/*/*/zarr.json"))]
    assert [len(store) for store in coco] == [32, 16]
    assert [len(captions) for store in coco for captions in store.samples["captions"]] == [5] * COCO_IMAGES
    (texts,) = data.glob("texts/coco/demo-vit-*/manifest.json")
    assert json.loads(texts.read_text())["counts"]["classes"] == 80
    assert (site.project.folder / "results/fetched/report/index.html").is_file()
    assert not list(data.glob("**/missing*.json"))


@pytest.mark.slow
def test_training_by_hand_needs_no_network_either(site: Site) -> None:
    asked = len(site.web.requests)
    gone = site.offline
    assert gone.planned() == {}
    said = gone.flowkit(
        "sample",
        "--config",
        "tiny.yaml",
        "--set",
        "sampling.seed=8",
        "--set",
        "experiment=other",
        check=False,
    )
    assert "other/runs/flow/train/manifest.json: missing, run the stage that makes it first" in said
    gone.flowkit("train", "--config", "tiny.yaml", "--set", "train.seed=8", "--set", "experiment=other")
    assert len(site.web.requests) == asked


@pytest.mark.slow
def test_how_things_are_fetched_is_no_reason_to_fetch_them_again(site: Site) -> None:
    for path, old in (
        ("flowkit/shards/remote.py", "CHUNK_BYTES = 1 << 18"),
        ("flowkit/hub_access.py", 'PUBLIC_ENDPOINT = "https'),
    ):
        original = (site.project.folder / path).read_text()
        site.project.edit(path, old, old.replace("=", "= 0 or"))
        assert site.project.planned() == {}
        (site.project.folder / path).write_text(original)


@pytest.mark.slow
def test_fewer_samples_rerun_extraction_and_fetch_nothing(site: Site) -> None:
    planned = site.project.planned("--config", "set=datasets.shapes.samples_per_shard=20")
    assert {"extract_shapes_demo_eva", "extract_shapes_demo_vit", "pairs_shapes", "train_flow"} <= set(
        planned
    )
    assert "samples_per_shard=20" in planned["extract_shapes_demo_eva"]
    assert not any(name.startswith(("fetch", "shards", "extract_coco", "texts")) for name in planned)


@pytest.mark.slow
def test_conversion_to_int8_sits_between_extraction_and_pairs(site: Site) -> None:
    planned = site.project.planned("--config", "set=encoders.source_storage=int8")
    assert {"convert_shapes", "convert_coco", "pairs_shapes", "pairs_coco", "train_flow"} <= set(planned)
    assert not any(name.startswith(("fetch", "shards", "extract", "texts", "head")) for name in planned)


@pytest.mark.slow
def test_training_reads_converted_stores_and_every_store_verifies(site: Site) -> None:
    eight = yaml.safe_load((site.project.folder / "tiny.yaml").read_text())
    eight["experiment"] = "eight"
    eight["encoders"]["source_storage"] = "int8"
    (site.project.folder / "eight.yaml").write_text(yaml.safe_dump(eight))
    for stage in ("convert", "pairs", "train"):
        site.project.flowkit(stage, "--config", "eight.yaml")
    results = site.project.folder / "results"
    assert (results / "eight/runs/flow/train/manifest.json").is_file()
    manifests = sorted(results.glob("data/features/shapes/demo-eva-*-int8/*/manifest.json"))
    assert len(manifests) == TARS
    errors = [json.loads(path.read_text())["counts"]["errors"] for path in manifests]
    assert all(0.9995 < table["min_cosine_standardised"] < 1 for table in errors)
    said = site.project.flowkit("verify", "results/data/features")
    assert f"{3 * (TARS + 2)} stores are whole" in said


@pytest.mark.slow
def test_verify_names_the_file_with_a_flipped_bit(site: Site) -> None:
    (store,) = (site.project.folder / "results/data/features/coco").glob("demo-vit-*/00001/*/tokens/c.0.0.0")
    original = store.read_bytes()
    try:
        store.write_bytes(original[:5000] + bytes([original[5000] ^ 4]) + original[5001:])
        said = site.project.flowkit("verify", "results/data/features/coco", check=False)
        assert said.count("flowkit: error:") == 1
        assert "00001" in said.split("flowkit: error:")[1]
        assert "tokens/c.0.0.0" in said.split("flowkit: error:")[1]
    finally:
        store.write_bytes(original)


@pytest.mark.slow
def test_a_newer_commit_changes_nothing_until_the_listing_is_deleted(site: Site) -> None:
    site.web.commit(REPOSITORY, {**site.tars, "00003.tar": site.tars["00000.tar"]})
    assert site.project.planned() == {}
    (listing,) = (site.project.folder / "results/data/listings").iterdir()
    kept = listing.read_text()
    listing.unlink()
    assert "extract_shapes_demo_eva" in site.project.planned(), "a fourth tar is there now"
    changed = {**site.tars, "00001.tar": site.tars["00002.tar"]}
    site.web.commit(REPOSITORY, changed)
    listing.unlink()
    assert {"fetch_shapes"} <= set(site.project.planned()), "the same name with other bytes is fetched again"
    listing.write_text(kept)
    assert site.project.planned() == {}


def test_what_cannot_be_had_is_marked_and_the_rest_is_fetched(tmp_path: Path) -> None:
    with WebServer() as web:
        made = make_site(tmp_path, web)
        fault = Fault(status=404, times=-1)
        web.fail(made.storage("00001.tar"), fault)
        said = made.project.flowkit("fetch", "--config", "tiny.yaml", "--dataset", "shapes", check=False)
        assert "flowkit: error: 1 of 3 files are missing, the first is 00001.tar" in said
        shards = made.project.folder / "results/data/shards/shapes"
        assert list(json.loads((shards / "00000.missing.json").read_text())) == ["00001.tar"]
        assert sorted(path.parent.name for path in shards.glob("*/manifest.json")) == ["00000", "00002"]
        web.faults.clear()
        before = made.downloads()
        made.project.flowkit("fetch", "--config", "tiny.yaml", "--dataset", "shapes")
        assert made.downloads() == before + 1, "only the missing tar is fetched"
        assert len(list(shards.glob("*/manifest.json"))) == TARS
        assert not (shards / "00000.missing.json").exists()


def test_one_missing_tar_does_not_keep_later_batches_from_being_fetched(tmp_path: Path) -> None:
    with WebServer() as web:
        made = make_site(tmp_path, web)
        web.fail(made.storage("00000.tar"), Fault(status=404, times=-1))
        by_two = Project(made.project.folder, {**made.project.variables, "FLOWKIT_SHARDS_PER_JOB": "2"})
        said = by_two.flowkit("fetch", "--config", "tiny.yaml", "--dataset", "shapes", check=False)
        assert "flowkit: error: 1 of 2 files are missing, the first is 00000.tar" in said
        shards = made.project.folder / "results/data/shards/shapes"
        assert sorted(path.parent.name for path in shards.glob("*/manifest.json")) == ["00001", "00002"]


def test_wrong_bytes_are_refused_by_digest(tmp_path: Path) -> None:
    with WebServer() as web:
        made = make_site(tmp_path, web)
        wrong = bytes(len(made.tars["00002.tar"]))
        web.fail(made.storage("00002.tar"), Fault(body=wrong, times=-1))
        said = made.project.flowkit("fetch", "--config", "tiny.yaml", "--dataset", "shapes", check=False)
        assert hashlib.sha256(wrong).hexdigest()[:12] in said
        assert "1 of 3 files are missing, the first is 00002.tar" in said
        assert not (made.project.folder / "results/data/shards/shapes/00002/manifest.json").exists()


def test_without_listing_and_network_one_line_says_what_to_do(tmp_path: Path) -> None:
    with WebServer() as web:
        made = make_site(tmp_path, web)
    offline = Project(made.project.folder, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"})
    said = offline.flowkit("check", "tiny.yaml", check=False)
    assert said.count("flowkit: error:") == 1
    assert "HF_HUB_OFFLINE" in said
