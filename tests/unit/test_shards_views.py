"""Views of an object: members <key>.0.jpg, <key>.1.jpg become samples of their own; odd objects are refused whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from shards_material import encoded, jpeg, member, picture, write_members

from flowkit.errors import ShardError
from flowkit.shards.reader import Reject, Sample, decode_image, list_samples, read_samples
from flowkit.shards.salvage import salvage_picture
from flowkit.view_keys import key_of_view, object_and_view

Members = list[tuple[object, bytes]]


def views(key: str, numbers: tuple[int, ...], extension: str = "jpg") -> Members:
    """An object with the views `numbers`, each of another width, a caption and attributes."""
    found = [member(f"{key}.{number}.{extension}", jpeg(picture(20 + number, 10))) for number in numbers]
    return [
        *found,
        member(f"{key}.txt", f"caption of {key}".encode()),
        member(f"{key}.json", b'{"attributes": {"azimuth": 30}}'),
    ]


def tar_of(folder: Path, *objects: Members) -> Path:
    return write_members(folder / "00000.tar", [one for members in objects for one in members])


def test_each_view_is_a_sample_with_the_captions_of_the_object(tmp_path: Path) -> None:
    tar = tar_of(tmp_path, views("a", (0, 1, 2)), views("dir/b", (2, 0, 1), "jpeg"))
    listing, samples = list_samples(tar, 3), list(read_samples(tar, 3))
    assert (len(listing), listing.views) == (6, 3)
    assert all(isinstance(one, Sample) for one in samples)
    assert [(one.index, one.key) for one in samples] == [
        *[(0, "a.0"), (1, "a.1"), (2, "a.2")],
        *[(3, "dir/b.0"), (4, "dir/b.1"), (5, "dir/b.2")],
    ]
    for one in samples:
        assert isinstance(one, Sample)
        name, view = object_and_view(one.key)
        assert key_of_view(name, view) == one.key
        assert (
            decode_image(one).width == 20 + view
        )  # the member of that number, whatever the order in the tar
        assert one.captions == (f"caption of {name}",)
        assert one.attributes == {"azimuth": 30}


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((0, 2), "views missing: 1 of 0 to 2"),
        ((1,), "views missing: 0, 2 of 0 to 2"),
        ((), "views missing: 0, 1, 2 of 0 to 2"),
        ((0, 1, 2, 3), "views too many: 4, expected 3"),
    ],
)
def test_object_with_other_views_is_refused_whole_and_keeps_its_places(
    tmp_path: Path, numbers: tuple[int, ...], reason: str
) -> None:
    tar = tar_of(tmp_path, views("a", (0, 1, 2)), views("odd", numbers), views("z", (0, 1, 2)))
    samples = list(read_samples(tar, 3))
    assert [one.index for one in samples] == list(range(9))
    assert all(isinstance(one, Sample) for one in [*samples[:3], *samples[6:]])
    for view, refused in enumerate(samples[3:6]):
        assert refused == Reject(3 + view, f"odd.{view}", reason)


def test_one_damaged_view_is_refused_alone(tmp_path: Path) -> None:
    broken = views("a", (0, 1))
    broken[1] = member("a.1.jpg", b"")
    samples = list(read_samples(tar_of(tmp_path, broken, views("b", (0, 1))), 2))
    assert isinstance(samples[0], Sample)
    assert samples[1] == Reject(1, "a.1", "image empty")


def test_view_in_two_formats_is_refused(tmp_path: Path) -> None:
    twice = [*views("a", (0, 1)), member("a.1.png", encoded(picture(), "PNG"))]
    samples = list(read_samples(tar_of(tmp_path, twice), 2))
    assert isinstance(samples[0], Sample)
    assert isinstance(samples[1], Reject)
    assert "more than one image" in samples[1].reason


def test_missing_view_leaves_the_others_to_be_looked_at(tmp_path: Path) -> None:
    tar = tar_of(tmp_path, views("a", (0, 1)), views("odd", (1,)))
    listing = list_samples(tar, 2)
    with tar.open("rb") as stream:
        assert salvage_picture(listing, 3, "odd.1", stream).width == 21


def test_plain_picture_beside_the_views_is_no_view(tmp_path: Path) -> None:
    samples = list(read_samples(tar_of(tmp_path, [*views("a", (0, 1)), member("a.jpg", jpeg())]), 2))
    assert [type(one) for one in samples] == [Sample, Sample]


def test_wrong_number_of_views_is_an_error_that_names_the_right_one(tmp_path: Path) -> None:
    tar = tar_of(tmp_path, views("a", (0, 1, 2, 3)), views("b", (0, 1, 2, 3)), views("c", (0, 1, 2)))
    with pytest.raises(
        ShardError,
        match=r"2 of 3 objects have 4 views, numbered 0 to 3, not 3; set views of the data set to 4",
    ):
        list_samples(tar, 3)


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 2, 4)])
def test_views_that_are_counted_otherwise_are_named(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    tar = tar_of(tmp_path, views("a", numbers), views("b", numbers))
    words = "1 to 3" if numbers[0] else "0, 2, 4"
    with pytest.raises(ShardError, match=rf"have 3 views, numbered {words}; views are counted from 0"):
        list_samples(tar, 3)


def test_one_odd_object_does_not_stop_a_tar(tmp_path: Path) -> None:
    """The last tar of a data set may hold a single one."""
    assert [type(one) for one in read_samples(tar_of(tmp_path, views("a", (0, 1))), 3)] == [Reject] * 3


def test_plain_images_are_no_views_and_views_no_plain_images(tmp_path: Path) -> None:
    plain = write_members(tmp_path / "plain.tar", [member("a.jpg", jpeg()), member("a.txt", b"text")])
    with pytest.raises(
        ShardError, match=r"views is 4, but none of its 1 samples.*set views of the data set to 1"
    ):
        list_samples(plain, 4)
    with pytest.raises(ShardError, match=r"its images are views.*say in `views`"):
        list_samples(tar_of(tmp_path, views("a", (0, 1))))
    with pytest.raises(ShardError, match="none of its 0 samples"):
        list_samples(write_members(tmp_path / "empty.tar", []), 4)


def test_numbers_may_be_padded(tmp_path: Path) -> None:
    padded = [
        *(member(f"a.{number:03d}.jpg", jpeg(picture(20 + number, 10))) for number in range(12)),
        member("a.txt", b"text"),
    ]
    samples = list(read_samples(tar_of(tmp_path, padded), 12))
    assert [decode_image(one).width for one in samples if isinstance(one, Sample)] == list(range(20, 32))
    twice = [*views("a", (0, 1)), member("a.01.jpg", jpeg())]
    assert [type(one) for one in read_samples(tar_of(tmp_path, twice), 2)] == [Sample, Reject]


def test_a_view_may_have_a_caption_of_its_own(tmp_path: Path) -> None:
    tar = tar_of(tmp_path, [*views("a", (0, 1)), member("a.1.txt", b"from behind")])
    captions = [one.captions for one in read_samples(tar, 2) if isinstance(one, Sample)]
    assert captions == [("caption of a",), ("from behind",)]


@pytest.mark.parametrize("name", ["a.-1.jpg", "a.1.x.jpg", "a.99999.jpg", "a.view1.jpg"])
def test_odd_numbers_are_no_views(tmp_path: Path, name: str) -> None:
    samples = list(read_samples(tar_of(tmp_path, [*views("a", (0, 1)), member(name, jpeg())]), 2))
    assert [type(one) for one in samples] == [Sample, Sample]
