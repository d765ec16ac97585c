"""Small data as the web serves it: webdataset tars in the form of BLIP3o, and a COCO of few images."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile

import numpy as np
from PIL import Image

from flowkit.shards.remote import RemoteFile

CAPTIONS_MEMBER = "annotations/captions_val2017.json"


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
    """Return an images zip and an annotations zip as COCO val2017 has them, shuffled, six captions per image."""
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
    members = {f"val2017/{image_id:012d}.jpg": jpeg(image_id) for image_id in reversed(ids)}
    return (
        zipped({"val2017/": b"", **members}),
        zipped(
            {
                CAPTIONS_MEMBER: json.dumps(captions).encode(),
                "annotations/instances_val2017.json": b"{}",
            }
        ),
    )


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
