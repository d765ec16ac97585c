"""The exactly solvable case: the conditional mean, exact samples, the mean of samples, and distances to the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian_case import CHANNELS, FLOW, TOKENS, Gaussian, translator
from torch import Tensor

from flowkit.evaluation.distribution import frechet_distance
from flowkit.evaluation.moments import moments
from flowkit.flow.noise import fit_target_covariance
from flowkit.sampling.sampler import parse_sampler, sample

IMAGES = 6000
MANY_STEPS = ("midpoint-16", "midpoint-16-shift3", "heun-50", "adaptive-4", "euler-400")
KEYS = [f"{number:012d}" for number in range(IMAGES)]


@pytest.fixture(scope="module")
def network() -> Gaussian:
    return Gaussian()


@pytest.fixture(scope="module")
def data(network: Gaussian) -> tuple[Tensor, Tensor]:
    return network.draw(IMAGES)


def _sampled(network: Gaussian, source: Tensor, name: str, draw: int = 0, **changed) -> Tensor:
    model = translator(network, replace(FLOW, **changed))
    (made,) = sample(model, [(KEYS[: len(source)], source)], parse_sampler(name), seed=0, draw=draw)
    return made.tokens_BTC


def _r2(predicted: Tensor, target: Tensor, network: Gaussian) -> float:
    return 1 - float((predicted - target).square().sum() / (target - network.offset_C).square().sum())


def _distance(tokens: Tensor, network: Gaussian) -> float:
    """Squared Frechet distance of tokens to the law of the targets."""
    return frechet_distance(
        moments(tokens.numpy(), network.offset_C.double().numpy()), network.moments(spread=True)
    )


def test_one_euler_step_is_the_conditional_mean(network: Gaussian, data: tuple[Tensor, Tensor]) -> None:
    source, target = data
    tokens = _sampled(network, source, "euler-1")
    torch.testing.assert_close(tokens, network.encode_condition(source), rtol=1e-5, atol=1e-5)
    assert _r2(tokens, target, network) == pytest.approx(network.r2_of_mean, abs=0.005)


@pytest.mark.parametrize("name", MANY_STEPS)
def test_many_steps_are_the_exact_flow(network: Gaussian, data: tuple[Tensor, Tensor], name: str) -> None:
    """Each sample, not their law alone: the flow carries x_0 to mu + S^1/2 x_0."""
    source = data[0][:64]
    model = translator(network)
    white = torch.randn(64, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(5))
    transport = parse_sampler(name).transport()
    tokens = model.translate(source, transport, [white]).tokens_BTC
    exact = network.carried(network.encode_condition(source), white)
    assert float((tokens - exact).square().mean().sqrt()) < 2.5e-3


@pytest.mark.parametrize("name", ["midpoint-16", "heun-50"])
def test_exact_samples_pay_for_their_law_with_twice_the_error(
    network: Gaussian, data: tuple[Tensor, Tensor], name: str
) -> None:
    """R2(sample) = 2 R2(mean) - 1, with the mean, covariance and distribution of the targets."""
    source, target = data
    tokens = _sampled(network, source, name)
    assert _r2(tokens, target, network) == pytest.approx(2 * network.r2_of_mean - 1, abs=0.01)
    found, law = tokens.reshape(-1, CHANNELS).double(), network.moments(spread=True).covariance()
    bound = 4 * np.sqrt(law.max() / len(found))
    assert float((found.mean(0) - network.offset_C).abs().max()) < bound
    assert np.abs(np.cov(found.numpy().T) - law).max() < 2 * law.max() * bound
    floor = _distance(target, network)
    assert _distance(tokens, network) < 3 * floor < 0.05 * network.distance_of_mean


def test_distance_of_the_conditional_mean_is_the_closed_form(
    network: Gaussian, data: tuple[Tensor, Tensor]
) -> None:
    exact = frechet_distance(network.moments(spread=False), network.moments(spread=True))
    assert exact == pytest.approx(network.distance_of_mean, rel=1e-6)
    tokens = _sampled(network, data[0], "euler-1")
    assert _distance(tokens, network) == pytest.approx(network.distance_of_mean, rel=0.05)


def test_more_steps_go_from_the_mean_to_the_law(network: Gaussian, data: tuple[Tensor, Tensor]) -> None:
    source, target = data
    made = [_sampled(network, source, name) for name in ("euler-1", "euler-2", "euler-4", "euler-16")]
    r2 = [_r2(tokens, target, network) for tokens in made]
    distances = [_distance(tokens, network) for tokens in made]
    assert r2 == sorted(r2, reverse=True)
    assert distances == sorted(distances, reverse=True)


@pytest.mark.parametrize("count", [2, 4, 16])
def test_the_mean_of_samples_goes_back_to_the_conditional_mean(
    network: Gaussian, data: tuple[Tensor, Tensor], count: int
) -> None:
    """R2 = 1 - (1 - R2(mean)) (1 + 1 / K)."""
    source, target = data
    tokens = _sampled(network, source[:3000], f"midpoint-6-mean{count}")
    expected = 1 - (1 - network.r2_of_mean) * (1 + 1 / count)
    assert _r2(tokens, target[:3000], network) == pytest.approx(expected, abs=0.01)


def test_the_mean_of_samples_is_that_of_the_first_draws(
    network: Gaussian, data: tuple[Tensor, Tensor]
) -> None:
    source = data[0][:20]
    draws = torch.stack([_sampled(network, source, "heun-4", draw) for draw in range(3)])
    torch.testing.assert_close(_sampled(network, source, "heun-4-mean3"), draws.mean(0))
    assert float(draws.std(0).min()) > 1e-3, "each draw has noise of its own"


def test_start_noise_of_any_covariance_ends_in_the_law_of_the_targets(
    network: Gaussian, data: tuple[Tensor, Tensor]
) -> None:
    """E[x_1 | x_t, c] of start noise with covariance W: t S (t^2 S + (1 - t)^2 W)^-1 in the place of the gain."""
    source, target = data
    rows = (target - network.offset_C).reshape(-1, CHANNELS)
    covariance_CC = rows.T @ rows / len(rows)
    noise = fit_target_covariance(
        torch.eye(TOKENS) * covariance_CC.diagonal().mean(),
        covariance_CC,
        float(covariance_CC.diagonal().mean()),
    )

    class Colored(Gaussian):
        def forward(self, seen_BTC: Tensor, t_B: Tensor, mean_BTC: Tensor) -> Tensor:
            t = float(t_B)
            spread_CC = self.basis_CC * self.spread_C.square() @ self.basis_CC.T
            noise_CC = noise.channels_CC @ noise.channels_CC.T
            gain_CC = t * torch.linalg.solve(
                t * t * spread_CC + (1 - t) ** 2 * noise_CC, spread_CC, left=False
            )
            x_BTC = seen_BTC / t if t else torch.zeros_like(seen_BTC)
            return mean_BTC + (x_BTC - t * mean_BTC) @ gain_CC.T

    model = translator(Colored(), replace(FLOW, start_noise="target_covariance"), noise)
    (made,) = sample(model, [(KEYS, source)], parse_sampler("midpoint-16"), seed=0)
    assert _distance(made.tokens_BTC, network) < 3 * _distance(target, network)
    assert _r2(made.tokens_BTC, target, network) == pytest.approx(2 * network.r2_of_mean - 1, abs=0.01)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_leads_from_the_null_mean_through_the_conditional_one(
    network: Gaussian, data: tuple[Tensor, Tensor], scale: float
) -> None:
    source = data[0][:50]
    mean, null = network.encode_condition(source), network.offset_C
    guided = _sampled(network, source, f"euler-1-guidance{scale}")
    torch.testing.assert_close(guided, null + scale * (mean - null), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["euler-3", "midpoint-5", "heun-20", "adaptive-3"])
def test_a_network_that_predicts_the_velocity_gives_the_same_samples(
    network: Gaussian, data: tuple[Tensor, Tensor], name: str
) -> None:
    class Velocity(Gaussian):
        def forward(self, x_BTC: Tensor, t_B: Tensor, mean_BTC: Tensor) -> Tensor:
            return (super().forward(t_B * x_BTC, t_B, mean_BTC) - x_BTC) / (1 - t_B)

    source = data[0][:20]
    model = translator(Velocity(), replace(FLOW, prediction="velocity", time_gate=False))
    (made,) = sample(model, [(KEYS[:20], source)], parse_sampler(name), seed=0)
    torch.testing.assert_close(made.tokens_BTC, _sampled(network, source, name), rtol=1e-4, atol=1e-4)
