"""Reference gated activations of the MLP."""

from __future__ import annotations

import numpy as np

from penstock.kernels.ops import Activation

SQRT_2_OVER_PI = np.float32(0.7978845608028654)


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right 0
        y: np.ndarray = 1.0 / (1.0 + np.exp(-x))
    return y


def silu(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        y = np.exp(-x)
        y += np.float32(1.0)
        np.divide(x, y, out=y)
    return y


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """The tanh approximation of GELU (arXiv:1606.08415)."""
    y = x * x
    y *= np.float32(0.044715)
    y += np.float32(1.0)
    y *= x
    y *= SQRT_2_OVER_PI
    np.tanh(y, out=y)
    y += np.float32(1.0)
    y *= x
    y *= np.float32(0.5)
    return y


def gated(gate_up: np.ndarray, activation: Activation) -> np.ndarray:
    size = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :size], gate_up[..., size:]
    if activation.kind == "clamped_swiglu":
        gate = np.minimum(gate, np.float32(activation.limit))
        up = np.clip(up, np.float32(-activation.limit), np.float32(activation.limit))
        y = gate * sigmoid(np.float32(activation.alpha) * gate)
        y *= up + np.float32(1.0)
        return y
    y = silu(gate) if activation.kind == "silu" else gelu_tanh(gate)
    y *= up
    return y
