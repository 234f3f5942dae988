"""Pooling: from hidden states of tokens to one vector per text."""

from __future__ import annotations

import numpy as np

from penstock.models.encoder.spec import Pooling


def pool(hidden: np.ndarray, offsets: np.ndarray, pooling: Pooling) -> np.ndarray:
    """hidden float32[T, d], offsets int32[R+1] (no text empty) -> float32[R, d]."""
    if pooling == "cls":
        return hidden[offsets[:-1]]
    if pooling == "last":
        return hidden[offsets[1:] - 1]
    sums = np.add.reduceat(hidden, offsets[:-1], axis=0)
    sums /= np.diff(offsets)[:, None].astype(np.float32)
    return sums


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Vectors [R, d] of length 1; one of zeros stays."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return vectors / np.maximum(lengths, np.float32(1e-12))
