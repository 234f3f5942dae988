"""Rounding weights to integers, and packing them as compressed-tensors checkpoints do.

Invariants: values are chosen for the scale as it will be stored (bfloat16 for groups), so that
scale · (value − zero) is what every reader computes; rows are independent of each other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Shares of a group's range that the search for the least squared error tries: below 0.7 of it clipping
# always costs more than the finer steps win on weights; steps of 0.02 are arbitrary.
_CLIP_RATIOS = np.arange(1.0, 0.69, -0.02, dtype=np.float32)
_CHUNK_ELEMENTS = 1 << 17  # rows searched at once: several float32 copies of it stay in the cache
_SMALLEST_SCALE = np.float32(2.0**-100)  # of a row or group of zeros: any positive number does


class Groups(NamedTuple):
    """values uint8[N, K], 0 … 2^bits - 1; scale float32[N, G], each a bfloat16; zero uint8[N, G]."""

    values: np.ndarray
    scale: np.ndarray
    zero: np.ndarray


def round_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[N, K] -> int8[N, K] in ±127 and scale float32[N, 1]: symmetric, one scale a row."""
    scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / np.float32(127), _SMALLEST_SCALE)
    return np.rint(weight / scale).astype(np.int8), scale


def round_groups(weight: np.ndarray, group: int, *, bits: int = 4, symmetric: bool = False) -> Groups:
    """float32[N, K], K a multiple of `group`: each group by the clipping with the least squared error.

    Asymmetric: range and zero point of the group's own smallest and largest value, which include 0.
    Symmetric: the zero point is 2^(bits-1).
    """
    rows, columns = weight.shape
    values = np.empty((rows, columns // group, group), np.uint8)
    scale = np.empty(values.shape[:2], np.float32)
    zero = np.empty(values.shape[:2], np.uint8)
    step = max(1, _CHUNK_ELEMENTS // columns)
    for at in range(0, rows, step):
        chunk = slice(at, at + step)
        grouped = np.ascontiguousarray(weight[chunk], np.float32).reshape(-1, columns // group, group)
        values[chunk], scale[chunk], zero[chunk] = _search(grouped, bits, symmetric)
    return Groups(values.reshape(rows, columns), scale, zero)


def _search(w: np.ndarray, bits: int, symmetric: bool) -> Groups:
    """w float32[n, G, group] -> values of that shape, scale and zero [n, G]."""
    top, middle = np.float32(2**bits - 1), np.float32(2 ** (bits - 1))
    low, high = np.minimum(w.min(axis=2), 0), np.maximum(w.max(axis=2), 0)
    span = np.maximum(high - low, 0) / top
    if symmetric:
        span = np.maximum(high, -low) * 2 / top
    best_error = np.full(span.shape, np.inf, np.float32)
    best = Groups(np.zeros(w.shape, np.uint8), np.zeros_like(span), np.zeros(span.shape, np.uint8))
    for ratio in _CLIP_RATIOS:
        scale = np.maximum(to_bfloat16(span * ratio), _SMALLEST_SCALE)
        zero = np.full_like(scale, middle) if symmetric else np.clip(np.rint(-low * ratio / scale), 0, top)
        values = np.rint(w / scale[..., None])
        values += zero[..., None]
        np.clip(values, 0, top, out=values)
        error = values - zero[..., None]
        error *= scale[..., None]
        error -= w
        squared = np.einsum("ngk,ngk->ng", error, error)
        better = squared < best_error
        best_error[better] = squared[better]
        best.values[better] = values[better]
        best.scale[better] = scale[better]
        best.zero[better] = zero[better]
    return best


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even; finite values only."""
    return (bfloat16_bits(x).astype(np.uint32) << 16).view(np.float32)


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """float32 (finite) -> uint16 of `x`'s shape: nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def pack_rows(values: np.ndarray, bits: int) -> np.ndarray:
    """uint8[N, K] -> int32[N, ⌈K·bits/32⌉]: value k at bit k·bits of its row, the lowest first."""
    per_word = 32 // bits
    padded = np.zeros((values.shape[0], -(-values.shape[1] // per_word) * per_word), np.uint32)
    padded[:, : values.shape[1]] = values
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    words = (padded.reshape(values.shape[0], -1, per_word) << shifts).sum(axis=2, dtype=np.uint32)
    return words.view(np.int32)
