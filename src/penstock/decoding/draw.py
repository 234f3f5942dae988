"""From adjusted scores and one uniform number to one token.

The draw is the inverse of the cumulative distribution in token-id order: the first id whose cumulative
weight exceeds uniform x total. Monotone in the uniform number, and one number per token: the same noise
gives the same token to whoever holds the same distribution, which is what speculation relies on.
Everything is float64 on one contiguous row, hence the same bits alone and in any batch.
"""

from __future__ import annotations

import numpy as np

_BLOCK = 256


def weights(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Unnormalized softmax of scores / temperature: float64[m], the largest exactly 1.

    scores: float32[m] with a finite maximum, -inf is impossible; temperature > 0.
    """
    shifted = np.subtract(scores, np.float64(scores.max()), dtype=np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature sends every lesser score to -inf, as it should
        shifted /= temperature
    return np.exp(shifted, out=shifted)


def inverse_cdf(weights: np.ndarray, uniform: float) -> int:
    """Position of the first token whose cumulative weight exceeds uniform x total.

    weights: float64[m], at least one positive; uniform in [0, 1). A token of weight 0 is never returned.
    """
    # Sums per block, then one block in detail: a cumulative sum over the row is 8 times slower.
    ends = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)).cumsum()
    # uniform <= 1 - 2**-53, so the product rounds to less than the total and a block is always found.
    target = uniform * ends[-1]
    block = int(np.searchsorted(ends, target, side="right"))
    start = block * _BLOCK
    inside = weights[start : start + _BLOCK]
    rest = target - (ends[block - 1] if block else 0.0)
    position = int(np.searchsorted(inside.cumsum(), rest, side="right"))
    if position == len(inside):
        # The block's sum was rounded differently from its running sum, and the target fell between.
        position = int(np.flatnonzero(inside)[-1])
    return start + position
