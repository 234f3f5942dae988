"""Philox4x32-10, the counter-based generator behind every draw.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and the
known-answer vectors of its library Random123. There is no state: a number is a pure function of
(seed, position, stream), so a seeded request draws the same noise whatever runs beside it, after a
preemption, and when a speculative token is verified.

Layout: key = (seed low, seed high), counter = (position, stream, 0, 0), 32-bit words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))  # golden ratio and sqrt(3) - 1, added to the key
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)


def philox4x32(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Four random words per row.

    counter: uint32[R, 4]; key: uint32[R, 2]; returns uint32[R, 4].
    """
    # uint64 throughout: a product of two words is then exact, and its halves are the two outputs.
    c0, c1, c2, c3 = counter.astype(np.uint64).T
    k0, k1 = key.astype(np.uint64).T
    for _ in range(_ROUNDS):
        left = c0 * _MULTIPLIERS[0]
        right = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (right >> _WORD) ^ c1 ^ k0, right & _LOW, (left >> _WORD) ^ c3 ^ k1, left & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def uniform(seed: ArrayLike, position: ArrayLike, stream: int = 0) -> np.ndarray:
    """One number in [0, 1) per row, a multiple of 2**-53.

    seed: uint64[R]; position: integers [R] below 2**32; stream: uses of one position that must be
    independent of each other take different streams. Returns float64[R].
    """
    seeds = np.atleast_1d(np.asarray(seed, dtype=np.uint64))
    positions = np.atleast_1d(np.asarray(position)).astype(np.uint64)
    counter = np.zeros((len(seeds), 4), dtype=np.uint64)
    counter[:, 0] = positions
    counter[:, 1] = stream
    words = philox4x32(counter, np.stack([seeds & _LOW, seeds >> _WORD], axis=1)).astype(np.uint64)
    bits = ((words[:, 0] << _WORD) | words[:, 1]) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
