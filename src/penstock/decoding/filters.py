"""Filters: which tokens a draw may still choose.

Every filter takes one row and returns the positions it keeps, ascending, so that filters chain on ever
shorter arrays. Each keeps at least one token, and decides ties by token id (the lower id stays), so that
the result is defined to the bit. None sorts a whole row: the sets are found by selection, in linear time.

`scores` are float32[m] before temperature and give the order; `weights` are what temperature makes of them
(draw.weights), int64[m], and give the mass: whole numbers, so that sums do not depend on their order.
"""

from __future__ import annotations

import math

import numpy as np

from penstock.decoding.draw import UNIT

_BLOCK = 256  # entries per block maximum; 192 maxima stand for a vocabulary of 49,152
_BUCKETS = 2000


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k largest scores (all if k exceeds their number), ascending.

    scores: float[m]; k >= 1. Of equal scores at the border the lower positions stay, so that exactly
    min(k, m) remain and k = 1 is greedy (transformers keeps all the equal ones).
    """
    size = len(scores)
    if k >= size:
        return np.arange(size)
    candidates = _at_least_top_k(scores, k)
    values = scores if len(candidates) == size else scores[candidates]
    border = np.partition(values, len(values) - k)[len(values) - k]
    keep = values > border
    ties = np.flatnonzero(values == border)
    keep[ties[: k - np.count_nonzero(keep)]] = True
    return candidates[keep]


def _at_least_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of a small superset of the k largest.

    The k-th largest block maximum is a lower bound of the k-th largest score: k blocks hold at least one
    score as large. That is several times cheaper than selecting from the whole row.
    """
    num_blocks = len(scores) // _BLOCK
    if k > num_blocks:
        return np.arange(len(scores))
    maxima = scores[: num_blocks * _BLOCK].reshape(num_blocks, _BLOCK).max(axis=1)
    bound = np.partition(maxima, num_blocks - k)[num_blocks - k]
    return np.flatnonzero(scores >= bound)


def top_p(scores: np.ndarray, weights: np.ndarray, mass: float) -> np.ndarray:
    """Positions of the smallest set of most probable tokens whose probability reaches `mass`.

    Nucleus sampling, Holtzman et al. 2019 (arXiv:1904.09751). 0 < mass <= 1.
    """
    total = int(weights.sum())
    # Tokens below this bound hold less than 1 - mass together, so the nucleus is complete without them;
    # halved to stay clear of rounding.
    bound = 0.5 * (1.0 - mass) * total / len(weights)
    candidates = np.flatnonzero(weights >= max(1.0, bound))
    cost = np.subtract(scores.max(), scores[candidates], dtype=np.float64)
    return candidates[_cheapest(cost, weights[candidates], _goal(mass, total))]


def min_p(weights: np.ndarray, share: float) -> np.ndarray:
    """Positions of tokens at least `share` times as probable as the most probable one.

    Nguyen et al. 2024 (arXiv:2407.01082). 0 <= share <= 1. The most probable one must be among the tokens.
    """
    return np.flatnonzero(weights >= share / UNIT)


def typical_p(scores: np.ndarray, weights: np.ndarray, mass: float) -> np.ndarray:
    """Positions of the tokens whose information is closest to the entropy, until they reach `mass`.

    Locally typical sampling, Meister et al. 2022 (arXiv:2202.00666). 0 < mass <= 1.

    With p = exp(score / temperature) / Z, information is log Z - score / temperature and entropy its mean:
    a token's distance from it is that of its score from the mean score, in units of the temperature.
    """
    total = int(weights.sum())
    candidates = np.flatnonzero(weights)
    shares = weights[candidates]
    shifted = np.subtract(scores[candidates], scores.max(), dtype=np.float64)
    mean = float((shares * shifted).sum()) / total
    return candidates[_cheapest(np.abs(shifted - mean), shares, _goal(mass, total))]


def _goal(mass: float, total: int) -> int:
    """Units that hold `mass` of `total`, from 1 to all."""
    return min(total, max(1, math.ceil(mass * float(total))))


def _cheapest(cost: np.ndarray, weights: np.ndarray, goal: int) -> np.ndarray:
    """bool[m]: tokens in order of rising cost (then position) until their weights sum to `goal`.

    cost: float64[m], finite, >= 0; goal: at most the sum of weights. Only the bucket of costs in which the
    sum passes the goal is sorted.
    """
    widest = cost.max()
    bucket = (cost * (_BUCKETS / widest if widest else 0.0)).astype(np.int16)
    # bincount adds in float64: what it rounds may move the border, so it is looked up, then made exact.
    border = int(np.searchsorted(np.bincount(bucket, weights=weights).cumsum(), goal))
    while border and weights[bucket < border].sum() >= goal:
        border -= 1
    while weights[bucket <= border].sum() < goal:
        border += 1
    keep = bucket < border
    before = weights[keep].sum()
    inside = np.flatnonzero(bucket == border)
    inside = inside[np.argsort(cost[inside], kind="stable")]
    keep[inside[: np.searchsorted(before + weights[inside].cumsum(), goal) + 1]] = True
    return keep
