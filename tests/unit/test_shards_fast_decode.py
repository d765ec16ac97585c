"""The fast decoder gives the same pixels as the exact one, or the same reason for none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shards_material import animated, encoded, huge_jpeg, jpeg, picture, png_of, rotated_jpeg

from flowkit.shards import fast_decode
from flowkit.shards.fast_decode import decode_pixels, is_plain_jpeg
from flowkit.shards.reader import Sample, UndecodableImage, decode_image


def sample(content: bytes) -> Sample:
    return Sample(0, "x", content, ("text",), None)


def exact(content: bytes) -> np.ndarray | str:
    """Pixels [H, W, 3], or the reason why there are none."""
    try:
        return np.asarray(decode_image(sample(content)))
    except UndecodableImage as error:
        return error.reason


def fast(content: bytes) -> np.ndarray | str:
    try:
        return decode_pixels(sample(content)).permute(1, 2, 0).numpy()
    except UndecodableImage as error:
        return error.reason


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8))


PLAIN = {
    "photograph": jpeg(picture(203, 151)),
    "noise": jpeg(noise(65, 33), quality=30),
    "one pixel": jpeg(picture(1, 1)),
    "full colour": jpeg(picture(64, 48), subsampling=0),
    "half colour": jpeg(noise(51, 47), subsampling=1),
    "progressive": jpeg(picture(64, 48), progressive=True),
    "restarts": jpeg(noise(64, 48), restart_marker_blocks=2),
    "comment": jpeg(comment=b"\xff\xc0 no frame", dpi=(72, 72)),
    "turned": rotated_jpeg(),
    "zeros behind": jpeg() + bytes(7),
    "two pictures": encoded(picture(), "MPO", save_all=True, append_images=[noise(40, 30)]),
}
OTHER = {
    "grey": jpeg(picture().convert("L")),
    "cmyk": jpeg(picture().convert("CMYK")),
    "png": encoded(picture(), "PNG"),
    "grey of 16 bits": png_of(np.arange(600, dtype=np.uint16).reshape(20, 30, 1) * 100, colour_type=0),
    "alpha": encoded(picture().convert("RGBA"), "PNG"),
    "animated webp": animated("WEBP"),
    "animated png": animated("PNG"),
    "bytes behind": jpeg() + b"more",
}
UNUSABLE = {
    "empty": b"",
    "text": b"no image at all",
    "gif": encoded(picture(), "GIF"),
    "half a jpeg": PLAIN["photograph"][:2000],
    "header alone": b"\xff\xd8\xff\xd9",
    "too many pixels": huge_jpeg(),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_jpeg_has_the_pixels_of_the_exact_decoder_without_asking_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = exact(PLAIN[kind])
    monkeypatch.delattr(fast_decode, "decode_image")
    np.testing.assert_array_equal(fast(PLAIN[kind]), expected)


@pytest.mark.parametrize("kind", OTHER)
def test_everything_else_goes_through_the_exact_decoder(kind: str) -> None:
    assert not is_plain_jpeg(OTHER[kind])
    np.testing.assert_array_equal(fast(OTHER[kind]), exact(OTHER[kind]))


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_the_exact_decoder_refuses_is_refused_for_the_same_reason(kind: str) -> None:
    reason = exact(UNUSABLE[kind])
    assert isinstance(reason, str)
    assert fast(UNUSABLE[kind]) == reason


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_cut_anywhere_the_two_agree(end: bytes) -> None:
    content = jpeg(picture(64, 48), quality=60)
    for keep in range(0, len(content), 13):
        np.testing.assert_array_equal(fast(content[:keep] + end), exact(content[:keep] + end))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["photograph", "half colour", "progressive", "restarts"]),
    noise=st.binary(min_size=1, max_size=8),
    where=st.floats(0, 0.999),
    replaces=st.integers(0, 12),
)
def test_damaged_anywhere_the_two_agree(kind: str, noise: bytes, where: float, replaces: int) -> None:
    whole = PLAIN[kind]
    at = int(where * len(whole))
    content = whole[:at] + noise + whole[at + replaces :]
    np.testing.assert_array_equal(fast(content), exact(content))
