"""The straight path: its identities, its time samples and its noise."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowkit.flow import noise, path, time_sampling
from flowkit.flow.scale import fit_scale

B, T, C = 6, 5, 7


@pytest.fixture
def ends() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_0, x_1 = torch.randn(2, B, T, C, generator=generator, dtype=torch.float64)
    return x_0, x_1, torch.linspace(0, 0.9, B, dtype=torch.float64)


def test_data_end_follows_from_any_point_and_its_velocity(ends) -> None:
    x_0, x_1, t = ends
    x_t, v = path.interpolate(x_0, x_1, t), path.velocity(x_0, x_1)
    torch.testing.assert_close(path.clean_estimate(x_t, v, t), x_1)
    torch.testing.assert_close(path.velocity_from_clean(x_1, x_t, t), v)


def test_path_begins_at_noise_and_ends_at_data(ends) -> None:
    x_0, x_1, _ = ends
    torch.testing.assert_close(path.interpolate(x_0, x_1, torch.zeros(B)), x_0)
    torch.testing.assert_close(path.interpolate(x_0, x_1, torch.ones(B)), x_1)


def test_velocity_from_clean_stays_finite_at_the_data_end(ends) -> None:
    x_0, x_1, _ = ends
    v = path.velocity_from_clean(x_1, x_0, torch.ones(B))
    torch.testing.assert_close(v, (x_1 - x_0) / path.MINIMUM_REMAINING)


def test_gate_hides_the_noise_at_zero(ends) -> None:
    x_0, _, _ = ends
    assert not path.gated(x_0, torch.zeros(B)).any()


@given(
    share=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), first=st.integers(0, 1000), images=st.integers(1, 64)
)
def test_any_run_of_images_holds_the_share_at_zero(share: float, first: int, images: int) -> None:
    at_zero = sum(time_sampling.is_at_zero(index, share) for index in range(first, first + images))
    assert abs(at_zero - share * images) <= 1


@pytest.mark.parametrize("name", sorted(time_sampling.TIME_DISTRIBUTIONS))
def test_times_lie_in_the_unit_interval_and_have_the_mean_of_their_density(name: str) -> None:
    t = time_sampling.times(
        torch.rand(4000, generator=torch.Generator().manual_seed(1)), distribution=name, share_at_zero=0.0
    )
    assert ((t >= 0) & (t <= 1)).all()
    assert abs(float(t.mean()) - 0.5) < 0.02


@pytest.mark.parametrize("shape", [(0.5, 0.5), (1.0, 1.0), (2.0, 5.0), (0.5, 3.0), (8.0, 2.0)])
def test_beta_times_have_the_quantiles_of_their_density(shape: tuple[float, float]) -> None:
    u = torch.linspace(0.001, 0.999, 2001, dtype=torch.float64)
    t = time_sampling.times(u, distribution="beta", share_at_zero=0.0, beta=shape)
    expected = torch.from_numpy(scipy.stats.beta.ppf(u.numpy(), *shape))
    torch.testing.assert_close(t, expected, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("shape", [(0.5, 0.5), (2.5, 8.0), (4.0, 2.5), (8.0, 8.0), (10.0, 6.0)])
def test_beta_times_rise_from_end_to_end(shape: tuple[float, float]) -> None:
    """The outermost cells hold so little that the sum of their density no longer grows."""
    outer = torch.tensor([0, 1e-7, 1e-5, 1e-4])
    u = torch.cat((outer, torch.linspace(0.001, 0.999, 999), 1 - outer.flip(0)[:-1]))
    t = time_sampling.times(u, distribution="beta", share_at_zero=0.0, beta=shape)
    assert ((t >= 0) & (t <= 1)).all()
    assert (t.diff() >= 0).all()


def test_beta_one_half_is_u_shaped() -> None:
    u = torch.rand(20000, generator=torch.Generator().manual_seed(2))
    t = time_sampling.times(u, distribution="beta", share_at_zero=0.0)
    assert abs(float(t.var()) - 1 / 8) < 0.005  # variance of Beta(1/2, 1/2)


def test_unknown_time_distribution_is_named() -> None:
    with pytest.raises(ValueError, match=r"'cosine'.*uniform"):
        time_sampling.times(torch.rand(2), distribution="cosine", share_at_zero=0.0)


def test_noise_of_an_image_is_a_function_of_its_key_alone() -> None:
    together = noise.keyed_normal([(3, 1), (3, 2), (3, 9)], (T, C), "cpu")
    alone = noise.keyed_normal([(3, 9)], (T, C), "cpu")
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=0)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(
        noise.keyed_normal([(1, 32)], (T, C), "cpu"), noise.keyed_normal([(13, 2)], (T, C), "cpu")
    )


def test_names_and_numbers_in_a_key_are_never_taken_for_each_other() -> None:
    keys = [(1, "7", 0), (1, 7, 0), (1, "7,0"), (1, '7",0'), ("1", "7", 0), (1, "7", 1), (17, 0), (1, "ü", 0)]
    noises = noise.keyed_normal(keys, (1,), "cpu").flatten().tolist()
    assert len(set(noises)) == len(keys)


def test_start_noise_takes_the_covariance_it_was_fitted_to() -> None:
    generator = torch.Generator().manual_seed(4)
    a, b = torch.randn(T, T, generator=generator), torch.randn(C, C, generator=generator)
    covariance_TT, covariance_CC = a @ a.T, b @ b.T
    scale = covariance_CC.diagonal().mean()
    covariance_TT = covariance_TT / covariance_TT.diagonal().mean() * scale
    start = noise.fit_target_covariance(covariance_TT, covariance_CC, float(scale))
    drawn = start.color(torch.randn(40000, T, C, generator=generator))
    found_CC = torch.einsum("btc,btd->cd", drawn, drawn) / (len(drawn) * T)
    found_TT = torch.einsum("btc,bsc->ts", drawn, drawn) / (len(drawn) * C)
    torch.testing.assert_close(found_CC, covariance_CC, rtol=0.05, atol=0.03 * float(scale))
    torch.testing.assert_close(found_TT, covariance_TT, rtol=0.05, atol=0.03 * float(scale))


def test_isotropic_start_noise_is_white() -> None:
    white = torch.randn(B, T, C)
    torch.testing.assert_close(noise.isotropic(T, C).color(white), white)


@pytest.mark.parametrize("kind", ["none", "factor", "standardize"])
def test_scale_is_undone_exactly(kind: str) -> None:
    x = torch.randn(B, T, C, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 30 - 4
    scale = fit_scale(kind, x.mean((0, 1)), x.square().mean((0, 1)))
    torch.testing.assert_close(scale.undo(scale.apply(x)), x)
    applied = scale.apply(x)
    if kind == "factor":
        assert abs(float(applied.square().mean()) - 1) < 1e-9
    if kind == "standardize":
        torch.testing.assert_close(applied.mean((0, 1)), torch.zeros(C, dtype=torch.float64))
        torch.testing.assert_close(applied.std((0, 1), correction=0), torch.ones(C, dtype=torch.float64))


def test_channels_count_as_the_final_norm_of_the_target_weighs_them() -> None:
    x = torch.randn(B, T, C, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 30 - 4
    weight = torch.linspace(-2, 3, C, dtype=torch.float64)
    scale = fit_scale("target_norm", x.mean((0, 1)), x.square().mean((0, 1)), weight)
    applied = scale.apply(x)
    torch.testing.assert_close(scale.undo(applied), x)
    assert float(applied.square().mean()) == pytest.approx(1)
    shares = applied / (x * weight.abs())
    torch.testing.assert_close(shares, shares[0, 0, 0].expand_as(shares))


def test_a_norm_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="4 channels, its tokens have 7"):
        fit_scale("target_norm", torch.zeros(C), torch.ones(C), torch.ones(4))


def test_a_constant_channel_is_not_blown_up() -> None:
    mean = torch.tensor([2.0, 0.0])
    scale = fit_scale("standardize", mean, torch.tensor([4.0, 1.0]))
    torch.testing.assert_close(scale.apply(torch.tensor([[[2.0, 3.0]]])), torch.tensor([[[0.0, 3.0]]]))
