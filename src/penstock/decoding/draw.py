"""From adjusted scores and one uniform number to one token.

The draw is the inverse of the cumulative distribution in token-id order: the first id whose cumulative
weight exceeds uniform x total. Monotone in the uniform number, and one number per token: the same noise
gives the same token to whoever holds the same distribution, which is what speculation relies on.

Weights are whole numbers of 2**-42, the most probable token's weight being 1. Sums of whole numbers are
exact in any order, so that whoever computes them, in blocks, vectors or threads, finds the same token: the
C++ sampler is equal to this one by construction. Only exp is rounded; two good implementations of it
disagree about a unit once in thousands of tokens, and that moves a draw with probability 2**-42. A token
less than 2**-43 times as probable as the best is never drawn.
"""

from __future__ import annotations

import numpy as np

_BLOCK = 256
UNIT = 2.0**-42  # of a weight
MAX_TOKENS = 2**20  # weights of so many tokens add up to less than 2**63
_WHOLE = np.float64(2.0**52)
_WHOLE_BITS = _WHOLE.view(np.int64)
_FLOAT64_MAX = np.finfo(np.float64).max


def weights(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Unnormalized softmax of scores / temperature: int64[m] in units of 2**-42, the largest exactly 2**42.

    scores: float32[m], m <= MAX_TOKENS, with a finite maximum, -inf is impossible; temperature > 0.
    """
    terms = np.subtract(scores, np.float64(scores.max()), dtype=np.float64)
    with np.errstate(over="ignore", divide="ignore"):  # a tiny temperature sends every lesser score to -inf
        terms *= min(np.float64(1.0) / np.float64(temperature), _FLOAT64_MAX)
    np.exp(terms, out=terms)
    terms *= 1.0 / UNIT
    # Between 2**52 and 2**53 float64's step is 1: the sum is rounded to a whole number, held in the low bits.
    terms += _WHOLE
    units = terms.view(np.int64)
    units -= _WHOLE_BITS
    return units


def inverse_cdf(weights: np.ndarray, uniform: float) -> int:
    """Position of the first token whose cumulative weight exceeds uniform x total.

    weights: int64[m], at least one positive; uniform: a multiple of 2**-53 in [0, 1). A token of weight 0
    is never returned.
    """
    # Sums per block, then one block in detail: a cumulative sum over the row is 8 times slower.
    ends = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)).cumsum()
    # Python's integers: the product has up to 116 bits. Less than the total, so a block is always found.
    target = int(uniform * 2.0**53) * int(ends[-1]) >> 53
    block = int(np.searchsorted(ends, target, side="right"))
    start = block * _BLOCK
    rest = target - (int(ends[block - 1]) if block else 0)
    return start + int(np.searchsorted(weights[start : start + _BLOCK].cumsum(), rest, side="right"))
