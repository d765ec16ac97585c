"""Tars and images that nobody vouches for: refused or counted by name, quickly, and without spending memory."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shards_material import (
    animated,
    encoded,
    good,
    jpeg,
    member,
    patched_header,
    picture,
    png_of,
    rotated_jpeg,
    write_members,
)

from flowkit.errors import ShardError
from flowkit.shards.reader import Reject, Sample, UndecodableImage, decode_image, read_samples
from flowkit.shards.tar_members import HEADER_BYTES_MAX

SIZE_FIELD, TYPE_FIELD = slice(124, 136), slice(156, 157)
CAPTION = member("x.txt", b"text")
MEGABYTES_ALLOWED = 60


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(decode_image(Sample(0, "x", content, ("text",), None)))


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (member("/etc/x.jpg", jpeg()), "member name leads out of the folder: /etc/x.jpg"),
        (member("../x.jpg", jpeg()), "member name leads out of the folder: ../x.jpg"),
        (member("a/../../x.jpg", jpeg()), "member name leads out of the folder: a/../../x.jpg"),
        (member("x.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "member .jpg is a symbolic link"),
        (member("x.jpg", type=tarfile.LNKTYPE, linkname="a.jpg"), "member .jpg is a hard link"),
        (member("x.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "member .jpg is a device"),
        (member("x.jpg", type=tarfile.BLKTYPE, devmajor=8), "member .jpg is a device"),
        (member("x.jpg", type=tarfile.FIFOTYPE), "member .jpg is a pipe"),
        (member("x.jpg", type=tarfile.GNUTYPE_SPARSE), "member .jpg is a sparse file"),
        (member("x.jpg", b""), "image empty"),
        (member("x.txt.jpg", jpeg()), "image missing"),
    ],
)
def test_hostile_member_is_a_reject_and_its_neighbours_are_read(
    tmp_path: Path, info: tuple[tarfile.TarInfo, bytes], reason: str
) -> None:
    tar = write_members(tmp_path / "a.tar", [*good("a"), info, CAPTION, *good("z")])
    found = list(read_samples(tar))
    assert [one.key for one in found if isinstance(one, Sample)] == ["a", "z"]
    rejects = [one for one in found if isinstance(one, Reject)]
    assert reason in rejects[0].reason
    assert all(one.reason in (rejects[0].reason, "image missing") for one in rejects)


def test_folders_are_no_samples_and_relative_names_are_fine(tmp_path: Path) -> None:
    folder = member("./v1.0", type=tarfile.DIRTYPE)
    tar = write_members(tmp_path / "a.tar", [folder, *good("./v1.0/a"), *good("./b..c/d")])
    assert [one.key for one in read_samples(tar)] == ["./v1.0/a", "./b..c/d"]


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_read_whole(tmp_path: Path, tar_format: int) -> None:
    key = "ü" * 150 + "/0001"
    (sample,) = read_samples(write_members(tmp_path / "a.tar", good(key), tar_format=tar_format))
    assert isinstance(sample, Sample)
    assert sample.key == key


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777"])
def test_impossible_size_is_an_error_that_names_the_tar(tmp_path: Path, size: bytes) -> None:
    """A negative size sends tarfile back to where it came from, for ever."""
    tar = write_members(tmp_path / "a.tar", [*good("a"), *good("b")], tar_format=tarfile.GNU_FORMAT)
    patched_header(tar, "b.jpg", SIZE_FIELD, size)
    with pytest.raises(ShardError, match=r"a\.tar is damaged or no tar"):
        read_samples(tar)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_header_that_asks_for_much_memory_is_an_error(tmp_path: Path, kind: bytes) -> None:
    tar = write_members(tmp_path / "a.tar", [*good("a"), member("b.jpg", bytes(HEADER_BYTES_MAX + 1))])
    patched_header(tar, "b.jpg", TYPE_FIELD, kind)
    with pytest.raises(ShardError, match=r"a\.tar is damaged or no tar .*claims 131"):
        read_samples(tar)


def test_headers_about_headers_without_end_are_an_error(tmp_path: Path) -> None:
    """tarfile looks for what each of them describes by calling itself."""
    chain = [member("b.jpg", b"x", type=tarfile.XHDTYPE)] * 3000
    tar = write_members(tmp_path / "a.tar", [*good("a"), *chain], tar_format=tarfile.GNU_FORMAT)
    with pytest.raises(ShardError, match=r"a\.tar is damaged or no tar"):
        read_samples(tar)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("x.jpg", (1 << 28) + 1, "member .jpg too large: 268435457 bytes, at most 268435456"),
        ("x.txt", (1 << 20) + 1, "member .txt too large: 1048577 bytes, at most 1048576"),
        ("x.json", (1 << 20) + 1, "member .json too large"),
    ],
)
def test_members_too_large_for_what_they_are_are_not_read(
    tmp_path: Path, name: str, size: int, reason: str
) -> None:
    """The content is a hole in the file, so the test costs no disk."""
    others = [one for one in good("x") if one[0].name != name]
    tar = write_members(tmp_path / "a.tar", others)
    info, _ = member(name)
    info.size = size
    with tar.open("r+b") as stream:
        stream.seek(sum(512 + -(-len(content) // 512) * 512 for _, content in others))
        stream.write(info.tobuf())
        stream.truncate(stream.tell() + -(-size // 512) * 512 + 1024)
    (reject,) = read_samples(tar)
    assert isinstance(reject, Reject)
    assert reason in reject.reason


def test_caption_of_a_million_characters_is_kept(tmp_path: Path) -> None:
    text = "word " * 200_000
    (sample,) = read_samples(
        write_members(tmp_path / "a.tar", [member("x.jpg", jpeg()), member("x.txt", text.encode())])
    )
    assert isinstance(sample, Sample)
    assert sample.captions == (text.strip(),)


@pytest.mark.parametrize("record", [b"[" * 200_000, b'{"attributes":' * 70_000, b"9" * 10_000])
def test_json_that_exhausts_the_parser_is_a_reject(tmp_path: Path, record: bytes) -> None:
    tar = write_members(tmp_path / "a.tar", [*good("a"), *good("x"), member("x.json", record)])
    _, reject = read_samples(tar)
    assert isinstance(reject, Reject)
    assert reject.reason.startswith("json unreadable")


def test_huge_images_are_refused_before_memory_is_spent() -> None:
    """Their pixels would take gigabytes; a process of its own, because memory that was once used stays used."""
    program = """
import resource
from shards_material import huge_jpeg, huge_png, huge_webp
from flowkit.shards.fast_decode import decode_pixels
from flowkit.shards.reader import Sample, UndecodableImage, decode_image
samples = [Sample(0, "x", content, ("text",), None) for content in (huge_jpeg(), huge_png(), huge_webp())]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for sample in samples:
    for decode in (decode_image, decode_pixels):
        try:
            decode(sample)
        except UndecodableImage as error:
            print(error.reason)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    *reasons, megabytes = done.stdout.splitlines()
    assert len(reasons) == 6
    assert all(reason.startswith("image undecodable: Image size (") for reason in reasons)
    assert int(megabytes) < MEGABYTES_ALLOWED


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.95])
def test_truncated_jpeg_is_undecodable(keep: float) -> None:
    content = jpeg(picture(200, 150))
    with pytest.raises(UndecodableImage, match=r"(?i)truncated"):
        decoded(content[: int(keep * len(content))])


def test_cmyk_and_grey_become_the_colours_they_show() -> None:
    shown = np.asarray(picture(), np.int16)
    cmyk = decoded(jpeg(picture().convert("CMYK"))).astype(np.int16)
    assert cmyk.shape == shown.shape
    assert np.abs(cmyk - shown).max() <= 16
    grey = decoded(jpeg(picture().convert("L"))).astype(np.int16)
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (grey[..., 0] == grey[..., 2]).all()
    assert np.abs(grey[..., 0] - np.asarray(picture().convert("L"), np.int16)).max() <= 8


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_shown_by_their_upper_eight(colour_type: int, channels: int) -> None:
    """PIL alone clips 16-bit grey at 255, which makes nearly every pixel white."""
    values = np.random.default_rng(0).integers(0, 1 << 16, (12, 20, channels), dtype=np.uint16)
    found = decoded(png_of(values, colour_type=colour_type))
    colours = values[..., :3] if channels >= 3 else values[..., :1]
    np.testing.assert_array_equal(found, np.broadcast_to(colours >> 8, (12, 20, 3)))


@pytest.mark.parametrize("image_format", ["WEBP", "PNG"])
def test_first_frame_stands_for_an_animation(image_format: str) -> None:
    found = decoded(animated(image_format))
    assert found.shape == (10, 20, 3)
    assert (found == (255, 0, 0)).all()


def test_alpha_is_dropped_and_palettes_are_looked_up() -> None:
    red = Image.new("RGBA", (4, 3), (255, 0, 0, 10))
    assert (decoded(encoded(red, "PNG")) == (255, 0, 0)).all()
    palette = Image.new("RGB", (4, 3), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert (decoded(encoded(palette, "PNG", transparency=0)) == (10, 200, 30)).all()


def test_orientation_tags_are_ignored_as_open_clip_does() -> None:
    np.testing.assert_array_equal(decoded(rotated_jpeg()), decoded(jpeg()))
