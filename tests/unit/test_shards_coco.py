"""COCO becomes tars that the reader of all tars understands, with the same bytes on every run.

With instance annotations every sample says which of the 80 categories its image shows.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from web_material import (
    CAPTIONS_MEMBER,
    CATEGORY_IDS,
    INSTANCES_MEMBER,
    instances,
    jpeg,
    remote_file,
    tiny_coco,
    zipped,
)
from web_server import Fault, WebServer

from flowkit.datasets import CocoDataset
from flowkit.errors import ConfigError, ShardError
from flowkit.shards.catalogue import list_tars
from flowkit.shards.coco import read_instances, write_coco_shards
from flowkit.shards.coco_categories import COCO_CATEGORIES
from flowkit.shards.reader import Sample, read_samples
from flowkit.shards.remote import download


def _zips(folder: Path, images: bytes, annotations: bytes) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    (folder / "images.zip").write_bytes(images)
    (folder / "annotations.zip").write_bytes(annotations)
    return folder / "images.zip", folder / "annotations.zip"


def _convert(zips: tuple[Path, Path], folder: Path, images: int | None = None) -> list[Path]:
    return write_coco_shards(*zips, CAPTIONS_MEMBER, folder, images=images, images_per_shard=3)


def _annotations(images: list[dict[str, object]], annotations: list[dict[str, object]]) -> bytes:
    return zipped({CAPTIONS_MEMBER: json.dumps({"images": images, "annotations": annotations}).encode()})


def test_addresses_and_digests_are_those_of_val2017() -> None:
    defaults = CocoDataset(kind="coco")
    assert defaults.pictures.url.endswith("/zips/val2017.zip")
    assert defaults.pictures.bytes == 815_585_330
    assert defaults.annotations.url.endswith("/annotations/annotations_trainval2017.zip")
    assert defaults.annotations.bytes == 252_907_541
    assert defaults.captions == CAPTIONS_MEMBER
    assert defaults.instances == INSTANCES_MEMBER
    assert defaults.pictures.sha256[:8] == "4f7e2ccb"
    assert defaults.annotations.sha256[:8] == "113a836d"


def test_images_keep_their_bytes_ids_and_first_five_captions(tmp_path: Path) -> None:
    counts: list[int] = []
    tars = write_coco_shards(
        *_zips(tmp_path, *tiny_coco(7)),
        CAPTIONS_MEMBER,
        tmp_path / "tars",
        images=None,
        images_per_shard=3,
        progress=counts.append,
    )
    assert tars == list_tars(tmp_path / "tars")
    assert [tar.name for tar in tars] == ["00000.tar", "00001.tar", "00002.tar"]
    assert counts == [3, 3, 1]
    samples = [sample for tar in tars for sample in read_samples(tar)]
    ids = [139 + 146 * index for index in range(7)]
    for sample, image_id in zip(samples, ids, strict=True):
        assert isinstance(sample, Sample)
        assert sample.key == f"{image_id:012d}"
        assert sample.image == jpeg(image_id)
        assert sample.captions == tuple(f"words {turn} of {image_id}" for turn in range(5))
        assert sample.attributes == {"image_id": image_id}


def test_bytes_are_the_same_on_every_run_and_from_any_order(tmp_path: Path) -> None:
    images, annotations = tiny_coco(5)
    first = _convert(_zips(tmp_path / "one", images, annotations), tmp_path / "a")
    listed = sorted([139 + 146 * index for index in range(5)])
    other_order = zipped({f"{image_id:012d}.jpg": jpeg(image_id) for image_id in listed})
    second = _convert(_zips(tmp_path / "two", other_order, annotations), tmp_path / "b")
    assert [tar.read_bytes() for tar in first] == [tar.read_bytes() for tar in second]
    assert first[0].read_bytes()[:4096].count(b"flowkit") >= 2  # owner and group do not name this machine's


def test_first_images_only_and_no_tars_of_another_set(tmp_path: Path) -> None:
    zips = _zips(tmp_path, *tiny_coco(7))
    _convert(zips, tmp_path / "tars")
    with pytest.raises(ShardError, match=r"00001\.tar, 00002\.tar; move them away"):
        _convert(zips, tmp_path / "tars", images=2)
    (tar,) = _convert(zips, tmp_path / "few", images=2)
    assert [sample.key for sample in read_samples(tar)] == ["000000000139", "000000000285"]


@pytest.mark.parametrize("images", [0, 8, -1])
def test_counts_that_cannot_be_are_configuration_errors(tmp_path: Path, images: int) -> None:
    with pytest.raises(ConfigError, match=rf"images = {images}.*lists 7 images"):
        _convert(_zips(tmp_path, *tiny_coco(7)), tmp_path / "tars", images=images)


def test_image_without_captions_is_named(tmp_path: Path) -> None:
    listed = [{"id": 1, "file_name": "one.jpg"}, {"id": 2, "file_name": "two.jpg"}]
    annotations = _annotations(
        listed,
        [
            {"id": 5, "image_id": 1, "caption": "words"},
            {"id": 6, "image_id": 2, "caption": " \n"},
        ],
    )
    zips = _zips(tmp_path, zipped({"one.jpg": jpeg(1), "two.jpg": jpeg(2)}), annotations)
    with pytest.raises(ShardError, match=r"1 of 2 images have no caption: two\.jpg"):
        _convert(zips, tmp_path / "tars")
    assert len(_convert(zips, tmp_path / "tars", images=1)) == 1


def test_image_that_is_not_in_the_zip_is_named(tmp_path: Path) -> None:
    _, annotations = tiny_coco(3)
    zips = _zips(tmp_path, zipped({"val2017/000000000139.jpg": jpeg(139)}), annotations)
    with pytest.raises(ShardError, match=r"lacks 2 of 3 images: 000000000285\.jpg, 000000000431\.jpg"):
        _convert(zips, tmp_path / "tars")
    assert not (tmp_path / "tars" / "00000.tar").exists()


def test_one_name_in_two_folders_is_refused(tmp_path: Path) -> None:
    _, annotations = tiny_coco(1)
    twice = zipped({"a/000000000139.jpg": jpeg(1), "b/000000000139.jpg": jpeg(2)})
    with pytest.raises(ShardError, match=r"a/000000000139\.jpg and b/000000000139\.jpg"):
        _convert(_zips(tmp_path, twice, annotations), tmp_path / "tars")


@pytest.mark.parametrize("file_name", ["one.two.jpg", "notes.txt", ".jpg"])
def test_file_name_that_is_no_sample_is_refused(tmp_path: Path, file_name: str) -> None:
    annotations = _annotations(
        [{"id": 1, "file_name": file_name}], [{"id": 1, "image_id": 1, "caption": "words"}]
    )
    with pytest.raises(ShardError, match="is no image name"):
        _convert(_zips(tmp_path, zipped({file_name: jpeg(1)}), annotations), tmp_path / "tars")
    assert not list((tmp_path / "tars").glob("*.tar"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no COCO captions file"),
        (b"[]", "is no COCO captions file"),
        (b'{"images": [{"id": 1}], "annotations": []}', "is no COCO captions file"),
        (b'{"images": [{"id": 1}, {"id": 1}], "annotations": []}', "an image id occurs twice"),
        (
            b'{"images": [], "annotations": [{"id": 1, "image_id": 9, "caption": "x"}]}',
            "is no COCO captions file .KeyError: 9",
        ),
    ],
)
def test_foreign_annotations_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    zips = _zips(tmp_path, tiny_coco(1)[0], zipped({CAPTIONS_MEMBER: content}))
    with pytest.raises(ShardError, match=message):
        _convert(zips, tmp_path / "tars")


def test_damaged_and_wrong_zips_are_named(tmp_path: Path) -> None:
    images, annotations = tiny_coco(2)
    with pytest.raises(ShardError, match=r"annotations\.zip is missing, damaged or no zip"):
        _convert(_zips(tmp_path, images, annotations[:-30]), tmp_path / "tars")
    with pytest.raises(ShardError, match=rf"annotations\.zip has no member {CAPTIONS_MEMBER}"):
        _convert(_zips(tmp_path, images, images), tmp_path / "tars")
    middle = images.index(b"val2017/000000000139.jpg") + 200
    flipped = images[:middle] + bytes([images[middle] ^ 1]) + images[middle + 1 :]
    with pytest.raises(ShardError, match=r"images\.zip: member val2017/000000000139\.jpg is damaged"):
        _convert(_zips(tmp_path, flipped, annotations), tmp_path / "tars")
    assert not list((tmp_path / "tars").glob("*.tar"))


def test_from_the_web_into_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, with a connection that is cut in the middle of the images."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    images, annotations = tiny_coco(4)
    with WebServer() as web:
        web.fail("/zips/val2017.zip", Fault(cut_after=1500))
        zips = (
            download(remote_file(web.serve("/zips/val2017.zip", images), images), tmp_path / "val2017.zip"),
            download(
                remote_file(web.serve("/annotations.zip", annotations), annotations), tmp_path / "a.zip"
            ),
        )
    tars = _convert(zips, tmp_path / "tars")
    assert sum(isinstance(sample, Sample) for tar in tars for sample in read_samples(tar)) == 4


def _with_instances(folder: Path, file: bytes | dict[str, object], captioned: int = 3) -> list[Path]:
    """Convert a COCO of `captioned` images (139, 285, 431, ...) with this instances file."""
    images, annotations = tiny_coco(captioned)
    folder.mkdir(exist_ok=True)
    (folder / "captions.zip").write_bytes(annotations)
    with zipfile.ZipFile(folder / "captions.zip") as archive:
        captions = archive.read(CAPTIONS_MEMBER)
    content = file if isinstance(file, bytes) else json.dumps(file).encode()
    zips = _zips(folder, images, zipped({CAPTIONS_MEMBER: captions, INSTANCES_MEMBER: content}))
    return write_coco_shards(
        *zips,
        CAPTIONS_MEMBER,
        folder / "tars",
        images=None,
        images_per_shard=3,
        instances_member=INSTANCES_MEMBER,
    )


def test_categories_are_those_of_coco_2017_in_the_order_of_their_ids() -> None:
    assert len(COCO_CATEGORIES) == len(set(COCO_CATEGORIES)) == len(CATEGORY_IDS) == 80
    by_id = dict(zip(CATEGORY_IDS, COCO_CATEGORIES, strict=True))
    known = {
        1: "person",
        10: "traffic light",
        13: "stop sign",
        27: "backpack",
        44: "bottle",
        67: "dining table",
    }
    assert {number: by_id[number] for number in known} == known
    assert by_id[90] == "toothbrush"


def test_each_image_says_what_it_shows_once_and_by_category_id(tmp_path: Path) -> None:
    images, annotations = tiny_coco(7)
    tars = write_coco_shards(
        *_zips(tmp_path, images, annotations),
        CAPTIONS_MEMBER,
        tmp_path / "tars",
        images=5,
        images_per_shard=3,
        instances_member=INSTANCES_MEMBER,
    )
    samples = [sample for tar in tars for sample in read_samples(tar)]
    shown = [sample.attributes["categories"] for sample in samples]
    assert shown == [
        [],
        ["person", "traffic light", "parking meter"],
        ["person", "traffic light", "bench"],
        ["person", "bird"],
        ["person", "traffic light", "cat"],
    ]
    assert [sample.attributes["image_id"] for sample in samples] == [139 + 146 * index for index in range(5)]


def test_instances_change_nothing_but_the_attributes(tmp_path: Path) -> None:
    with_them = _with_instances(tmp_path / "a", instances({139: [1], 285: [], 431: [90, 2, 90]}))
    without = _convert(_zips(tmp_path / "b", *tiny_coco(3)), tmp_path / "tars")
    for one, other in zip(read_samples(with_them[0]), read_samples(without[0]), strict=True):
        assert (one.key, one.image, one.captions) == (other.key, other.image, other.captions)
        assert set(one.attributes) - set(other.attributes) == {"categories"}


def test_missing_instances_are_named_with_the_way_out(tmp_path: Path) -> None:
    images, annotations = tiny_coco(2)
    zips = _zips(tmp_path, images, annotations)
    with pytest.raises(
        ShardError, match=r"annotations\.zip has no member other\.json; .* set instances to null"
    ):
        write_coco_shards(
            *zips,
            CAPTIONS_MEMBER,
            tmp_path / "tars",
            images=None,
            images_per_shard=3,
            instances_member="other.json",
        )
    assert not list((tmp_path / "tars").glob("*.tar"))


def _rename(fields: dict[str, list[dict[str, object]]]) -> None:
    (person,) = (category for category in fields["categories"] if category["id"] == 3)
    person["name"] = "automobile"


def _drop(fields: dict[str, list[dict[str, object]]]) -> None:
    fields["categories"] = [category for category in fields["categories"] if category["id"] != 90]


def _add(fields: dict[str, list[dict[str, object]]]) -> None:
    fields["categories"].append({"id": 91, "name": "hair brush"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_rename, "category 3 of .* is 'automobile', of COCO 2017 it is 'car'; .* set instances to null"),
        (_drop, "category 80 of .* is None, of COCO 2017 it is 'toothbrush'"),
        (_add, "category 81 of .* is 'hair brush', of COCO 2017 it is None"),
    ],
)
def test_categories_of_another_data_set_are_refused(
    tmp_path: Path, change: Callable[[dict[str, list[dict[str, object]]]], None], says: str
) -> None:
    fields = instances({139: [], 285: [1], 431: [2]})
    change(fields)
    with pytest.raises(ShardError, match=says):
        _with_instances(tmp_path, fields)
    assert not list((tmp_path / "tars").glob("*.tar"))


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        ({"id": 5, "image_id": 7, "category_id": 1}, "annotation 5 is of image 7, which is not listed"),
        ({"id": 5, "image_id": 139, "category_id": 12}, "annotation 5 has category 12, which is not listed"),
        ({"id": 5, "image_id": 139}, "is no COCO instances file .KeyError: 'category_id'"),
        ({"id": 5, "image_id": None, "category_id": 1}, "is no COCO instances file .TypeError"),
    ],
)
def test_annotations_of_unknown_images_and_categories_are_refused(
    tmp_path: Path, annotation: dict[str, object], says: str
) -> None:
    fields = instances({139: [], 285: [1], 431: [2]})
    fields["annotations"].append(annotation)
    with pytest.raises(ShardError, match=says):
        _with_instances(tmp_path, fields)


def test_instances_of_other_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ShardError, match=r"lacks 2 of 3 images: 000000000285\.jpg, 000000000431\.jpg; .*null"
    ):
        _with_instances(tmp_path, instances({139: [1], 7: [1]}))


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"{}", b'{"images": [], "categories": 3, "annotations": []}']
)
def test_files_that_hold_no_instances_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ShardError, match=rf"{INSTANCES_MEMBER} is no COCO instances file"):
        _with_instances(tmp_path, content)


def test_images_beyond_those_with_captions_do_no_harm(tmp_path: Path) -> None:
    fields = instances({7: [1], 139: [2], 285: [], 431: []})
    (tar,) = _with_instances(tmp_path, fields)
    assert [sample.attributes["categories"] for sample in read_samples(tar)] == [["bicycle"], [], []]
    assert read_instances(tmp_path / "annotations.zip", INSTANCES_MEMBER)[7] == ("person",)
