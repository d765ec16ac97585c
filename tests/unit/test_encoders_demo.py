"""The demo towers: their committed weights hold what their model card says, and damaged files are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flowkit.encoders import demo_towers
from flowkit.encoders.demo_towers import (
    ASSETS,
    CONTEXT_LENGTH,
    as_encoder,
    build_demo_tower,
    save_demo_tower,
    tokenize,
)
from flowkit.encoders.registry import load_encoder
from flowkit.encoders.tower_training import RECIPES, TowerRecipe, measure_tower, normalise_pixels, train_tower
from flowkit.errors import EncoderError
from flowkit.shards.demo_pictures import (
    TOWER_HARD_NEGATIVE_SEED,
    TOWER_MEASURING_SEED,
    TOWER_TRAINING_SEED,
    Pictures,
    draw_hard_negatives,
    draw_pictures,
    shorten_captions,
)
from flowkit.shards.demo_shapes import HARD_NEGATIVE_GROUP, VOCABULARY, class_prompts

TOWERS = ("demo-eva", "demo-vit")
BAR = 0.80


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def fresh() -> Pictures:
    """1,000 images of a series that neither the training nor the model card saw."""
    return draw_pictures(TOWER_MEASURING_SEED + 1000, 1000)


def _measures(name: str, pictures: Pictures, weights: Path | None = None) -> dict[str, float]:
    names, prompts = class_prompts()
    encoder = load_encoder(name, weights)
    return measure_tower(encoder, pictures, classes=pictures.classes, class_names=names, prompts=prompts)


@pytest.mark.parametrize("name", TOWERS)
def test_committed_towers_pass_the_bars_on_fresh_images(name: str, fresh: Pictures) -> None:
    measured = _measures(name, fresh)
    assert measured["t2i_r1"] >= BAR
    assert measured["colour_x_shape"] >= BAR
    assert measured["t2i_r5"] >= measured["t2i_r1"]


def test_untrained_tower_fails_the_bars(fresh: Pictures) -> None:
    """The measure can fail."""
    names, prompts = class_prompts()
    torch.manual_seed(0)
    encoder = as_encoder("demo-vit", build_demo_tower("demo-vit"))
    measured = measure_tower(encoder, fresh, classes=fresh.classes, class_names=names, prompts=prompts)
    assert measured["t2i_r1"] < 0.05
    assert measured["colour_x_shape"] < 0.2


def test_both_files_are_small_and_half_precision() -> None:
    files = [ASSETS / f"{name}.safetensors" for name in TOWERS]
    assert sum(file.stat().st_size for file in files) < 3_000_000
    for file in files:
        assert {value.dtype for value in load_file(file).values()} == {torch.float16}


def test_widths_are_those_of_the_demo() -> None:
    eva, vit = (load_encoder(name) for name in TOWERS)
    assert (eva.token_count, eva.token_width, eva.grid) == (17, 128, (4, 4))
    assert (vit.token_count, vit.token_width, vit.grid) == (17, 96, (4, 4))


def test_training_pixels_are_those_of_preprocess(fresh: Pictures) -> None:
    encoder = load_encoder("demo-vit")
    one_by_one = torch.stack(
        [encoder.preprocess(Image.fromarray(pixels)) for pixels in fresh.pixels_NHWC[:5]]
    )
    assert torch.allclose(normalise_pixels(fresh.pixels_NHWC[:5]), one_by_one, atol=1e-6)


def test_the_tower_reads_every_word_of_the_demo() -> None:
    assert set(demo_towers.WORDS) == set(VOCABULARY)


def test_tokens_are_start_words_end() -> None:
    ids = tokenize(["A red, circle.", "a dog", "red " * 50])
    assert ids.shape == (3, CONTEXT_LENGTH)
    start, end, unknown = (demo_towers._IDS[word] for word in ("<start>", "<end>", "<unknown>"))
    words = [demo_towers._IDS[word] for word in ("a", "red", "circle")]
    assert ids[0].tolist() == [start, *words, end] + [0] * (CONTEXT_LENGTH - 5)
    assert ids[1, 2] == unknown
    assert ids[2, -1] == end
    assert (ids.argmax(dim=1) == torch.tensor([4, 3, CONTEXT_LENGTH - 1])).all(), "the end is pooled"


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"none\.safetensors of demo-vit does not exist"):
        load_encoder("demo-vit", tmp_path / "none.safetensors")


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    file = tmp_path / "cut.safetensors"
    file.write_bytes((ASSETS / "demo-vit.safetensors").read_bytes()[:5000])
    with pytest.raises(EncoderError, match=r"cut\.safetensors is damaged"):
        load_encoder("demo-vit", file)


def test_weights_of_the_other_tower_are_refused() -> None:
    with pytest.raises(EncoderError, match=r"demo-eva\.safetensors (lacks|has the unknown) tensor"):
        load_encoder("demo-vit", ASSETS / "demo-eva.safetensors")


def test_every_key_and_shape_is_checked(tmp_path: Path) -> None:
    state = load_file(ASSETS / "demo-vit.safetensors")
    key = "visual.proj"
    file = tmp_path / "other.safetensors"
    save_file({**state, key: state[key][:, :-1].contiguous()}, file)
    with pytest.raises(EncoderError, match=r"visual\.proj is \(96, 63\), demo-vit expects \(96, 64\)"):
        load_encoder("demo-vit", file)
    save_file({name: value for name, value in state.items() if name != key}, file)
    with pytest.raises(EncoderError, match=r"lacks tensor visual\.proj"):
        load_encoder("demo-vit", file)
    save_file({**state, "extra": state[key].clone()}, file)
    with pytest.raises(EncoderError, match="has the unknown tensor extra"):
        load_encoder("demo-vit", file)


def test_saving_is_byte_stable(tmp_path: Path) -> None:
    state = build_demo_tower("demo-eva").state_dict()
    for name in ("one", "two"):
        save_demo_tower(state, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "plain").touch()
    assert (tmp_path / "one.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_unknown_tower_lists_the_known() -> None:
    with pytest.raises(EncoderError, match="'demo-rn' is unknown; expected one of demo-vit, demo-eva"):
        build_demo_tower("demo-rn")


def _train(name: str, recipe: TowerRecipe) -> dict[str, torch.Tensor]:
    pictures = draw_pictures(TOWER_TRAINING_SEED, recipe.images // 2)
    return train_tower(
        name,
        shorten_captions(pictures, every=recipe.short_caption_every),
        draw_hard_negatives(TOWER_HARD_NEGATIVE_SEED, recipe.images // 2 // HARD_NEGATIVE_GROUP),
        group_size=HARD_NEGATIVE_GROUP,
        recipe=recipe,
    )


def test_training_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    recipe = replace(RECIPES["demo-vit"], images=256, steps=3)
    one, two = (_train("demo-vit", recipe) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[key], two[key]) for key in one)
    other = _train("demo-vit", replace(recipe, seed=1))
    assert not torch.equal(one["visual.proj"], other["visual.proj"])


def test_batches_must_hold_whole_groups() -> None:
    recipe = replace(RECIPES["demo-vit"], images=16)
    with pytest.raises(ValueError, match="batch 12 is not a multiple of 8"):
        _train("demo-vit", replace(recipe, batch=12))
    with pytest.raises(ValueError, match="8 pictures or groups are fewer than the 32 of one batch"):
        _train("demo-vit", replace(recipe, batch=64))


def test_short_captions_name_one_object_of_the_image() -> None:
    pictures = draw_pictures(0, 60)
    shortened = shorten_captions(pictures, every=6)
    changed = [index for index in range(60) if shortened.captions[index] != pictures.captions[index]]
    assert changed == list(range(0, 60, 6))
    for index in changed:
        assert shortened.captions[index].removeprefix("a ") in pictures.classes[index]
    assert np.shares_memory(shortened.pixels_NHWC, pictures.pixels_NHWC)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_retrained_towers_pass_the_bars(name: str, fresh: Pictures, tmp_path: Path) -> None:
    """Thresholds, not bits: other machines round otherwise."""
    file = tmp_path / "tower.safetensors"
    save_demo_tower(_train(name, RECIPES[name]), file)
    measured = _measures(name, fresh, weights=file)
    assert measured["t2i_r1"] >= BAR
    assert measured["colour_x_shape"] >= BAR
