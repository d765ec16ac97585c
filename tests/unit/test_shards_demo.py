"""The demo set is a pure function of its seed: the same pixels, captions and tar bytes on every run."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from flowkit.errors import ConfigError, ShardError
from flowkit.shards import demo_shapes
from flowkit.shards.catalogue import describe_tar, list_tars
from flowkit.shards.demo_pictures import TOWER_TRAINING_SEED, draw_hard_negatives, draw_pictures
from flowkit.shards.demo_raster import shape_mask
from flowkit.shards.demo_shapes import (
    RESERVED_SEEDS_FROM,
    class_prompts,
    draw,
    image_classes,
    scene,
    write_shards,
)
from flowkit.shards.reader import Sample, decode_image, read_samples

# Of the first 64 images of series 7. A change here changes every demo result and needs newly trained towers.
PIXELS_SHA256 = "1ba54bcdd1a6b67bc453e63ac0b6337314c6f943c7a3864dab87fa65675e7b22"
CAPTIONS_SHA256 = "03fa66015246e265850fe240749c71a3401c7f83621ca0bdb820c276af0e5ecb"


def test_drawings_never_change() -> None:
    pictures = draw_pictures(7, 64)
    assert hashlib.sha256(pictures.pixels_NHWC.tobytes()).hexdigest() == PIXELS_SHA256
    assert hashlib.sha256("\n".join(pictures.captions).encode()).hexdigest() == CAPTIONS_SHA256


@given(seed=st.integers(0, 2**64 - 1), index=st.integers(0, 2**64 - 1))
def test_any_scene_is_drawn_and_its_caption_is_in_the_vocabulary(seed: int, index: int) -> None:
    drawing = draw(seed, index)
    assert (drawing.image.size, drawing.image.mode) == ((32, 32), "RGB")
    assert set(drawing.caption.split()) <= set(demo_shapes.VOCABULARY)
    assert set(image_classes(drawing.attributes)) <= set(class_prompts()[0])


def test_index_and_seed_both_matter() -> None:
    pixels = {np.asarray(draw(seed, index).image).tobytes() for seed in range(20) for index in range(20)}
    assert len(pixels) == 400


def test_every_attribute_occurs_about_equally() -> None:
    scenes = [scene(3, index) for index in range(2000)]
    first = [what.things[0] for what in scenes]
    for counts, options in [
        (Counter(thing.shape for thing in first), demo_shapes.SHAPES),
        (Counter(thing.colour for thing in first), demo_shapes.COLOURS),
        (Counter(thing.size for thing in first), demo_shapes.SIZES),
        (Counter(thing.texture for thing in first), demo_shapes.TEXTURES),
        (Counter(what.background for what in scenes), demo_shapes.BACKGROUNDS),
        (Counter(len(what.things) for what in scenes), (1, 2)),
    ]:
        assert set(counts) == set(options)
        assert min(counts.values()) > 0.75 * 2000 / len(options)
    relations = Counter(what.relation for what in scenes if what.relation)
    assert set(relations) == set(demo_shapes.RELATIONS)


def test_caption_tells_what_is_drawn() -> None:
    """The first object stands where the relation says and has its colour."""
    for index in range(200):
        what = scene(5, index)
        if what.relation is None:
            continue
        drawing = draw(5, index)
        one, other = what.things
        texture = "striped " if one.texture == "striped" else ""
        assert drawing.caption.startswith(
            f"a {one.size} {one.colour} {texture}{one.shape} {what.relation} a "
        )
        assert f" a {other.size} {other.colour} " in drawing.caption
        step_y, step_x = demo_shapes.RELATIONS[what.relation]
        pixels = np.asarray(drawing.image).astype(int)
        y, x = 16 + step_y // 2, 16 + step_x // 2
        patch = pixels[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)
        distance = np.abs(patch - demo_shapes.COLOURS[one.colour]).max(axis=1).min()
        assert distance <= demo_shapes.TONE_JITTER, (drawing.caption, distance)


def test_hard_negatives_differ_in_one_shape_only() -> None:
    pictures = draw_hard_negatives(11, 40)
    for start in range(0, 160, 4):
        words = [caption.split() for caption in pictures.captions[start : start + 4]]
        assert {len(one) for one in words} == {len(words[0])}
        changing = [{one[place] for one in words} for place in range(len(words[0]))]
        assert [options for options in changing if len(options) > 1] == [set(demo_shapes.SHAPES)]
        assert len({pixels.tobytes() for pixels in pictures.pixels_NHWC[start : start + 4]}) == 4


@pytest.mark.parametrize("shape", demo_shapes.SHAPES)
@pytest.mark.parametrize("radius", demo_shapes.SIZES.values())
def test_masks_are_symmetric_and_fill_their_extent(shape: str, radius: int) -> None:
    mask = shape_mask(shape, radius)
    assert (mask == mask[:, ::-1]).all()
    assert 0.3 < mask.mean() < 0.9


def test_unknown_shape_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'star' is unknown; expected circle"):
        shape_mask("star", 5)


def test_shards_are_byte_identical_and_readable(tmp_path: Path) -> None:
    one = write_shards(tmp_path / "one", images=25, images_per_shard=10, seed=4)
    two = write_shards(tmp_path / "two", images=25, images_per_shard=10, seed=4)
    assert [tar.name for tar in one] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [describe_tar(tar) for tar in one] == [describe_tar(tar) for tar in two]
    assert list_tars(tmp_path / "one") == one
    samples = [sample for tar in one for sample in read_samples(tar)]
    assert len(samples) == 25
    for index, sample in enumerate(samples):
        assert isinstance(sample, Sample)
        drawing = draw(4, index)
        assert sample.key == f"{index:08d}"
        assert sample.captions == (drawing.caption,)
        assert sample.attributes == drawing.attributes
        assert (np.asarray(decode_image(sample)) == np.asarray(drawing.image)).all()


def test_webdataset_itself_reads_the_same_samples(tmp_path: Path) -> None:
    (tar,) = write_shards(tmp_path, images=6, images_per_shard=10, seed=4)
    theirs = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    ours = list(read_samples(tar))
    assert [(one["__key__"], one["png"], one["txt"].decode()) for one in theirs] == [
        (sample.key, sample.image, sample.captions[0]) for sample in ours if isinstance(sample, Sample)
    ]


def test_interrupted_write_leaves_no_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int, index: int) -> demo_shapes.Drawing:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_shapes, "draw", fail)
    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, images=3, images_per_shard=3, seed=0)
    with pytest.raises(ShardError, match=r"no \*\.tar"):
        list_tars(tmp_path)
    monkeypatch.undo()
    assert len(write_shards(tmp_path, images=3, images_per_shard=3, seed=0)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["00000.tar"]


def test_folder_with_foreign_tars_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, images=3, images_per_shard=1, seed=0)
    with pytest.raises(ShardError, match=r"not part of this set of 2: 00002\.tar"):
        write_shards(tmp_path, images=2, images_per_shard=1, seed=0)


@pytest.mark.parametrize("seed", [-1, RESERVED_SEEDS_FROM, TOWER_TRAINING_SEED])
def test_reserved_seeds_are_refused(tmp_path: Path, seed: int) -> None:
    with pytest.raises(ConfigError, match=f"demo seed {seed} is not between 0"):
        write_shards(tmp_path, images=1, images_per_shard=1, seed=seed)


def test_counts_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="images = 0"):
        write_shards(tmp_path, images=0, images_per_shard=1, seed=0)


def test_classes_of_a_foreign_sample_are_an_error() -> None:
    with pytest.raises(ShardError, match="not of the demo set"):
        image_classes({"photographer": "someone"})


def test_class_prompts_are_32_and_in_the_vocabulary() -> None:
    names, prompts = class_prompts()
    assert len(set(names)) == len(prompts) == 32
    assert prompts[names.index("red circle")] == "a red circle"
    assert {word for prompt in prompts for word in prompt.split()} <= set(demo_shapes.VOCABULARY)


def test_catalogue_errors_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="nowhere is not a folder"):
        list_tars(tmp_path / "nowhere")
    with pytest.raises(ShardError, match=r"gone\.tar cannot be read"):
        describe_tar(tmp_path / "gone.tar")


def test_describe_tar_is_name_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"abc")
    assert describe_tar(tmp_path / "x.tar") == {
        "name": "x.tar",
        "bytes": 3,
        "sha256": hashlib.sha256(b"abc").hexdigest(),
    }
