"""The draw: softmax weights and the inverse CDF."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.decoding import draw, philox

UNIFORM = st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1 - 2.0**-53, 0.5]))


@given(st.integers(0, 2**32), st.integers(1, 1200), st.sampled_from([0.01, 0.7, 1.0, 3.0, 100.0]))
def test_weights_are_softmax_with_the_largest_at_one(seed, size, temperature):
    """Red if temperature divides the wrong thing or the shift by the maximum is lost."""
    scores = (np.random.default_rng(seed).standard_normal(size) * 8).astype(np.float32)
    weights = draw.weights(scores, temperature)
    expected = torch.softmax(torch.tensor(scores, dtype=torch.float64) / temperature, dim=0).numpy()
    np.testing.assert_allclose(weights / weights.sum(), expected, rtol=1e-9, atol=1e-300)
    assert weights.max() == 1.0


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30])
def test_vanishing_temperature_is_greedy_not_nan(temperature):
    """Red if a temperature that divides to infinity makes NaN."""
    scores = np.array([1.0, 3.0, -np.inf, 3.4e38, -3.4e38], np.float32)
    assert draw.weights(scores, temperature).tolist() == [0, 0, 0, 1, 0]


@given(st.lists(st.sampled_from([0, 0, 1, 2, 3, 5]), min_size=1, max_size=900), UNIFORM)
def test_inverse_cdf_finds_the_first_id_above_the_target(integers, uniform):
    """Red if blocks shift the position. Integer weights have exact sums, so plain Python is exact too."""
    weights = np.array([*integers, 1], np.float64)
    target = uniform * weights.sum()
    expected = next(i for i in range(len(weights)) if sum(weights[: i + 1].tolist()) > target)
    assert draw.inverse_cdf(weights, uniform) == expected


def test_blocks_of_weight_zero_are_passed_over():
    """Red if a target on a border goes to the block before it, which has nothing to draw."""
    weights = np.zeros(1200)
    weights[[600, 900]] = 1.0
    assert [draw.inverse_cdf(weights, uniform) for uniform in (0.0, 0.49, 0.5, 0.99)] == [600, 600, 900, 900]


@given(st.integers(0, 2**32), st.integers(1, 2000), UNIFORM)
def test_a_token_of_weight_zero_is_never_drawn(seed, size, uniform):
    """Red if rounding at a block's end or at uniform = 1 - 2**-53 lands on a masked token."""
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.standard_normal(size) * 10)
    weights[rng.random(size) < 0.5] = 0.0
    weights[rng.integers(size)] = 1e-3
    borders = np.minimum(weights.cumsum() / weights.sum(), 1 - 2.0**-53)
    for target in (uniform, *borders[:: size // 5 + 1].tolist()):
        assert weights[draw.inverse_cdf(weights, target)] > 0


def test_target_between_a_blocks_sum_and_its_running_sum_stays_in_the_block():
    """Red if a block's two sums, rounded differently, leave a target that finds no token."""
    rng = np.random.default_rng(0)
    met = 0
    for _ in range(300):
        weights = rng.random(512)
        weights[255:] = 0.0  # the first block holds everything, and ends in a token that must not be drawn
        block_sum, running = np.add.reduceat(weights, [0])[0], weights.cumsum()[-1]
        uniform = np.nextafter(1.0, 0)
        met += block_sum * uniform >= running
        assert draw.inverse_cdf(weights, uniform) <= 254
    assert met, "no example has the block's sum above its running sum; the test no longer tests anything"


def test_draws_follow_the_distribution():
    """Red if the noise or the CDF is biased: chi-square over 40,000 seeds and over as many positions."""
    rng = np.random.default_rng(1)
    scores = (rng.standard_normal(300) * 1.5).astype(np.float32)
    weights = draw.weights(scores, 0.9)
    n = 40_000
    many, same = np.arange(n, dtype=np.uint64), np.full(n, 5, np.uint64)
    for noise in (philox.uniform(many, same), philox.uniform(same, many)):
        counts = np.bincount([draw.inverse_cdf(weights, u) for u in noise.tolist()], minlength=300)
        expected = weights / weights.sum() * n
        frequent = expected >= 5
        counts = np.append(counts[frequent], counts[~frequent].sum())
        expected = np.append(expected[frequent], expected[~frequent].sum())
        degrees = len(counts) - 1
        assert ((counts - expected) ** 2 / expected).sum() < degrees + 4 * np.sqrt(2 * degrees)
