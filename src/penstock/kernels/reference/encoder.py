"""Reference operations of encoders: LayerNorm, activations without a gate, attention over whole texts."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from penstock.kernels.encoder import PlainActivation
from penstock.kernels.reference.mlp import gelu_tanh, silu

_erf = np.frompyfunc(math.erf, 1, 1)  # numpy has none


def layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """x [..., d] (arXiv:1607.06450)."""
    y = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("...i,...i->...", y, y)[..., None]
    variance /= np.float32(x.shape[-1])
    variance += np.float32(eps)
    y /= np.sqrt(variance)
    y *= gain
    y += bias
    return y


def activate(x: np.ndarray, kind: PlainActivation) -> np.ndarray:
    """x [T, n] -> [T, n]."""
    if kind == "gelu":
        share = np.asarray(_erf(x * np.float32(math.sqrt(0.5))), np.float32)
        share += np.float32(1.0)
        share *= x
        share *= np.float32(0.5)
        return share
    if kind == "relu":
        return np.maximum(x, np.float32(0.0))
    return silu(x) if kind == "silu" else gelu_tanh(x)


def attend_texts(qkv: np.ndarray, offsets: np.ndarray, heads: int, scale: float) -> np.ndarray:
    tokens, width = qkv.shape
    out = np.empty((tokens, heads, width // 3 // heads), np.float32)
    split = qkv.reshape(tokens, 3, heads, -1)
    for first, last in pairwise(offsets):
        q, k, v = split[first:last].transpose(1, 2, 0, 3)  # each [heads, n, D]
        scores = np.matmul(q, k.swapaxes(1, 2))
        scores *= np.float32(scale)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        out[first:last] = np.matmul(scores, v).transpose(1, 0, 2)
    return out.reshape(tokens, -1)
