"""A second pass gives what extraction rounded, to the bit; changed images change the tokens a little."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from features_material import write_tar
from PIL import Image
from shards_material import encoded, jpeg

from flowkit.encoders.contract import FrozenEncoder
from flowkit.encoders.registry import load_encoder
from flowkit.encoders.weight_registry import find_weights
from flowkit.errors import ShardError
from flowkit.features.decoding import Change
from flowkit.features.extraction import extract_tar
from flowkit.features.perturbation import crop_95, jpeg_75
from flowkit.features.second_pass import encode_again
from flowkit.features.store import TokenStore
from flowkit.shards.demo_shapes import draw
from flowkit.shards.reader import UndecodableImage

MEMBERS, BATCH, BAD = 22, 8, (3, 9, 17)


def members(first: int = 0, *, bad: tuple[int, ...] = BAD) -> dict[str, bytes]:
    """JPEGs of drawings with a caption each; the bad ones are torn."""
    files: dict[str, bytes] = {}
    for index in range(first, MEMBERS):
        content = jpeg(draw(4, index).image.resize((48, 40), Image.Resampling.BICUBIC))
        files[f"{index:03d}.jpg"] = content[: len(content) // 3] if index in bad else content
        files[f"{index:03d}.txt"] = b"words"
    return files


@pytest.fixture(scope="module")
def tower() -> FrozenEncoder:
    return load_encoder("demo-vit", find_weights("demo-vit"), precision="fp32", device="cpu")


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """Three batches with a reject in each."""
    return write_tar(tmp_path / "00000.tar", members())


def extracted(tar: Path, tower: FrozenEncoder, **options: object) -> TokenStore:
    folder = tar.with_name("store")
    extract_tar(tar, tower, folder, batch_size=BATCH, attributes={}, **options)
    return TokenStore(folder)


def again(
    tar: Path, tower: FrozenEncoder, rows: pd.DataFrame, **options: object
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and pooled of a second pass, joined."""
    parts = list(encode_again(tar, tower, rows, batch_size=BATCH, **options))
    tokens, pooled = (torch.cat(side).numpy() for side in zip(*parts, strict=True))
    return tokens, pooled


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    flat = one.reshape(len(one), -1), other.reshape(len(other), -1)
    return np.sum(flat[0] * flat[1], axis=1) / np.prod(
        [np.linalg.norm(side, axis=1) for side in flat], axis=0
    )


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("limit", [None, 13])
def test_what_was_stored_is_this_rounded(
    tar: Path, tower: FrozenEncoder, decode: str, limit: int | None
) -> None:
    store = extracted(tar, tower, decode=decode, limit=limit)
    assert len(store.rejects) == sum(limit is None or index < limit for index in BAD)
    tokens, pooled = again(tar, tower, store.samples, decode=decode, limit=limit, decode_threads=3)
    rows = range(len(store))
    assert (tokens.dtype, pooled.dtype) == (np.float32, np.float32)
    assert np.array_equal(tokens.astype(np.float16), store.read_tokens(rows))
    assert np.array_equal(pooled.astype(np.float16), store.read_pooled(rows))
    assert not np.array_equal(tokens, store.read_tokens(rows).astype(np.float32)), "these are not rounded"


@pytest.mark.parametrize("chosen", [[5], [6, 7, 8], [0, 18], list(range(2, 19, 2))])
def test_images_are_encoded_in_the_batches_of_extraction(
    tar: Path, tower: FrozenEncoder, chosen: list[int]
) -> None:
    store = extracted(tar, tower)
    tokens, _ = again(tar, tower, store.samples.iloc[chosen])
    assert np.array_equal(tokens.astype(np.float16), store.read_tokens(chosen))


def test_batches_that_nobody_asked_for_are_not_encoded(tar: Path, tower: FrozenEncoder) -> None:
    asked: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(tower, name)

        def encode(self, pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            asked.append(len(pixels_NCHW))
            return tower.encode(pixels_NCHW)

    store = extracted(tar, tower)
    again(tar, Counting(), store.samples.iloc[[0, len(store) - 1]])
    assert asked == [7, 5], "the first batch and the last one, whole and without their rejects"


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("change", [jpeg_75, crop_95])
def test_changed_images_change_tokens_a_little(
    tar: Path, tower: FrozenEncoder, change: Change, decode: str
) -> None:
    rows = extracted(tar, tower, decode=decode).samples
    plain, _ = again(tar, tower, rows, decode=decode)
    changed, pooled = again(tar, tower, rows, decode=decode, change=change)
    assert changed.shape == plain.shape
    assert pooled.shape == (len(rows), tower.pooled_width)
    similar = cosines(changed, plain)
    assert 0.9 < similar.mean() < 1
    assert similar.max() < 1, "every image was changed"
    assert np.array_equal(again(tar, tower, rows, decode=decode, change=change, decode_threads=3)[0], changed)


def test_an_image_that_is_gone_torn_or_another_one_is_named(tar: Path, tower: FrozenEncoder) -> None:
    rows = extracted(tar, tower).samples
    write_tar(tar, members(bad=(*BAD, 10)))
    with pytest.raises(ShardError, match=r"00000\.tar: image 010 cannot be encoded again .image undecodable"):
        again(tar, tower, rows)
    other = members()
    other["012.jpg"] = other["013.jpg"]
    write_tar(tar, other)
    with pytest.raises(ShardError, match=r"image 012 cannot .*member 12 is another image now, 012"):
        again(tar, tower, rows)
    write_tar(tar, members(first=1))
    with pytest.raises(ShardError, match=r"image 021 cannot .*it was member 21, the tar has 21 now"):
        again(tar, tower, rows)
    with pytest.raises(ShardError, match=r"image 000 cannot .*member 0 is another image now, 001"):
        again(tar, tower, rows.iloc[:4])


def test_rows_that_are_out_of_order_are_a_mistake_of_the_caller(tar: Path, tower: FrozenEncoder) -> None:
    rows = extracted(tar, tower).samples
    for wrong in (rows.iloc[::-1], rows.iloc[[2, 2]], rows.iloc[:0]):
        with pytest.raises(ValueError, match="ascending order"):
            again(tar, tower, wrong)


def test_a_crop_depends_on_the_key_alone_and_lies_in_the_image() -> None:
    ramp = np.stack(np.meshgrid(np.arange(200), np.arange(100)), axis=-1).astype(np.uint8)
    image = Image.fromarray(np.concatenate([ramp, ramp[..., :1]], axis=-1))
    corners = set()
    for key in map(str, range(300)):
        window = np.asarray(crop_95(image, key))
        assert window.shape == (95, 190, 3)
        left, top, _ = window[0, 0]
        assert np.array_equal(window, np.asarray(image)[top : top + 95, left : left + 190])
        assert np.array_equal(window, np.asarray(crop_95(image.copy(), key)))
        corners.add((int(left), int(top)))
    assert {left for left, _ in corners} == set(range(11))
    assert {top for _, top in corners} == set(range(6))


@pytest.mark.parametrize(("size", "left"), [((1, 1), (1, 1)), ((2, 3), (1, 2)), ((19, 1), (18, 1))])
def test_a_crop_takes_something_of_each_side_that_can_spare_it(
    size: tuple[int, int], left: tuple[int, int]
) -> None:
    assert crop_95(Image.new("RGB", size), "key").size == left


def test_jpeg_75_is_what_pil_writes_and_reads() -> None:
    image = draw(4, 1).image
    assert np.array_equal(np.asarray(jpeg_75(image, "key")), _reread(image, 75))
    assert not np.array_equal(_reread(image, 75), np.asarray(image))


def test_what_no_jpeg_can_hold_is_a_reason() -> None:
    with pytest.raises(UndecodableImage, match=r"image of 70000 x 1 pixels cannot be stored as JPEG"):
        jpeg_75(Image.new("RGB", (70_000, 1)), "key")


def _reread(image: Image.Image, quality: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded(image, "JPEG", quality=quality, subsampling="4:2:0"))))
