"""The solids are a pure function of their seed; what captions tell is what the views show, some more than others."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from flowkit.encoders.demo_towers import CONTEXT_LENGTH, WORDS
from flowkit.errors import ConfigError, ShardError
from flowkit.shards import demo_solids
from flowkit.shards.catalogue import describe_tar
from flowkit.shards.demo_pictures import TOWER_TRAINING_SEED
from flowkit.shards.demo_rays import AMBIENT, COSINE_UNIT, SOLIDS, Camera, Solid, cast, half_height, look
from flowkit.shards.demo_shapes import BACKGROUNDS, COLOURS, RESERVED_SEEDS_FROM, SIZES
from flowkit.shards.demo_solids import (
    RELATIONS,
    TEXTURES,
    Body,
    Scene,
    class_prompts,
    draw,
    image_classes,
    render,
    scene,
    view_azimuths,
    write_solids,
)

ROOT = Path(__file__).parents[2]
# Of series 7: the first 16 objects in 4 views, the captions of the first 64. A change makes all data sets others.
PIXELS_SHA256 = "6cb6a9d159eb23c52cb3ceaf7824bf76d9feb7d3b1d127bde22d6f8a77c3ccb7"
CAPTIONS_SHA256 = "c6704c544557bfb2528d3902d790808b8ce7424f316f522690c6daee620648b7"
UNKNOWN_WORDS = {*SOLIDS, "and", "beside"}
WHITE, BLACK = (250, 250, 250), (0, 0, 0)
NO_JITTER = (0,) * 15


def _body(shape: str, *, size: str = "large", texture: str = "plain", side: str | None = None) -> Body:
    return Body(shape, "red", size, texture, side, yaw=20)


def _scene(*bodies: Body, relation: str | None = None) -> Scene:
    return Scene(bodies, relation, "gray", azimuth=0, elevation=20, jitter=NO_JITTER)


def _recoloured(what: Scene, number: int, **changes: str) -> Scene:
    bodies = list(what.bodies)
    bodies[number] = replace(bodies[number], **changes)
    return replace(what, bodies=tuple(bodies))


def _pixels_of(what: Scene, number: int, azimuth: int) -> np.ndarray:
    """Where a view shows any of a body: where it changes with the body's colours."""
    body = what.bodies[number]
    other = "cyan" if body.colour != "cyan" else "red"
    changed = _recoloured(what, number, colour=other, **({"side": other} if body.side else {}))
    return (render(what, azimuth) != render(changed, azimuth)).any(axis=2)


def _side_pixels(what: Scene, number: int, azimuth: int) -> int:
    """How many pixels of a view show the second colour of a body."""
    body = what.bodies[number]
    other = next(colour for colour in COLOURS if colour not in (body.colour, body.side))
    return int((render(what, azimuth) != render(_recoloured(what, number, side=other), azimuth)).any(2).sum())


def test_drawings_never_change() -> None:
    pixels = np.stack([draw(7, index, 4).pixels_VHWC for index in range(16)])
    assert (pixels.shape, pixels.dtype) == ((16, 4, 32, 32, 3), np.uint8)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == PIXELS_SHA256
    captions = "\n".join(draw(7, index, 2).caption for index in range(64))
    assert hashlib.sha256(captions.encode()).hexdigest() == CAPTIONS_SHA256


def _instructions_found() -> list[str]:
    """Sets of instructions that numpy chooses by the processor, beyond those that it demands of all."""
    return list(np.show_config(mode="dicts")["SIMD Extensions"].get("found", []))


@pytest.mark.skipif(not _instructions_found(), reason="numpy has nothing that it could leave out here")
def test_a_processor_with_fewer_instructions_draws_the_same() -> None:
    program = (
        "import hashlib, numpy as np; from flowkit.shards.demo_solids import draw; "
        "pixels = np.stack([draw(7, index, 4).pixels_VHWC for index in range(16)]); "
        "print(np.show_config(mode='dicts')['SIMD Extensions'].get('found', [])); "
        "print(hashlib.sha256(pixels.tobytes()).hexdigest())"
    )
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(_instructions_found())}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["[]", PIXELS_SHA256]


def test_no_cosine_is_near_a_tie_in_rounding() -> None:
    for degree in range(360):
        exact = math.cos(math.radians(degree)) * COSINE_UNIT
        assert abs(abs(exact) % 1 - 0.5) > 1e-3


def test_index_and_seed_both_matter() -> None:
    pixels = {draw(seed, index, 2).pixels_VHWC.tobytes() for seed in range(8) for index in range(20)}
    assert len(pixels) == 160


def test_every_attribute_occurs_about_equally() -> None:
    scenes = [scene(3, index) for index in range(3000)]
    first = [what.bodies[0] for what in scenes]
    for counts, options in [
        (Counter(body.shape for body in first), SOLIDS),
        (Counter(body.colour for body in first), COLOURS),
        (Counter(body.size for body in first), SIZES),
        (Counter(body.texture for body in first), TEXTURES),
        (Counter(what.background for what in scenes), BACKGROUNDS),
        (Counter(len(what.bodies) for what in scenes), (1, 2)),
        (Counter(what.azimuth // 60 for what in scenes), range(6)),
    ]:
        assert set(counts) == set(options)
        assert min(counts.values()) > 0.75 * 3000 / len(options)
    assert set(Counter(what.relation for what in scenes if what.relation)) == set(RELATIONS)
    assert {what.elevation for what in scenes} == set(range(15, 26))
    assert all((body.side is not None) == (body.texture == "two-sided") for body in first)
    assert all(body.side != body.colour for body in first)


def test_captions_tell_the_attributes_in_words_of_which_the_towers_know_most() -> None:
    for index in range(300):
        drawn = draw(5, index, 2)
        words = drawn.caption.split()
        assert len(words) <= CONTEXT_LENGTH - 2, "no tower cuts a caption"
        assert set(words) <= set(WORDS) | UNKNOWN_WORDS
        objects = drawn.attributes["objects"]
        assert isinstance(objects, list)
        said = []
        for one in objects:
            colours = f"{one['colour']} and {one['side_colour']}" if one["side_colour"] else one["colour"]
            striped = "striped " if one["texture"] == "striped" else ""
            said.append(f"a {one['size']} {colours} {striped}{one['shape']}")
        between = f" {drawn.attributes['relation']} "
        assert drawn.caption == f"{between.join(said)} on a {drawn.attributes['background']} background"
    assert not UNKNOWN_WORDS & set(WORDS)


def _is_inside(shape: str, size: float, points: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """What a solid is, written a second time."""
    x, y, z = (axis / size for axis in points)
    flat = np.sqrt(x * x + y * y)
    return {
        "sphere": flat**2 + z**2 <= 1,
        "cube": np.maximum(abs(x), np.maximum(abs(y), abs(z))) <= 0.75,
        "cylinder": (flat <= 0.7) & (abs(z) <= 0.95),
        "cone": (flat <= 0.95 * (1 - z) / 2) & (abs(z) <= 1),
        "pyramid": (np.maximum(abs(x), abs(y)) <= 0.85 * (0.95 - z) / 1.9) & (abs(z) <= 0.95),
    }[shape]


@pytest.mark.parametrize("shape", SOLIDS)
@pytest.mark.parametrize(
    ("yaw", "azimuth", "elevation"), [(0, 90, 20), (33, 250, 15), (100, 7, 25), (5, 50, 60)]
)
def test_rays_meet_the_first_point_inside_a_solid(shape: str, yaw: int, azimuth: int, elevation: int) -> None:
    """A walk along each ray finds no other solid; just behind what is hit lies the solid, just before it nothing."""
    hit = cast(Solid(shape, 13, (2.0, -3.0, 1.0), yaw, WHITE, False, None), azimuth, elevation)
    camera = Camera.at(azimuth, elevation)
    steps = np.arange(64) - 31.5
    turn = math.radians(yaw)

    def inside(depth: np.ndarray) -> np.ndarray:
        """Whether the ray points at a depth from the plane through the centre are in the solid."""
        along = sum(one * two for one, two in zip(camera.back, (2.0, -3.0, 1.0), strict=True))
        x, y, z = (
            steps[None, :] * right - steps[:, None] * up + (depth + along) * back - center
            for right, up, back, center in zip(*vars(camera).values(), (2.0, -3.0, 1.0), strict=True)
        )
        turned = (x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn), z)
        return _is_inside(shape, 13.0, turned)

    is_hit = np.isfinite(hit.depth)
    walked = np.zeros_like(is_hit)
    for depth in np.arange(-25, 25, 0.25):
        walked |= inside(np.full((64, 64), depth))
    assert not (walked & ~is_hit).any()
    depth = np.where(is_hit, hit.depth, 0.0)
    assert inside(depth - 0.02)[is_hit].mean() > 0.98, "but for rays that graze an edge"
    assert not inside(depth + 0.02)[is_hit].any()
    length = sum(axis * axis for axis in hit.normal)
    assert abs(length - 1)[is_hit].max() < 1e-5
    local = Camera.at(azimuth - yaw, elevation).back
    assert (sum(axis * one for axis, one in zip(hit.normal, local, strict=True))[is_hit] > -1e-5).all()


def test_turning_the_solid_is_turning_the_camera() -> None:
    """Everything but the light, which stands still."""
    for shape in SOLIDS:
        one = cast(Solid(shape, 9, (12.0, 5.0, -3.0), 30, WHITE, True, None), 70, 20)
        other = cast(Solid(shape, 9, (-5.0, 12.0, -3.0), 120, WHITE, True, None), 160, 20)
        np.testing.assert_allclose(one.depth, other.depth, atol=1e-4)
        np.testing.assert_allclose(one.height, other.height, atol=1e-4)


def test_views_are_evenly_spaced_and_do_not_depend_on_how_many_there_are() -> None:
    assert view_azimuths(350, 4) == (350, 80, 170, 260)
    assert {second - first for first, second in pairwise(view_azimuths(0, 7))} == {51, 52}
    assert len(set(view_azimuths(123, 360))) == 360
    for index in range(5):
        few, many = draw(9, index, 4), draw(9, index, 8)
        assert (few.pixels_VHWC == many.pixels_VHWC[::2]).all()
        assert (few.caption, few.attributes) == (many.caption, many.attributes)
        assert few.attributes["azimuth"] == scene(9, index).azimuth


def test_a_view_of_an_object_is_the_first_view_of_the_same_object_met_from_there() -> None:
    for index in range(10):
        what = scene(4, index)
        drawn = draw(4, index, 5)
        for view, azimuth in enumerate(view_azimuths(what.azimuth, 5)):
            assert (drawn.pixels_VHWC[view] == render(replace(what, azimuth=azimuth), azimuth)).all()


def test_every_view_of_every_object_fits_into_the_picture() -> None:
    for index in range(200):
        for pixels in draw(6, index, 4).pixels_VHWC:
            border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            assert (border == border[0]).all()


def test_pixels_have_the_colour_of_the_caption_in_every_view() -> None:
    directions = np.array(list(COLOURS.values())) / np.linalg.norm(list(COLOURS.values()), axis=1)[:, None]
    seen = 0
    for index in range(300):
        what = scene(8, index)
        if len(what.bodies) == 2 or what.bodies[0].side:
            continue
        for azimuth in view_azimuths(what.azimuth, 4):
            mask = _pixels_of(what, 0, azimuth)
            for axis in (0, 1):  # pixels at the edge are mixed with the background
                mask &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
            inner = render(what, azimuth)[mask].astype(float)
            nearest = (inner @ directions.T).argmax(axis=1)
            assert (
                Counter(list(COLOURS)[one] for one in nearest).most_common(1)[0][0] == what.bodies[0].colour
            )
            seen += 1
    assert seen > 300


@pytest.mark.parametrize("shape", SOLIDS)
def test_stripes_darken_parts_of_a_solid_and_nothing_else(shape: str) -> None:
    plain, striped = (render(_scene(_body(shape, texture=texture)), 40) for texture in ("plain", "striped"))
    is_solid = _pixels_of(_scene(_body(shape)), 0, 40)
    darker = (striped.astype(int) < plain).any(axis=2)
    assert (striped <= plain).all()
    assert not (darker & ~is_solid).any()
    assert 0.3 < darker.sum() / is_solid.sum() < 0.85


@pytest.mark.parametrize(("relation", "sign"), [("above", -1), ("below", 1)])
def test_above_and_below_hold_in_every_view(relation: str, sign: int) -> None:
    for shape, other in zip(SOLIDS, reversed(SOLIDS), strict=True):
        what = _scene(_body(shape, size="small"), _body(other), relation=relation)
        for azimuth in range(0, 360, 45):
            rows = [np.nonzero(_pixels_of(what, number, azimuth))[0].mean() for number in (0, 1)]
            assert sign * (rows[0] - rows[1]) > 5


def test_of_two_beside_each_other_the_nearer_covers_the_other() -> None:
    what = _scene(_body("cube"), _body("sphere", size="small"), relation="beside")
    alone = replace(what, bodies=(replace(what.bodies[0], colour="blue"), what.bodies[1]))
    shown = {azimuth: _pixels_of(what, 1, azimuth).sum() for azimuth in (0, 90, 180, 270)}
    assert shown[0] < 0.5 * shown[180], "the cube stands before the sphere, then behind it"
    assert shown[90] == pytest.approx(shown[180], rel=0.05), "nothing covers a sphere in front or at the side"
    assert _pixels_of(alone, 0, 180).sum() < _pixels_of(alone, 0, 0).sum()
    columns = {
        azimuth: [np.nonzero(_pixels_of(what, number, azimuth))[1].mean() for number in (0, 1)]
        for azimuth in (90, 270)
    }
    assert columns[90][0] < columns[90][1] - 8
    assert columns[270][0] > columns[270][1] + 8, "left and right change places on the way round"


@pytest.mark.parametrize("shape", SOLIDS)
def test_the_other_side_is_seen_in_some_views_only(shape: str) -> None:
    what = _scene(_body(shape, texture="two-sided", side="blue"))
    shown = [_side_pixels(what, 0, azimuth) for azimuth in view_azimuths(0, 8)]
    assert max(shown) > 25
    assert 2 <= shown.count(0) <= 5
    facing = _side_pixels(what, 0, what.bodies[0].yaw)
    assert facing > 0.8 * max(shown)
    assert _side_pixels(what, 0, what.bodies[0].yaw + 180) == 0


def test_every_drawn_side_is_hidden_from_some_view_and_seen_in_another() -> None:
    sides = 0
    for index in range(80):
        what = scene(2, index)
        for number, body in enumerate(what.bodies):
            if body.side:
                shown = [_side_pixels(what, number, azimuth) for azimuth in view_azimuths(what.azimuth, 8)]
                assert min(shown) == 0 < max(shown)
                sides += 1
    assert sides > 20


def test_the_light_stands_still_while_the_camera_goes_round() -> None:
    ball = Solid("sphere", 13, (0.0, 0.0, 0.0), 77, WHITE, False, None)
    towards, away = (
        look(BLACK, (ball,), azimuth=azimuth, elevation=20)[12:20, 12:20, 0].astype(int)
        for azimuth in (27, 207)
    )
    assert towards.mean() > 1.3 * away.mean()
    assert away.min() >= int(AMBIENT * WHITE[0])
    assert towards.max() <= WHITE[0]
    turned = replace(ball, yaw=200)
    assert (
        abs(look(BLACK, (turned,), azimuth=27, elevation=20)[12:20, 12:20, 0].astype(int) - towards).max()
        <= 1
    )


def test_unknown_shapes_and_steep_cameras_are_refused() -> None:
    with pytest.raises(ValueError, match="'torus' is unknown; expected one of cube, sphere"):
        half_height("torus", 9)
    for elevation in (0, 61):
        with pytest.raises(ValueError, match=f"elevation {elevation} is not between 1 and 60"):
            look(BLACK, (), azimuth=0, elevation=elevation)


def test_shards_are_byte_identical_and_hold_one_sample_for_each_object(tmp_path: Path) -> None:
    one = write_solids(tmp_path / "one", objects=7, objects_per_shard=3, views=3, seed=4)
    two = write_solids(tmp_path / "two", objects=7, objects_per_shard=3, views=3, seed=4)
    assert [tar.name for tar in one] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [describe_tar(tar) for tar in one] == [describe_tar(tar) for tar in two]
    samples = [sample for tar in one for sample in webdataset.WebDataset(str(tar), shardshuffle=False)]
    assert [sample["__key__"] for sample in samples] == [f"{index:08d}" for index in range(7)]
    for index, sample in enumerate(samples):
        drawn = draw(4, index, 3)
        assert {name for name in sample if "_" not in name} == {"0.png", "1.png", "2.png", "txt", "json"}
        for view in range(3):
            with tarfile.open(one[index // 3]) as tar:
                member = tar.extractfile(f"{index:08d}.{view}.png")
                assert member is not None
                assert (np.asarray(Image.open(member)) == drawn.pixels_VHWC[view]).all()
        assert sample["txt"].decode() == drawn.caption
        assert json.loads(sample["json"]) == {"attributes": drawn.attributes}


def test_interrupted_write_leaves_no_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int, index: int, views: int) -> demo_solids.Views:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_solids, "draw", fail)
    with pytest.raises(KeyboardInterrupt):
        write_solids(tmp_path, objects=2, objects_per_shard=2, views=2, seed=0)
    assert not list(tmp_path.glob("*.tar"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"objects": 0}, "objects = 0, objects_per_shard = 2"),
        ({"objects_per_shard": 0}, "objects = 2, objects_per_shard = 0"),
        ({"views": 1}, "views = 1 is not between 2 and 360"),
        ({"views": 361}, "views = 361 is not between 2 and 360"),
        ({"seed": -1}, "demo seed -1 is not between 0"),
        ({"seed": RESERVED_SEEDS_FROM}, f"demo seed {RESERVED_SEEDS_FROM} is not between 0"),
        ({"seed": TOWER_TRAINING_SEED}, f"demo seed {TOWER_TRAINING_SEED} is not between 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, changed: dict[str, int], says: str) -> None:
    asked = {"objects": 2, "objects_per_shard": 2, "views": 2, "seed": 0} | changed
    with pytest.raises(ConfigError, match=says):
        write_solids(tmp_path, **asked)
    assert not list(tmp_path.iterdir())


def test_folder_with_foreign_tars_is_refused(tmp_path: Path) -> None:
    write_solids(tmp_path, objects=3, objects_per_shard=1, views=2, seed=0)
    with pytest.raises(ShardError, match=r"not part of this set of 2: 00002\.tar"):
        write_solids(tmp_path, objects=2, objects_per_shard=1, views=2, seed=0)


def test_classes_are_the_colours_of_an_object_with_those_of_its_sides() -> None:
    names, prompts = class_prompts()
    assert names == list(COLOURS)
    assert {word for prompt in prompts for word in prompt.split()} <= set(WORDS)
    one = {"shape": "cube", "colour": "red", "size": "small", "texture": "plain", "side_colour": None}
    assert image_classes({"objects": [one]}) == ("red",)
    assert image_classes({"objects": [one, one | {"side_colour": "blue"}]}) == ("red", "blue")
    for foreign in ({"photographer": "someone"}, {"objects": [{"shape": "circle", "colour": "red"}]}):
        with pytest.raises(ShardError, match="not of the solids"):
            image_classes(foreign)
