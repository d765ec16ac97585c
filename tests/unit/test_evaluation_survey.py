"""Channels, norms and matches of the survey: closed forms, brute force, and what must not depend on chunks."""

from __future__ import annotations

import numpy as np
import pytest

from flowkit.evaluation import survey
from flowkit.evaluation.survey import (
    FEWEST_BINS,
    MOST_BINS,
    BestMatches,
    ChannelFigures,
    ChannelSums,
    best_within,
    bin_edges,
    known,
    rounded,
    token_norms,
)


def tokens_of(images: int = 50, tokens: int = 5, channels: int = 4, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((images, tokens, channels))


def figures_of(*chunks: np.ndarray) -> ChannelFigures:
    sums = ChannelSums()
    for chunk in chunks:
        sums.add(chunk)
    return sums.figures()


def test_figures_are_those_of_all_tokens_at_once_whatever_the_chunks() -> None:
    tokens = tokens_of() ** 3 + np.array(
        [0.0, 3.0, -1e4, 0.5]
    )  # a mean of ten thousand spreads costs no precision
    flat = tokens.reshape(-1, 4)
    centred = flat - flat.mean(axis=0)
    kurtosis = (centred**4).mean(axis=0) / (centred**2).mean(axis=0) ** 2
    for chunks in ([tokens], np.split(tokens, [1, 7, 40])):
        found = figures_of(*chunks)
        assert (found.tokens, found.not_finite) == (250, 0)
        np.testing.assert_allclose(found.mean_D, flat.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.spread_D, flat.std(axis=0), rtol=1e-9)
        np.testing.assert_allclose(found.kurtosis_D, kurtosis, rtol=1e-8)
        np.testing.assert_allclose(found.offset_D, np.abs(flat.mean(axis=0)) / flat.std(axis=0), rtol=1e-9)


def test_kurtosis_has_its_closed_forms() -> None:
    """Two values alike often: 1. One token in n apart from the rest: n - 2 + 1 / (n - 1)."""
    count = 200
    alone = np.zeros(count)
    alone[7] = 5.0
    tokens = np.stack([np.resize([1.0, -1.0], count), alone], axis=1)
    np.testing.assert_allclose(figures_of(tokens).kurtosis_D, [1, count - 2 + 1 / (count - 1)], rtol=1e-9)


def test_massive_and_constant_channels_are_found_and_their_shares_add_up() -> None:
    tokens = tokens_of(channels=10)
    tokens[..., 3] *= 100
    tokens[..., 5] = 0.1
    tokens[..., 6] += 1000  # massive by its mean, which shares no variance
    found = figures_of(tokens)
    assert np.flatnonzero(found.is_massive_D).tolist() == [3, 6]
    assert np.flatnonzero(found.is_constant_D).tolist() == [5]
    assert found.spread_D[5] == 0
    assert np.isnan([found.offset_D[5], found.kurtosis_D[5]]).all()
    assert found.share_D.sum() == pytest.approx(1)
    assert found.top_share(1) == pytest.approx(found.share_D[3]) == pytest.approx(1, abs=0.01)
    assert found.top_share(10) == pytest.approx(1)


def test_a_channel_below_the_rounding_of_float16_is_constant() -> None:
    tokens = np.full((100, 2), 8.0)
    tokens[::2] += [0.001, 0.1]
    assert figures_of(tokens).is_constant_D.tolist() == [True, False]


def test_tokens_that_are_not_finite_are_counted_and_left_out() -> None:
    tokens = tokens_of()
    broken = tokens.copy()
    broken[3, 2, 1], broken[3, 2, 2], broken[9, 0, 0] = np.nan, np.inf, -np.inf
    found = figures_of(np.full((1, 5, 4), np.nan), broken)
    kept = np.delete(tokens.reshape(-1, 4), [17, 45], axis=0)
    assert (found.tokens, found.not_finite) == (248, 23)
    np.testing.assert_allclose(found.spread_D, kept.std(axis=0))
    with pytest.raises(ValueError, match="no finite token was added"):
        figures_of(np.full((2, 4), np.inf))


def test_norms_of_half_precision_do_not_overflow() -> None:
    tokens = np.full((2, 3, 4), 60_000, np.float16)
    tokens[1, 2] = [3, 0, 4, 0]
    norms = token_norms(tokens)
    assert norms.shape == (2, 3)
    assert norms[1, 2] == 5
    assert norms[0, 0] == pytest.approx(2 * float(np.float16(60_000)))


def test_edges_hold_every_value_and_grow_in_ratios_over_a_wide_range() -> None:
    narrow = bin_edges([np.linspace(20, 30, 10_000), np.linspace(22, 35, 10_000)])
    assert (narrow[0], narrow[-1], len(narrow)) == (20, 35, MOST_BINS + 1)
    np.testing.assert_allclose(np.diff(narrow), np.diff(narrow)[0])
    wide = bin_edges([np.geomspace(0.5, 800, 10_000)])
    np.testing.assert_allclose(wide[1:] / wide[:-1], wide[1] / wide[0])
    assert np.histogram(np.geomspace(0.5, 800, 10_000), wide)[0].sum() == 10_000
    assert len(bin_edges([np.arange(10_000.0), np.array([5.0, 6.0])])) == FEWEST_BINS + 1
    same = bin_edges([np.full(9, 4.0), np.array([np.nan])])
    assert same[0] < 4 < same[-1]


@pytest.mark.parametrize("similarities", [2**24, 300])
def test_best_matches_are_those_of_brute_force(similarities: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SIMILARITIES", similarities)
    generator = np.random.default_rng(1)
    query, others = (generator.standard_normal((count, 6)).astype(np.float16) for count in (23, 91))
    matches, where = BestMatches(query), np.full(23, -1)
    for start in range(0, 91, 20):
        found, rows = matches.add(others[start : start + 20])
        where[found] = start + rows
    unit = [side / np.linalg.norm(side.astype(float), axis=1, keepdims=True) for side in (query, others)]
    cosines = unit[0] @ unit[1].T
    np.testing.assert_array_equal(where, cosines.argmax(axis=1))
    np.testing.assert_allclose(matches.cosine_Q, cosines.max(axis=1), atol=2e-7)
    among = unit[0] @ unit[0].T
    np.fill_diagonal(among, -np.inf)
    np.testing.assert_allclose(best_within(query), among.max(axis=1), atol=2e-7)


def test_the_first_of_equals_is_the_match_within_a_chunk_and_over_chunks() -> None:
    query = np.array([[1.0, 2.0, 3.0]])
    matches = BestMatches(query)
    found, rows = matches.add(np.array([[0.0, 1.0, 0.0], [2.0, 4.0, 6.0], [1.0, 2.0, 3.0]]))
    assert (found.tolist(), rows.tolist()) == ([0], [1])
    assert matches.add(query)[0].tolist() == []


def test_vectors_without_direction_match_nothing() -> None:
    matches = BestMatches(np.array([[1.0, 0.0], [0.0, 0.0], [np.nan, 1.0]]))
    found, rows = matches.add(np.array([[np.inf, 1.0], [-1.0, 0.1]]))
    assert (found.tolist(), rows.tolist()) == ([0, 1], [1, 1])
    assert matches.cosine_Q[0] == pytest.approx(-0.995, abs=1e-3)
    assert matches.cosine_Q[1] == 0
    assert np.isnan(matches.cosine_Q[2])
    assert np.isnan(best_within(np.ones((1, 2)))).all()
    assert np.isnan(BestMatches(np.ones((2, 2))).cosine_Q).all()


def test_six_digits_are_kept_and_what_is_not_finite_is_not_known() -> None:
    np.testing.assert_array_equal(rounded(np.array([[1 / 3, 123456789.0]])), [[0.333333, 123457000.0]])
    assert known(float("nan")) is None
    assert known(2 / 3) == 0.666667
