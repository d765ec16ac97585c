"""How a 3-D model takes translations: closed forms, Shap-E's prior with random weights, rows, notes and refusals."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from prior_material import LATENT_WIDTH, LATENTS, heun_scheduler, tiny_prior, write_weights

from flowkit.config import load_config
from flowkit.errors import ConfigError, StoreError
from flowkit.evaluation import downstream as module
from flowkit.evaluation.collected import collect_true
from flowkit.evaluation.downstream import Downstream
from flowkit.evaluation.score import METRICS, not_scored, score
from flowkit.evaluation.tokens import mean_over_images
from flowkit.export import prior_files, shap_e_prior
from flowkit.export.prior_files import demand_usable, prior_digest
from flowkit.export.shap_e_prior import ShapEPrior
from flowkit.flow.noise import keyed_normal
from flowkit.paths import Places
from flowkit.stages.specs import Plan

IMAGES, TOKENS, CHANNELS = 12, 5, 16
KEYS = [f"image-{number}" for number in range(IMAGES)]
Floats = NDArray[np.floating]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), CHANNELS)


@pytest.fixture(scope="module")
def prior(weights: Path) -> ShapEPrior:
    torch.set_num_threads(1)
    return ShapEPrior(f"shap-e-prior:{weights}", "cpu")


@pytest.fixture
def true() -> Floats:
    return np.random.default_rng(0).normal(1, 3, (IMAGES, TOKENS, CHANNELS)).astype(np.float32)


def euclid(mine: Floats, theirs: Floats, keys: list[str]) -> NDArray[np.float64]:
    """A consumer whose output is the patches themselves."""
    return np.sqrt(np.square(mine - theirs).sum(axis=(1, 2), dtype=np.float64))


def value(ratio: Any) -> float:
    return float(ratio.numerator_N.sum() / ratio.denominator_N.sum())


def test_it_is_the_mean_change_over_the_mean_distance_between_images(true: Floats) -> None:
    judge = Downstream(euclid, true, KEYS, has_class_token=True)
    error = np.random.default_rng(1).normal(size=true.shape).astype(np.float32)
    error[:, 0] = 1e6  # the class token is no patch
    change = np.sqrt(np.square(error[:, 1:]).sum((1, 2)))
    distances = np.sqrt(np.square(true[:, None, 1:] - true[None, :, 1:]).sum((2, 3)))
    found = judge.ratio(true + error)
    np.testing.assert_allclose(found.numerator_N, change, rtol=1e-4)
    for row, distance in enumerate(found.denominator_N):
        others = np.delete(distances[row], row)
        assert np.isclose(others, distance, rtol=1e-5).any(), "another image, never the same"
    expected = change.mean() / (distances.sum() / (IMAGES * (IMAGES - 1)))
    assert value(found) == pytest.approx(expected, rel=0.1)


def test_true_features_change_nothing_and_other_images_count_one(true: Floats) -> None:
    judge = Downstream(euclid, true, KEYS, has_class_token=False)
    assert value(judge.ratio(true)) == 0
    order = np.random.default_rng(0).permutation(IMAGES)
    other = np.empty_like(order)
    other[order] = np.roll(order, -1)
    assert value(judge.ratio(true[other])) == 1


def test_some_images_are_judged_and_the_others_count_nothing(
    true: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_IMAGES", 5)
    found = Downstream(euclid, true, KEYS, has_class_token=False).ratio(true + 1)
    assert np.flatnonzero(found.denominator_N).tolist() == [0, 2, 4, 7, 9]
    assert np.flatnonzero(found.numerator_N).tolist() == [0, 2, 4, 7, 9]


def test_distances_are_those_of_the_priors_outputs(prior: ShapEPrior, true: Floats) -> None:
    """Written down again with diffusers alone."""
    other = true + np.random.default_rng(4).normal(size=true.shape).astype(np.float32)
    model, kept = tiny_prior(CHANNELS), heun_scheduler().alphas_cumprod
    estimate, squares = torch.zeros(IMAGES, LATENTS, LATENT_WIDTH), torch.zeros(IMAGES)
    with torch.no_grad():
        for number, step in enumerate((1023, 512, 128)):
            noise = keyed_normal(
                [("downstream", key, number) for key in KEYS], (LATENTS, LATENT_WIDTH), "cpu"
            )
            latents = noise if number == 0 else kept[step].sqrt() * estimate + (1 - kept[step]).sqrt() * noise
            outputs = [
                model(latents, step, torch.from_numpy(tokens))
                .predicted_image_embedding[..., :LATENT_WIDTH]
                .clamp(-1, 1)
                for tokens in (true, other)
            ]
            estimate = outputs[0]
            squares += (outputs[0] - outputs[1]).square().sum((1, 2))
    np.testing.assert_allclose(prior.distances(true, other, KEYS), squares.sqrt().numpy(), rtol=1e-4)


def test_an_images_noise_is_its_keys(prior: ShapEPrior, true: Floats) -> None:
    whole = prior.distances(true, true[::-1].copy(), KEYS)
    some = prior.distances(true[3:5], true[::-1][3:5].copy(), KEYS[3:5])
    np.testing.assert_allclose(some, whole[3:5], rtol=1e-4)
    assert not np.allclose(prior.distances(true[3:5], true[::-1][3:5].copy(), KEYS[:2]), some, rtol=1e-3)


def test_a_better_translation_scores_lower_in_the_prior(prior: ShapEPrior, true: Floats) -> None:
    judge = Downstream(prior.distances, true, KEYS, has_class_token=True)
    error = np.random.default_rng(2).normal(size=true.shape).astype(np.float32)
    values = [value(judge.ratio(true + size * error)) for size in (0.0, 0.02, 0.1, 0.5, 2.5)]
    assert values == sorted(values)
    assert values[0] == 0
    assert values[2] / values[1] == pytest.approx(5, rel=0.2)
    assert 0.3 < value(judge.ratio(np.roll(true, 1, axis=0))) < 3


def test_its_row_comes_last_with_an_interval(prior: ShapEPrior, true: Floats) -> None:
    judge = Downstream(prior.distances, true, KEYS, has_class_token=True)
    side = collect_true(true, mean_over_images(true), None)
    error = np.random.default_rng(2).normal(size=true.shape).astype(np.float32)
    found = score(true + error, side, downstream=judge, keys=KEYS, draws=200)
    assert [row["metric"] for row in found.rows] == [*METRICS, "downstream"]
    row = found.rows[-1]
    assert row["value"] == pytest.approx(value(judge.ratio(true + error)))
    assert row["low"] is not None
    assert row["high"] is not None
    assert row["low"] < row["value"] < row["high"]
    without = score(true + error, side, keys=KEYS, draws=200)
    assert [row["metric"] for row in without.rows] == list(METRICS)
    assert without.rows == found.rows[:-1]


def test_what_cannot_be_measured_is_an_empty_row_with_a_note(prior: ShapEPrior, true: Floats) -> None:
    judge = Downstream(prior.distances, true, KEYS, has_class_token=True)
    broken = true.copy()
    broken[3, 2, 1] = np.nan
    found = score(broken, collect_true(true, mean_over_images(true), None), downstream=judge, keys=KEYS)
    assert found.rows[-1] == {"metric": "downstream", "value": None, "low": None, "high": None}
    (note,) = [note for note in found.notes if "not finite" in note["note"]]
    assert "downstream" in note["metrics"]
    rows, notes = not_scored("why", [*METRICS, "downstream"])
    assert rows[-1]["metric"] == notes[0]["metrics"][-1] == "downstream"


def test_a_note_says_how_many_were_judged(true: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_IMAGES", 5)
    judge = Downstream(euclid, true, KEYS, has_class_token=False)
    found = score(
        true + 1, collect_true(true, mean_over_images(true), None), downstream=judge, keys=KEYS, draws=200
    )
    assert {"metrics": ["downstream"], "note": "of 5 of 12 images, evenly spaced"} in found.notes


def test_another_encoders_width_is_refused(prior: ShapEPrior) -> None:
    tokens = np.zeros((1, 4, CHANNELS + 1), np.float32)
    with pytest.raises(StoreError, match="patches have 17 channels, this prior takes 16"):
        prior.distances(tokens, tokens, KEYS[:1])


def test_other_weights_have_another_digest(weights: Path, tmp_path: Path) -> None:
    other = write_weights(tmp_path, CHANNELS, seed=1)
    assert prior_digest(f"shap-e-prior:{weights}") != prior_digest(f"shap-e-prior:{other}")


def test_without_diffusers_the_error_names_it(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "diffusers":
            raise ImportError("No module named 'diffusers'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs diffusers.*pip install diffusers --constraint constraints"):
        ShapEPrior(f"shap-e-prior:{weights}", "cpu")


CONFIG: dict[str, Any] = {
    "experiment": "toy",
    "datasets": {
        "train": {"kind": "demo", "images": 120, "images_per_shard": 40, "seed": 0},
        "test": {"kind": "demo", "images": 64, "images_per_shard": 32, "seed": 1},
    },
    "data": {"train": "train", "evaluation": "test"},
    "encoders": {"source": {"name": "demo-eva"}, "target": {"name": "demo-vit"}},
    "export": {"any_encoder": True},
    "runs": {"flow": {}},
}


def _jobs(folder: Path, consumer: str | None, **changed: Any) -> dict[str, Any]:
    raw = {**CONFIG, "evaluation": {"images": 32, "consumer": consumer}, **changed}
    return Plan(load_config(raw), Places("toy", folder / "results", folder / "data"), 1).jobs


def test_evaluation_reads_the_weights(weights: Path, tmp_path: Path) -> None:
    jobs = _jobs(tmp_path, f"shap-e-prior:{weights}")
    assert str(weights / "prior/diffusion_pytorch_model.safetensors") in jobs["evaluate_flow"].declared_inputs
    assert not _jobs(tmp_path, None)["evaluate_flow"].files


def test_what_cannot_be_judged_is_refused_before_anything_runs(weights: Path, tmp_path: Path) -> None:
    named = f"shap-e-prior:{weights}"
    with pytest.raises(ConfigError, match=r"patches, which data\.layout=pooled has not"):
        _jobs(tmp_path, named, data={**CONFIG["data"], "layout": "pooled"})
    with pytest.raises(ConfigError, match=r"these tokens are of demo-vit"):
        _jobs(tmp_path, named, export={})
    with pytest.raises(ConfigError, match=r"evaluation\.consumer='point-e'"):
        _jobs(tmp_path, "point-e")


def test_a_folder_that_is_not_here_fails_the_evaluation_and_nothing_else(tmp_path: Path) -> None:
    named = f"shap-e-prior:{tmp_path}/nowhere"
    jobs = _jobs(tmp_path, named)
    assert f"{tmp_path}/nowhere/prior/config.json" in jobs["evaluate_flow"].declared_inputs
    with pytest.raises(
        ConfigError, match=r"nowhere/prior/config.json is missing; .*--local-dir shap-e-img2img"
    ):
        prior_digest(named)


def test_the_home_folder_may_be_written_short(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(weights.parent))
    assert prior_digest(f"shap-e-prior:~/{weights.name}") == prior_digest(f"shap-e-prior:{weights}")


def test_a_prior_of_another_width_is_refused_before_anything_runs(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = f"shap-e-prior:{weights}"
    with pytest.raises(ConfigError, match=r"embedding_proj_dim=16, the target encoder's patches have 1024"):
        demand_usable(named, 1024)
    demand_usable(named, CHANNELS)
    monkeypatch.setattr(prior_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs diffusers: pip install diffusers"):
        _jobs(tmp_path, named)


def test_what_is_said_to_true_features_is_remembered(
    weights: Path, true: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, other = ShapEPrior(f"shap-e-prior:{weights}", "cpu"), np.roll(true, 1, axis=0)
    passes: list[int] = []
    estimate = ShapEPrior._estimate

    def counted(*arguments: Any) -> torch.Tensor:
        passes.append(1)
        return estimate(*arguments)

    monkeypatch.setattr(ShapEPrior, "_estimate", counted)
    first = fresh.distances(true, other, KEYS)
    assert len(passes) == 6
    np.testing.assert_array_equal(fresh.distances(true, other, KEYS), first)
    assert len(passes) == 9
    assert not np.allclose(fresh.distances(other, true, KEYS), first), "other features, the same keys"
    assert len(passes) == 15
    monkeypatch.setattr(shap_e_prior, "KEPT_BYTES", 5 * 3 * 4 * LATENTS * LATENT_WIDTH)
    bounded = ShapEPrior(f"shap-e-prior:{weights}", "cpu")
    np.testing.assert_array_equal(bounded.distances(true, other, KEYS), first)
    assert len(bounded._kept) == 5


def test_of_several_views_the_first_is_judged(true: Floats) -> None:
    images, tokens, channels = true.shape
    two = np.concatenate([true, true[::-1]], axis=1)
    judge = Downstream(euclid, two, KEYS, has_class_token=True, views=2)
    alone = Downstream(euclid, true, KEYS, has_class_token=True)
    np.testing.assert_array_equal(judge.ratio(two + 1).numerator_N, alone.ratio(true + 1).numerator_N)
    np.testing.assert_array_equal(judge.between_images, alone.between_images)
    second_is_wrong = np.concatenate([true, np.zeros_like(true)], axis=1)
    assert (judge.ratio(second_is_wrong).numerator_N == 0).all()
    assert judge.true.shape == (images, 2 * tokens, channels)
