"""Small data as the web serves it: webdataset tars in the form of BLIP3o, and a COCO of few images."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile

import numpy as np
from PIL import Image

from flowkit.shards.coco_categories import COCO_CATEGORIES
from flowkit.shards.remote import RemoteFile

CAPTIONS_MEMBER = "annotations/captions_val2017.json"
INSTANCES_MEMBER = "annotations/instances_val2017.json"
UNUSED_CATEGORY_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORY_IDS = [number for number in range(1, 91) if number not in UNUSED_CATEGORY_IDS]


def jpeg(seed: int, *, width: int = 40, height: int = 32) -> bytes:
    """Return a small JPEG of noise that depends on the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=90)
    return stream.getvalue()


def short_caption_tar(number: int, samples: int = 3) -> bytes:
    """Return a tar of `samples` images with one caption each: `<key>.jpg` and `<key>.txt`."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for index in range(samples):
            key = f"{number:05d}{index:04d}"
            for name, content in (
                (f"{key}.jpg", jpeg(number * 1000 + index)),
                (f"{key}.txt", f"picture {index} of tar {number}".encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def tiny_coco(images: int) -> tuple[bytes, bytes]:
    """Return an images zip and an annotations zip as COCO val2017 has them, shuffled, six captions per image.

    Image number p of the ids in order shows a crowd of persons, p % 3 traffic lights and a category of its own; the
    first one shows nothing.
    """
    ids = [139 + 146 * index for index in range(images)]
    listed = [
        {"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": 40, "height": 32} for image_id in ids
    ]
    annotations = [
        {"id": 10_000 - 10 * place + turn, "image_id": image_id, "caption": f"words {turn} of {image_id}\n"}
        for place, image_id in enumerate(ids)
        for turn in range(6)
    ]
    order = np.random.default_rng(0)
    captions = {
        "info": {"year": 2017},
        "licenses": [],
        "images": [listed[index] for index in order.permutation(len(listed))],
        "annotations": [annotations[index] for index in order.permutation(len(annotations))],
    }
    shown = {
        image_id: [1, *[10] * (place % 3), CATEGORY_IDS[11 + place]] if place else []
        for place, image_id in enumerate(ids)
    }
    members = {f"val2017/{image_id:012d}.jpg": jpeg(image_id) for image_id in reversed(ids)}
    return (
        zipped({"val2017/": b"", **members}),
        zipped(
            {
                CAPTIONS_MEMBER: json.dumps(captions).encode(),
                INSTANCES_MEMBER: json.dumps(instances(shown)).encode(),
            }
        ),
    )


def instances(shown: dict[int, list[int]]) -> dict[str, list[dict[str, object]]]:
    """Return the fields of an instances file in which each image id shows objects of some category ids.

    Categories and annotations are shuffled; persons (category 1) come as a crowd.
    """
    order = np.random.default_rng(1)
    categories = [
        {"id": number, "name": name, "supercategory": "thing"}
        for number, name in zip(CATEGORY_IDS, COCO_CATEGORIES, strict=True)
    ]
    annotations = [
        {"image_id": image_id, "category_id": number, "iscrowd": int(number == 1), "bbox": [0.5, 1, 2, 3.25]}
        for image_id, numbers in shown.items()
        for number in numbers
    ]
    return {
        "images": [{"id": image_id, "file_name": f"{image_id:012d}.jpg"} for image_id in shown],
        "categories": [categories[index] for index in order.permutation(len(categories))],
        "annotations": [
            {"id": 900 + int(number), **annotations[number]} for number in order.permutation(len(annotations))
        ],
    }


def zipped(members: dict[str, bytes]) -> bytes:
    """Return a zip file of the members in the given order."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def remote_file(url: str, content: bytes) -> RemoteFile:
    """Describe content that is served at an address."""
    return RemoteFile(url, len(content), hashlib.sha256(content).hexdigest())
