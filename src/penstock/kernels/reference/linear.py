"""Reference linear layers: dense float32 matrices, products through numpy's BLAS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.kernels.ops import WeightTensor

HEAD_ROWS = 256  # rows of the head computed at once: bounds BLAS packing buffers, costs nothing


def weight_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Four bytes an element, whatever the file stores."""
    del dtype
    return 4 * int(np.prod(shape, dtype=np.int64))


def prepare(parts: Sequence[WeightTensor]) -> np.ndarray:
    """float32[N, K] or float32[E, N, K]; a single F32 tensor stays in the file's map."""
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0].float32(), dtype=np.float32)
    rows = sum(part.shape[-2] for part in parts)
    joined = np.empty((*parts[0].shape[:-2], rows, parts[0].shape[-1]), np.float32)
    first = 0
    for part in parts:
        target = joined[..., first : first + part.shape[-2], :]
        if target.flags.c_contiguous:
            part.float32(out=target)
        else:
            target[...] = part.float32()
        first += part.shape[-2]
    return joined


def vector(parts: Sequence[WeightTensor]) -> np.ndarray:
    """float32, joined along the last axis."""
    return np.concatenate([part.float32() for part in parts], axis=-1, dtype=np.float32)


def embed(weight: np.ndarray, tokens: np.ndarray, scale: float) -> np.ndarray:
    rows = weight[tokens]
    return rows if scale == 1.0 else rows * np.float32(scale)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    y = x @ weight.T
    if bias is not None:
        y += bias
    return y


def logits(x: np.ndarray, weight: np.ndarray, scale: float, softcap: float | None) -> np.ndarray:
    out = np.empty((len(x), len(weight)), np.float32)
    for first in range(0, len(x), HEAD_ROWS):
        rows = out[first : first + HEAD_ROWS]
        np.matmul(x[first : first + HEAD_ROWS], weight.T, out=rows)
        if scale != 1.0:
            rows *= np.float32(scale)
        if softcap is not None:
            rows /= np.float32(softcap)
            np.tanh(rows, out=rows)
            rows *= np.float32(softcap)
    return out
