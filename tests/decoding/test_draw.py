"""The draw: softmax weights and the inverse CDF."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import accumulate

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
    # A weight is off by at most half a unit of 2**-42, of which the best token has 2**42.
    np.testing.assert_allclose(weights / weights.sum(), expected, rtol=1e-9, atol=2.0**-42)
    assert weights.max() == 2**42


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30])
def test_vanishing_temperature_is_greedy_not_nan(temperature):
    """Red if a temperature that divides to infinity makes NaN."""
    scores = np.array([1.0, 3.0, -np.inf, 3.4e38, -3.4e38], np.float32)
    assert draw.weights(scores, temperature).tolist() == [0, 0, 0, 2**42, 0]


@given(st.integers(0, 2**32), st.integers(1, 1200), st.sampled_from([0.0, 0.5, 0.99]), UNIFORM)
def test_inverse_cdf_is_exact(seed, size, zeros, uniform):
    """Red if blocks shift the position, a sum is rounded, or a token of weight 0 is drawn."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 2**42, size, endpoint=True)
    weights[rng.random(size) < zeros] = 0
    weights[rng.integers(size)] = 2**42
    ends = list(accumulate(weights.tolist()))
    borders = [math.floor(end / ends[-1] * 2**53) / 2**53 for end in ends[:: size // 5 + 1]]
    for noise in (uniform, *(border for border in borders if border < 1)):
        target = Fraction(math.floor(noise * 2**53), 2**53) * ends[-1]
        expected = next(i for i, end in enumerate(ends) if end > target)
        assert draw.inverse_cdf(weights, math.floor(noise * 2**53) / 2**53) == expected
        assert weights[expected] > 0


def test_blocks_of_weight_zero_are_passed_over():
    """Red if a target on a border goes to the block before it, which has nothing to draw."""
    weights = np.zeros(1200, np.int64)
    weights[[600, 900]] = 1
    assert [draw.inverse_cdf(weights, uniform) for uniform in (0.0, 0.49, 0.5, 0.99)] == [600, 600, 900, 900]


def test_sums_of_the_largest_vocabulary_do_not_overflow():
    """Red if 2**20 equal tokens, or the product with the noise, leave 64 bits."""
    weights = draw.weights(np.zeros(draw.MAX_TOKENS, np.float32), 1.0)
    assert draw.inverse_cdf(weights, 1 - 2.0**-53) == draw.MAX_TOKENS - 1
    assert draw.inverse_cdf(weights, 0.5) == draw.MAX_TOKENS // 2


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
