"""Filters against transformers' warpers (run in float64) and against brute force where ties decide."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from penstock.decoding import draw, filters

SHARES = st.floats(0.001, 0.999)


@st.composite
def distinct_scores(draw_):
    """float32[V] without ties, from nearly flat to one token far ahead; some tokens impossible."""
    size = draw_(st.integers(2, 1500))
    rng = np.random.default_rng(draw_(st.integers(0, 2**32)))
    scores = rng.standard_normal(size) * draw_(st.sampled_from([0.01, 1.0, 3.0, 30.0]))
    scores = np.unique(scores.astype(np.float32))
    rng.shuffle(scores)
    if draw_(st.booleans()) and len(scores) > 3:
        scores[rng.choice(len(scores), len(scores) // 3, replace=False)] = -np.inf
    return scores


def kept_by(warper, scores: np.ndarray) -> list[int]:
    out = warper(None, torch.tensor(scores[None].astype(np.float64)))[0].numpy()
    return np.flatnonzero(out > -np.inf).tolist()


def drawable(scores: np.ndarray, kept) -> list[int]:
    """Which of the kept can be drawn at all: keeping an impossible token changes nothing."""
    weights = draw.weights(scores, 1.0)
    return [i for i in kept if weights[i] > 0]


@given(distinct_scores(), st.integers(1, 2000))
def test_top_k_keeps_what_transformers_keeps(scores, k):
    """Red if selection by block maxima loses one of the k best, or k above V fails."""
    kept = [i for i in filters.top_k(scores, k).tolist() if scores[i] > -np.inf]
    assert kept == kept_by(TopKLogitsWarper(k), scores)


@given(distinct_scores(), SHARES)
def test_top_p_keeps_what_transformers_keeps(scores, mass):
    """Red if the bound that drops improbable tokens, or the bucket selection, cuts the nucleus wrongly."""
    kept = filters.top_p(scores, draw.weights(scores, 1.0), mass)
    assert drawable(scores, kept) == drawable(scores, kept_by(TopPLogitsWarper(mass), scores))


@given(distinct_scores(), SHARES)
def test_min_p_keeps_what_transformers_keeps(scores, share):
    """Red if the threshold is not relative to the most probable token."""
    kept = filters.min_p(draw.weights(scores, 1.0), share)
    assert drawable(scores, kept) == drawable(scores, kept_by(MinPLogitsWarper(share), scores))


@given(distinct_scores(), SHARES)
def test_typical_p_keeps_what_transformers_keeps(scores, mass):
    """Red if tokens are not taken in order of their distance from the entropy."""
    kept = filters.typical_p(scores, draw.weights(scores, 1.0), mass)
    assert drawable(scores, kept) == drawable(scores, kept_by(TypicalLogitsWarper(mass), scores))


@st.composite
def tied_scores(draw_):
    """float32[V] of few distinct values, some next to each other, -inf among them."""
    near = float(np.nextafter(np.float32(-1.0), np.float32(0)))
    levels = draw_(st.lists(st.sampled_from([-np.inf, 0.0, -1e-7, -1.0, near, -2.0, -40.0]), max_size=5))
    size = draw_(st.integers(1, 700))
    picks = np.random.default_rng(draw_(st.integers(0, 2**32))).integers(0, len(levels) + 1, size)
    scores = np.array([1.0, *levels], np.float32)[picks]
    scores[draw_(st.integers(0, size - 1))] = 1.0
    return scores


MASSES = st.sampled_from([1e-12, 0.0371, 0.25, 0.3717, 0.5, 0.6317, 0.9531, 0.9999, 1.0])


def shortest_prefix(order: list[int], weights: np.ndarray, mass: float) -> list[int]:
    """Tokens in order until they hold `mass` of the total, in Python's integers."""
    goal, reached, kept = mass * float(sum(weights.tolist())), 0, []
    for i in order:
        if weights[i] and (not kept or reached < goal):
            kept.append(i)
            reached += int(weights[i])
    return sorted(kept)


@given(tied_scores(), st.integers(1, 800))
def test_top_k_breaks_ties_by_id_and_keeps_exactly_k(scores, k):
    """Red if equal scores at the border are kept by chance: two backends would then draw differently."""
    by_rank = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert filters.top_k(scores, k).tolist() == sorted(by_rank[:k])


@given(tied_scores(), MASSES, st.sampled_from([1e-3, 0.5, 1.0, 1e9]))
def test_top_p_takes_the_shortest_prefix_and_breaks_ties_by_id(scores, mass, temperature):
    """Red if the nucleus holds a token more or less than needed, or not the lowest of equal ids."""
    weights = draw.weights(scores, temperature)
    by_rank = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept = filters.top_p(scores, weights, mass).tolist()
    assert [i for i in kept if weights[i] > 0] == shortest_prefix(by_rank, weights, mass)


@given(tied_scores(), MASSES, st.sampled_from([0.5, 1.0, 1e9]))
def test_typical_p_takes_the_shortest_prefix_and_breaks_ties_by_id(scores, mass, temperature):
    """Red if a bucket of equal distances is cut anywhere but by id."""
    weights = draw.weights(scores, temperature)
    shifted = scores.astype(np.float64) - 1.0
    mean = math.fsum(w * x for w, x in zip(weights.tolist(), shifted.tolist(), strict=True) if w)
    cost = abs(shifted - mean / int(weights.sum()))
    cost = cost.round(9)  # tokens on both sides of the mean tie for the rounding of it; none do here
    by_rank = sorted(range(len(scores)), key=lambda i: (cost[i], i))
    kept = filters.typical_p(scores, weights, mass).tolist()
    assert [i for i in kept if weights[i] > 0] == shortest_prefix(by_rank, weights, mass)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 49152])
def test_every_filter_keeps_at_least_one_of_equal_tokens(size):
    """Red if a flat row (all logits equal) empties a filter or overruns its last bucket."""
    scores = np.full(size, 3.5, np.float32)
    weights = draw.weights(scores, 1.0)
    assert filters.top_k(scores, 1).tolist() == [0]
    assert filters.top_p(scores, weights, 1e-300).tolist() == [0]
    assert filters.typical_p(scores, weights, 1e-300).tolist() == [0]
    assert filters.min_p(weights, 1.0).tolist() == list(range(size))
    assert len(filters.top_p(scores, weights, 1.0)) == size


@given(distinct_scores(), st.integers(1, 100), SHARES, SHARES, SHARES)
def test_filters_chain_like_transformers(scores, k, mass, share, typical):
    """Red if a filter sees the distribution before the earlier filters' cut, not renormalized after it."""
    chained = torch.tensor(scores[None].astype(np.float64))
    for warper in (
        TopKLogitsWarper(k),
        TopPLogitsWarper(mass),
        MinPLogitsWarper(share),
        TypicalLogitsWarper(typical),
    ):
        chained = warper(None, chained)
    ids = filters.top_k(scores, k)
    weights = draw.weights(scores[ids], 1.0)
    for keep, amount in ((filters.top_p, mass), (filters.min_p, share), (filters.typical_p, typical)):
        kept = keep(weights, amount) if keep is filters.min_p else keep(scores[ids], weights, amount)
        ids, weights = ids[kept], weights[kept]
    assert drawable(scores, ids) == drawable(scores, np.flatnonzero(chained[0].numpy() > -np.inf))
