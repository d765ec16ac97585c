"""The reader sees every fault: of a tar (an error that names it) and of a sample (a reject, why)."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowkit.errors import ShardError
from flowkit.shards import reader
from flowkit.shards.catalogue import choose_tars
from flowkit.shards.reader import Reject, Sample, UndecodableImage, decode_image, read_samples


def image_bytes(*, image_format: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 200).save(buffer, format=image_format)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def good(key: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", image_bytes()), (f"{key}.txt", f"caption {key}".encode())]


def test_members_group_by_webdataset_key(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "a.tar",
        [
            ("folder.x/0001.JPG", image_bytes(image_format="JPEG")),
            ("folder.x/0001.seg.png", image_bytes()),  # extension "seg.png": not an image of the sample
            ("folder.x/0001.txt", b" one \n"),
            (".hidden", b""),
            ("no-extension", b""),
            *good("b"),
        ],
    )
    first, second = read_samples(tar)
    assert isinstance(first, Sample)
    assert (first.index, first.key, first.captions, first.attributes) == (0, "folder.x/0001", ("one",), None)
    assert decode_image(first).size == (4, 3)
    assert (second.index, second.key) == (1, "b")


def test_members_of_a_sample_need_not_be_neighbours(tmp_path: Path) -> None:
    a, b = good("a"), good("b")
    samples = list(read_samples(write_tar(tmp_path / "a.tar", [a[0], b[0], b[1], a[1]])))
    assert [(sample.index, sample.key) for sample in samples] == [(0, "a"), (1, "b")]
    assert all(isinstance(sample, Sample) for sample in samples)


def test_json_gives_captions_and_attributes(tmp_path: Path) -> None:
    record = {"captions": ["two", "one", " "], "attributes": {"size": "large"}, "more": 1}
    tar = write_tar(tmp_path / "a.tar", [*good("a"), ("a.json", json.dumps(record).encode())])
    (sample,) = read_samples(tar)
    assert isinstance(sample, Sample)
    assert sample.captions == ("caption a", "two", "one")
    assert sample.attributes == {"size": "large"}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x.txt", b"text")], "image missing"),
        ([("x.png", image_bytes())], "caption missing"),
        ([("x.png", image_bytes()), ("x.txt", b" \n")], "caption missing"),
        ([("x.png", b""), ("x.txt", b"text")], "image empty"),
        ([("x.png", image_bytes()), ("x.txt", b"\xff")], "not UTF-8"),
        ([*good("x"), ("x.json", b"{")], "json unreadable"),
        ([*good("x"), ("x.json", b"[]")], "json is a list"),
        ([*good("x"), ("x.json", b'{"captions": "one"}')], "captions is not a list"),
        ([*good("x"), ("x.json", b'{"attributes": 1}')], "attributes is not an object"),
        ([*good("x"), ("x.png", image_bytes())], ".png occurs more than once"),
        ([*good("x"), ("x.jpg", image_bytes(image_format="JPEG"))], "more than one image"),
    ],
)
def test_damaged_sample_is_a_reject_and_the_rest_is_read(
    tmp_path: Path, members: list[tuple[str, bytes]], reason: str
) -> None:
    before, reject, after = read_samples(write_tar(tmp_path / "a.tar", [*good("a"), *members, *good("z")]))
    assert isinstance(reject, Reject)
    assert (reject.index, reject.key) == (1, "x")
    assert reason in reject.reason
    assert isinstance(before, Sample)
    assert isinstance(after, Sample)
    assert after.index == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no image at all", "cannot identify"),
        (image_bytes(size=(64, 64))[:60], "image undecodable"),
        (image_bytes(image_format="GIF", mode="P"), "cannot identify"),
    ],
)
def test_undecodable_image_says_why(content: bytes, reason: str) -> None:
    sample = Sample(0, "a", content, ("one",), None)
    with pytest.raises(UndecodableImage) as caught:
        decode_image(sample)
    assert reason in caught.value.reason
    assert caught.value.reason.startswith("image undecodable: ")
    assert "0x" not in caught.value.reason  # the reason goes into a table whose bytes must not vary


def test_huge_image_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "IMAGE_PIXELS_MAX", 11)
    with pytest.raises(UndecodableImage, match="4 x 3 pixels, more than 11"):
        decode_image(Sample(0, "a", image_bytes(), ("one",), None))


@pytest.mark.filterwarnings("error")
def test_decompression_bomb_is_undecodable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(UndecodableImage, match="decompression bomb"):
        decode_image(Sample(0, "a", image_bytes(), ("one",), None))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    assert decode_image(Sample(0, "a", image_bytes(mode=mode), ("one",), None)).mode == "RGB"


@settings(max_examples=60, deadline=None)
@given(noise=st.binary(max_size=300), start=st.integers(0, 200))
def test_random_damage_never_raises_anything_else(noise: bytes, start: int) -> None:
    content = bytearray(image_bytes(image_format="JPEG", size=(16, 16)))
    content[start : start + len(noise)] = noise
    try:
        image = decode_image(Sample(0, "a", bytes(content), ("one",), None))
    except UndecodableImage:
        return
    assert image.mode == "RGB"


@pytest.mark.parametrize("keep", [1, 100, 511, 512, 700, 1024, 1536, 2048, 4096])
def test_every_truncation_is_an_error(tmp_path: Path, keep: int) -> None:
    """Cut at any place, on block borders and inside, before the end mark: never a silently shorter set."""
    whole = write_tar(tmp_path / "whole.tar", [*good("a"), *good("b"), *good("c")]).read_bytes()
    assert keep < len(whole)
    short = tmp_path / "short.tar"
    short.write_bytes(whole[:keep])
    with pytest.raises(ShardError, match=r"short\.tar"):
        read_samples(short)


def test_truncation_at_each_block_is_an_error(tmp_path: Path) -> None:
    members = [*good("a"), *good("b")]
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    content_end = 2 * 512 * len(members)  # header and one block of content each
    short = tmp_path / "short.tar"
    for keep in range(0, content_end + 1, 512):
        short.write_bytes(whole[:keep])
        with pytest.raises(ShardError, match=r"short\.tar"):
            read_samples(short)


def test_damaged_header_in_the_middle_is_an_error(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [*good("a"), *good("b")])
    content = bytearray(tar.read_bytes())
    content[2048 + 148] ^= 1  # the checksum of the third member: tarfile alone would end here in silence
    tar.write_bytes(content)
    with pytest.raises(ShardError, match=r"a\.tar is damaged: no valid header at byte 2048"):
        read_samples(tar)


def test_joined_tars_are_an_error(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "a.tar", good("a")).read_bytes()
    joined = tmp_path / "joined.tar"
    joined.write_bytes(first + write_tar(tmp_path / "b.tar", good("b")).read_bytes())
    with pytest.raises(ShardError, match="behind its end mark"):
        read_samples(joined)


@pytest.mark.parametrize("content", [b"", b"x" * 3000, bytes(np.arange(2000) % 251)])
def test_not_a_tar_is_an_error(tmp_path: Path, content: bytes) -> None:
    tar = tmp_path / "a.tar"
    tar.write_bytes(content)
    with pytest.raises(ShardError, match=r"a\.tar is damaged or no tar"):
        read_samples(tar)


def test_missing_tar_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"a\.tar does not exist"):
        read_samples(tmp_path / "a.tar")


def test_tar_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"a\.tar has 1 samples but no image"):
        read_samples(write_tar(tmp_path / "a.tar", [("a.txt", b"one")]))


def test_file_that_shrinks_while_read_is_an_error(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [*good("a"), *good("b")])
    samples = read_samples(tar)
    with tar.open("r+b") as stream:
        stream.truncate(600)
    with pytest.raises(ShardError, match="became shorter"):
        list(samples)


def test_ranges_are_positions_and_must_exist() -> None:
    tars = [f"{number:05d}.tar" for number in (0, 1, 3, 4, 5)]
    assert choose_tars(tars, 1, 2, where="set") == ["00001.tar", "00003.tar"]
    assert choose_tars(tars, 3, None, where="set") == ["00004.tar", "00005.tar"]
    for first, count in [(0, 6), (5, None), (4, 2)]:
        with pytest.raises(ShardError, match="set has 5 tars, asked for are those from first_shard"):
            choose_tars(tars, first, count, where="set")
