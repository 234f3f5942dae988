"""Filters against transformers' warpers (run in float64) and against brute force where ties decide."""

from __future__ import annotations

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


def possible(scores: np.ndarray, kept: np.ndarray) -> list[int]:
    """Which of the kept can be drawn at all: keeping an impossible token changes nothing."""
    return [i for i in kept.tolist() if scores[i] > -np.inf]


@given(distinct_scores(), st.integers(1, 2000))
def test_top_k_keeps_what_transformers_keeps(scores, k):
    """Red if selection by block maxima loses one of the k best, or k above V fails."""
    assert possible(scores, filters.top_k(scores, k)) == kept_by(TopKLogitsWarper(k), scores)


@given(distinct_scores(), SHARES)
def test_top_p_keeps_what_transformers_keeps(scores, mass):
    """Red if the bound that drops improbable tokens, or the bucket selection, cuts the nucleus wrongly."""
    kept = filters.top_p(draw.weights(scores, 1.0), mass)
    assert possible(scores, kept) == kept_by(TopPLogitsWarper(mass), scores)


@given(distinct_scores(), SHARES)
def test_min_p_keeps_what_transformers_keeps(scores, share):
    """Red if the threshold is not relative to the most probable token."""
    kept = filters.min_p(draw.weights(scores, 1.0), share)
    assert kept.tolist() == kept_by(MinPLogitsWarper(share), scores)


@given(distinct_scores(), SHARES)
def test_typical_p_keeps_what_transformers_keeps(scores, mass):
    """Red if tokens are not taken in order of their distance from the entropy."""
    kept = filters.typical_p(draw.weights(scores, 1.0), mass)
    assert possible(scores, kept) == kept_by(TypicalLogitsWarper(mass), scores)


@st.composite
def tied_weights(draw_):
    """float64[V] of few distinct values, the largest 1, zeros among them."""
    levels = [
        1.0,
        *draw_(st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.3000001, 0.2999999, 0.9999999]), max_size=5)),
    ]
    size = draw_(st.integers(1, 700))
    picks = np.random.default_rng(draw_(st.integers(0, 2**32))).integers(0, len(levels), size)
    weights = np.array(levels)[picks]
    weights[draw_(st.integers(0, size - 1))] = 1.0
    return weights


@given(tied_weights(), st.integers(1, 800))
def test_top_k_breaks_ties_by_id_and_keeps_exactly_k(weights, k):
    """Red if equal scores at the border are kept by chance: two backends would then draw differently."""
    by_rank = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    assert filters.top_k(weights, k).tolist() == sorted(by_rank[:k])


@given(tied_weights(), st.sampled_from([1e-12, 0.0371, 0.3717, 0.6317, 0.9531, 0.9999, 1.0]))
def test_top_p_takes_the_shortest_prefix_and_breaks_ties_by_id(weights, mass):
    """Red if the nucleus holds a token more or less than needed, or not the lowest of equal ids."""
    by_rank = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    total, reached, expected = weights.sum(), 0.0, []
    for i in by_rank:
        if reached >= mass * total * (1 - 1e-12) or weights[i] == 0.0:
            break
        expected.append(i)
        reached += weights[i]
    kept = filters.top_p(weights, mass)
    assert [i for i in kept.tolist() if weights[i] > 0] == sorted(expected)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 49152])
def test_every_filter_keeps_at_least_one_of_equal_tokens(size):
    """Red if a flat row (all logits equal) empties a filter or overruns its last bucket."""
    weights = np.ones(size)
    assert filters.top_k(weights, 1).tolist() == [0]
    assert filters.top_p(weights, 1e-300).tolist() == [0]
    assert filters.typical_p(weights, 1e-300).tolist() == [0]
    assert filters.min_p(weights, 1.0).tolist() == list(range(size))
    assert len(filters.top_p(weights, 1.0)) == size


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
        kept = keep(weights, amount)
        ids, weights = ids[kept], weights[kept]
    assert possible(scores, ids) == np.flatnonzero(chained[0].numpy() > -np.inf).tolist()
