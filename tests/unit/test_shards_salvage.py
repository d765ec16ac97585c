"""What can be seen of refused samples: torn files up to where they break off, and nothing made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFile
from shards_material import encoded, huge_png, jpeg, member, picture, write_members

from flowkit.shards.reader import Sample, UndecodableImage, decode_image, list_samples, read_samples
from flowkit.shards.salvage import salvage_picture

WHOLE = picture(320, 240)
TORN = jpeg(WHOLE)


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    members = [
        member("torn.jpg", TORN[: len(TORN) // 2]), member("torn.txt", b"torn"),
        member("wordless.png", encoded(WHOLE, "PNG")),
        member("huge.png", huge_png()), member("huge.txt", b"a bomb"),
        member("words.txt", b"no picture"),
        member("empty.jpg"), member("empty.txt", b"x"),
        member("good.jpg", TORN), member("good.txt", b"good"),
    ]  # fmt: skip
    return write_members(tmp_path / "0.tar", members)


def salvaged(tar: Path, key: str) -> np.ndarray:
    listing = list_samples(tar)
    index = [name for name, _ in listing.groups].index(key)
    with tar.open("rb") as stream:
        return np.asarray(salvage_picture(listing, index, key, stream)).astype(int)


def is_refused(tar: Path) -> bool:
    """Whether extraction refuses the first sample of a tar."""
    first = next(read_samples(tar))
    assert isinstance(first, Sample)
    with pytest.raises(UndecodableImage, match="truncated"):
        decode_image(first)
    return True


def test_a_torn_picture_is_drawn_as_far_as_it_goes(tar: Path) -> None:
    assert is_refused(tar), "an encoder never sees it"
    found, whole = salvaged(tar, "torn"), np.asarray(WHOLE).astype(int)
    assert found.shape == whole.shape
    assert np.abs(found[:60] - whole[:60]).max() < 30
    assert (found[-20:] == found[-1, -1]).all(), "the rest is one grey"


def test_what_was_refused_for_its_words_is_whole(tar: Path) -> None:
    np.testing.assert_array_equal(salvaged(tar, "wordless"), np.asarray(WHOLE))
    assert np.abs(salvaged(tar, "good") - np.asarray(WHOLE)).max() < 30


@pytest.mark.parametrize(
    ("key", "reason"),
    [("huge", "image undecodable: "), ("words", "there is no picture"), ("empty", "the picture has 0 bytes")],
)
def test_what_cannot_be_drawn_has_a_reason(tar: Path, key: str, reason: str) -> None:
    with pytest.raises(UndecodableImage, match=reason):
        salvaged(tar, key)


def test_pillow_is_as_strict_afterwards_as_before(tar: Path) -> None:
    salvaged(tar, "torn")
    with pytest.raises(UndecodableImage):
        salvaged(tar, "huge")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert is_refused(tar)


def test_a_tar_that_changed_shows_no_other_picture(tar: Path) -> None:
    listing = list_samples(tar)
    with tar.open("rb") as stream:
        for index in (0, 99):
            with pytest.raises(UndecodableImage, match="no longer holds"):
                salvage_picture(listing, index, "good", stream)
