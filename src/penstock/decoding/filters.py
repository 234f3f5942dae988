"""Filters: which tokens a draw may still choose.

Every filter takes one row and returns the positions it keeps, ascending, so that filters chain on ever
shorter arrays. Each keeps at least one token, and decides ties by token id (the lower id stays), so that
the result is defined to the bit. None sorts a whole row: the sets are found by selection, in linear time.

`weights` are unnormalized probabilities, float64[m], the largest exactly 1 (see draw.weights).
"""

from __future__ import annotations

import numpy as np

_BLOCK = 256  # entries per block maximum; 192 maxima stand for a vocabulary of 49,152
_MANTISSA_SHIFT = 47  # keeps a float64's exponent and 5 bits of its mantissa: 32 buckets per octave
_SHIFT_BUCKETS = 64  # buckets per nat of distance from the entropy
_MAX_SHIFT_BUCKET = 1 << 16  # 1024 nats; float64 weights vanish below exp(-745)


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


def top_p(weights: np.ndarray, mass: float) -> np.ndarray:
    """Positions of the smallest set of most probable tokens whose probability reaches `mass`.

    Nucleus sampling, Holtzman et al. 2019 (arXiv:1904.09751). 0 < mass <= 1.
    """
    total = weights.sum()
    # Tokens below this bound hold less than 1 - mass together, so the nucleus is complete without them;
    # halved to stay clear of rounding.
    bound = 0.5 * (1.0 - mass) * total / len(weights)
    candidates = np.flatnonzero(weights >= bound)
    kept = weights[candidates]
    # The bit patterns of positive floats are ordered like the floats.
    bits = kept.view(np.int64)
    bucket = (bits.max() - bits) >> _MANTISSA_SHIFT
    return candidates[_cheapest(-kept, bucket, kept, mass * total)]


def min_p(weights: np.ndarray, share: float) -> np.ndarray:
    """Positions of tokens at least `share` times as probable as the most probable one.

    Nguyen et al. 2024 (arXiv:2407.01082). 0 <= share <= 1.
    """
    return np.flatnonzero(weights >= share)


def typical_p(weights: np.ndarray, mass: float) -> np.ndarray:
    """Positions of the tokens whose information is closest to the entropy, until they reach `mass`.

    Locally typical sampling, Meister et al. 2022 (arXiv:2202.00666). 0 < mass <= 1.
    """
    probs = weights / weights.sum()
    with np.errstate(divide="ignore"):
        information = -np.log(probs)
    possible = probs > 0
    entropy = float((probs[possible] * information[possible]).sum())
    cost = np.abs(information - entropy)
    bucket = np.minimum(cost * _SHIFT_BUCKETS, _MAX_SHIFT_BUCKET).astype(np.int64)
    return np.flatnonzero(_cheapest(cost, bucket, probs, mass))


def _cheapest(cost: np.ndarray, bucket: np.ndarray, weights: np.ndarray, goal: float) -> np.ndarray:
    """bool[m]: tokens in order of rising cost (then position) until their weights sum to `goal`.

    bucket: int64[m], any monotone coarsening of `cost`. Only the bucket in which the sum passes the goal
    is sorted. Rounding may leave the sum of all below a goal next to it: no bucket passes, all are kept.
    """
    sums = np.bincount(bucket, weights=weights).cumsum()
    border = int(np.searchsorted(sums, goal))
    keep = bucket < border
    inside = np.flatnonzero(bucket == border)
    inside = inside[np.argsort(cost[inside], kind="stable")]
    reached = weights[inside].cumsum() + (sums[border - 1] if border else 0.0)
    keep[inside[: np.searchsorted(reached, goal) + 1]] = True
    return keep
