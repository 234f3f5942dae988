"""Reference RMSNorm (arXiv:1910.07467), alone and after the residual addition."""

from __future__ import annotations

import numpy as np


def rms_norm(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    """x [..., d]: every vector of the last axis divided by its root mean square, times gain."""
    mean_square = np.einsum("...i,...i->...", x, x)[..., None]
    mean_square /= np.float32(x.shape[-1])
    mean_square += np.float32(eps)
    np.sqrt(mean_square, out=mean_square)
    y = x / mean_square
    y *= gain
    return y


def add_rms_norm(
    x: np.ndarray,
    delta: np.ndarray,
    gain: np.ndarray,
    eps: float,
    *,
    post_gain: np.ndarray | None = None,
    scale: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    if post_gain is not None:
        delta = rms_norm(delta, post_gain, eps)
    if scale != 1.0:
        delta = delta * np.float32(scale)
    total = x + delta
    return total, rms_norm(total, gain, eps)
