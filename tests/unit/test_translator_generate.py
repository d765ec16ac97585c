"""The translator: save and load, generate, samplers, and the noise of an image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gaussian_case import CHANNELS, TOKENS, Gaussian
from gaussian_case import translator as gaussian_translator
from paired_material import FLOW, MODEL, Pairs

import flowkit
from flowkit.errors import CheckpointError, ConfigError
from flowkit.flow.noise import keyed_normal
from flowkit.flow.objective import Transport
from flowkit.sampling.sampler import parse_sampler, resolve, sample
from flowkit.training.statistics import fit_statistics
from flowkit.translator import Translator, build_network


def _translator(roughness: float = 0.1, **changed) -> Translator:
    objective = replace(FLOW, **changed)
    network = build_network(MODEL, seed=5).eval()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(roughness * torch.randn(parameter.shape, generator=generator))
    statistics = fit_statistics(Pairs(64), feature_scale="factor", start_noise=objective.start_noise)
    return Translator(network, MODEL, objective, "factor", statistics)


@pytest.fixture
def source() -> torch.Tensor:
    return Pairs(6, seed=2).source


def _count_evaluations(translator: Translator, source: torch.Tensor, **arguments) -> int:
    calls = []
    handle = translator.network.register_forward_hook(lambda *_: calls.append(1))
    translator.generate(source, **arguments)
    handle.remove()
    return len(calls)


def test_a_saved_translator_gives_the_same_tokens(tmp_path: Path, source: torch.Tensor) -> None:
    translator = _translator()
    translator.save(tmp_path / "a")
    loaded = flowkit.load(tmp_path / "a")
    assert torch.equal(
        loaded.generate(source, num_inference_steps=3), translator.generate(source, num_inference_steps=3)
    )
    loaded.save(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_tokens_come_out_at_raw_scale(source: torch.Tensor) -> None:
    translator = _translator()
    tokens = translator.generate(source, num_inference_steps=1, solver="euler")
    with torch.inference_mode():
        encoded = translator.network.encode_condition(translator.statistics.source.apply(source))
        clean = translator.network(torch.zeros_like(tokens), torch.zeros(1), encoded)
    torch.testing.assert_close(tokens, translator.statistics.target.undo(clean), atol=1e-4, rtol=1e-4)
    assert tokens.dtype == torch.float32


def test_noise_follows_the_generator(source: torch.Tensor) -> None:
    translator = _translator()

    def generate(seed: int | None) -> torch.Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return translator.generate(source, num_inference_steps=2, solver="euler", generator=generator)

    assert torch.equal(generate(1), generate(1))
    assert torch.equal(generate(None), generate(None))
    assert not torch.equal(generate(1), generate(2))


@pytest.mark.parametrize("name", ["euler-1", "midpoint-2", "heun-5"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_evaluations_are_counted(source: torch.Tensor, name: str, guidance: float) -> None:
    translator, sampler = _translator(), parse_sampler(name)
    arguments = {"num_inference_steps": sampler.steps, "solver": sampler.solver, "guidance_scale": guidance}
    counted = _count_evaluations(translator, source, **arguments)
    assert counted == translator.network_evaluations(**arguments)
    white = torch.zeros(len(source), MODEL.target_tokens, MODEL.target_width)
    made = translator.translate(source, sampler.transport(guidance), [white])
    assert made.evaluations == counted * len(source)


def test_a_regression_is_evaluated_once_whatever_is_asked(source: torch.Tensor) -> None:
    translator = _translator(kind="regression")
    assert _count_evaluations(translator, source, num_inference_steps=50, solver="heun") == 1
    assert _count_evaluations(translator, source, solver="adaptive", tolerance=1e-6, time_shift=3.0) == 1
    for solver in ("heun", "adaptive"):
        assert translator.network_evaluations(num_inference_steps=50, solver=solver) == 1
    batches = [(list("abcdef"), source)]
    (made,) = sample(translator, batches, parse_sampler("heun-50-guidance3-mean8"), seed=0)
    assert torch.equal(made.tokens_BTC, translator.generate(source))
    assert made.evaluations == len(source)
    assert resolve(parse_sampler("heun-50"), translator) == parse_sampler("direct-1")


def test_guidance_needs_a_network_trained_for_it(source: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"guidance_scale is 3\.0.*condition_dropout"):
        _translator(condition_dropout=0.0).generate(source, guidance_scale=3.0)


def test_guidance_changes_the_tokens(source: torch.Tensor) -> None:
    translator = _translator()
    plain, guided = (
        translator.generate(source, num_inference_steps=3, guidance_scale=scale) for scale in (1.0, 3.0)
    )
    assert not torch.allclose(plain, guided, atol=1e-2)


def test_a_condition_of_another_shape_is_refused(source: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(6, 4, 12\).*\[images, 5, 12\]"):
        _translator().generate(source[:, 1:])


def test_time_shift_is_that_of_the_grid(source: torch.Tensor) -> None:
    translator = _translator()
    plain, same, shifted = (
        translator.generate(source, num_inference_steps=4, solver="euler", time_shift=shift)
        for shift in (1, 1.0, 3.0)
    )
    assert torch.equal(plain, same)
    assert not torch.allclose(plain, shifted, atol=1e-3)
    one, other = (
        translator.generate(source, num_inference_steps=1, solver="euler", time_shift=shift)
        for shift in (1.0, 3.0)
    )
    assert torch.equal(one, other), "one step has nothing to shift"


def test_the_adaptive_solver_goes_where_many_steps_go(source: torch.Tensor) -> None:
    translator, source = _translator(roughness=0.02), source[:2]
    scale = float(translator.statistics.target.spread_C.mean())
    for guidance in (1.0, 2.0):
        exact = translator.generate(
            source, num_inference_steps=200, solver="midpoint", guidance_scale=guidance
        )
        for tolerance in (1e-2, 1e-3):
            tokens = translator.generate(
                source, solver="adaptive", tolerance=tolerance, guidance_scale=guidance
            )
            assert float((tokens - exact).square().mean().sqrt()) < 10 * tolerance * scale


def test_nobody_can_tell_the_cost_of_the_adaptive_solver_before(source: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="'adaptive' where no number of steps is given"):
        _translator().network_evaluations(num_inference_steps=5, solver="adaptive")


def test_the_mean_of_samples_encodes_the_condition_once(
    source: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator, encoded = _translator(), []
    encode = translator.network.encode_condition
    monkeypatch.setattr(
        translator.network, "encode_condition", lambda *given: encoded.append(1) or encode(*given)
    )
    noises = torch.randn(3, len(source), MODEL.target_tokens, MODEL.target_width)
    made = translator.translate(source, Transport("euler", 2), iter(noises))
    assert len(encoded) == 1
    each = [
        translator.generate(source, num_inference_steps=2, solver="euler", white_noise=white)
        for white in noises
    ]
    torch.testing.assert_close(made.tokens_BTC, torch.stack(each).mean(0), atol=1e-4, rtol=1e-4)


SAMPLERS = ["heun-3", "midpoint-2-shift3", "euler-2-guidance2", "euler-2-mean3", "adaptive-1"]
KEYS = [f"00000{number}.jpg" for number in range(7)]


def _sampled(translator: Translator, source: torch.Tensor, name: str, order: list[list[int]], **changed):
    """The tokens of the images in `order`, a list of batches, back in their own order."""
    batches = [([KEYS[row] for row in rows], source[rows]) for rows in order]
    done = list(sample(translator, batches, parse_sampler(name), **{"seed": 1, **changed}))
    rows = [row for batch in order for row in batch]
    assert [key for made in done for key in made.keys] == [KEYS[row] for row in rows]
    return torch.cat([made.tokens_BTC for made in done])[torch.argsort(torch.tensor(rows))]


ONE_BATCH = [[0, 1, 2, 3, 4, 5, 6]]
ORDERS = [[[0, 1], [2, 3], [4, 5], [6]], [[6, 5, 4, 3, 2, 1, 0]], [[3, 0], [6, 1, 5, 2, 4]]]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("order", ORDERS)
def test_samples_of_an_image_do_not_depend_on_the_batch(name: str, order: list[list[int]]) -> None:
    """Only the last bits of matrix products do, which libraries compute differently for other numbers of rows."""
    translator, source = _translator(roughness=0.02), Pairs(7, seed=2).source
    whole = _sampled(translator, source, name, ONE_BATCH)
    torch.testing.assert_close(_sampled(translator, source, name, order), whole, atol=1e-4, rtol=1e-4)
    for changed in ({"seed": 2}, {"draw": 3}):
        assert not torch.allclose(whole, _sampled(translator, source, name, ONE_BATCH, **changed), atol=1e-2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_bits_of_a_sample_do_not_depend_on_other_images_where_each_is_evaluated_alone(name: str) -> None:
    translator, source = _translator(roughness=0.02), Pairs(7, seed=2).source
    alone = [[row] for row in range(7)]
    tokens = _sampled(translator, source, name, alone)
    assert torch.equal(tokens, _sampled(translator, source, name, alone[::-1]))
    if name.startswith("adaptive"):
        for order in ORDERS:
            assert torch.equal(tokens, _sampled(translator, source, name, order))
        changed = source.clone()
        changed[3:] = 1e3
        assert torch.equal(tokens[:3], _sampled(translator, changed, name, ONE_BATCH)[:3])


class Elementwise(Gaussian):
    """Without matrix products, so the same bits for any number of rows."""

    def encode_condition(self, source_BTC: torch.Tensor, keep_B: torch.Tensor | None = None) -> torch.Tensor:
        return source_BTC * self.signal_C if keep_B is None else 0 * source_BTC

    def forward(self, seen_BTC: torch.Tensor, t_B: torch.Tensor, mean_BTC: torch.Tensor) -> torch.Tensor:
        return mean_BTC + torch.tanh(seen_BTC * self.spread_C) * t_B.reshape(-1, 1, 1)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("order", ORDERS)
def test_nothing_but_the_network_ever_sees_two_images_at_once(
    name: str, order: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = gaussian_translator(Elementwise())
    monkeypatch.setattr(type(translator.statistics.noise), "color", lambda self, white: white)
    source = torch.randn(7, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(3))
    whole = _sampled(translator, source, name, ONE_BATCH)
    assert torch.equal(_sampled(translator, source, name, order), whole)


def test_start_noise_is_that_of_seed_key_and_draw() -> None:
    """Whatever else is in the batch: with a network that returns nothing, what one step moves away from is x_0."""
    seen = []

    class Watched(Elementwise):
        def forward(self, seen_BTC: torch.Tensor, t_B: torch.Tensor, mean_BTC: torch.Tensor) -> torch.Tensor:
            seen.append(seen_BTC)
            return super().forward(seen_BTC, t_B, mean_BTC)

    translator = gaussian_translator(Watched(), replace(FLOW, time_gate=False))
    source = torch.zeros(7, TOKENS, CHANNELS)
    _sampled(translator, source, "euler-1-mean2", ORDERS[2], seed=5, draw=3)
    expected = {
        (key, draw): keyed_normal([(5, key, draw)], (TOKENS, CHANNELS), "cpu")[0]
        for key in KEYS
        for draw in (3, 4)
    }
    asked = [([3, 0], 3), ([3, 0], 4), ([6, 1, 5, 2, 4], 3), ([6, 1, 5, 2, 4], 4)]
    for (rows, draw), found in zip(asked, seen, strict=True):
        assert torch.equal(found, torch.stack([expected[KEYS[row], draw] for row in rows]))


@pytest.mark.parametrize("name", ["heun-4", "adaptive-1"])
def test_an_image_without_finite_tokens_leaves_the_others_as_they_are(name: str) -> None:
    translator, source = _translator(roughness=0.02), Pairs(7, seed=2).source
    broken = source.clone()
    broken[2] = torch.nan
    kept = [0, 1, 3, 4, 5, 6]
    tokens = _sampled(translator, broken, name, ONE_BATCH)
    assert tokens[2].isnan().all()
    torch.testing.assert_close(tokens[kept], _sampled(translator, source, name, ONE_BATCH)[kept])


def test_a_flow_has_no_direct_estimate() -> None:
    with pytest.raises(ConfigError, match="euler-1"):
        resolve(parse_sampler("direct-1"), _translator())


@pytest.mark.parametrize("damage", ["config", "model", "statistics", "schema", "key", "architecture"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    _translator().save(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    if damage == "config":
        (tmp_path / "config.json").unlink()
    elif damage in ("model", "statistics"):
        file = tmp_path / f"{damage}.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "schema":
        described["schema"] = 99
    elif damage == "key":
        described["network"]["dropout"] = 0.1
    else:
        described["network"]["architecture"] = "unet"
    if damage in ("schema", "key", "architecture"):
        (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Translator.load(tmp_path)
