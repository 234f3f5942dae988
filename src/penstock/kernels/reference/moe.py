"""Reference mixture of experts: routing, grouped expert MLPs, the gated shared expert."""

from __future__ import annotations

from typing import Literal

import numpy as np

from penstock.kernels.ops import Activation
from penstock.kernels.reference.mlp import gated, sigmoid


def _softmax(x: np.ndarray) -> np.ndarray:
    y = np.exp(x - x.max(axis=-1, keepdims=True))
    y /= y.sum(axis=-1, keepdims=True)
    return y


def route(
    logits: np.ndarray, top_k: int, softmax: Literal["before", "after"], normalize: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Equal logits are ranked by expert index, so that a token's experts never depend on the batch."""
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k].astype(np.int32)
    if softmax == "after":
        return ids, _softmax(np.take_along_axis(logits, ids, axis=-1))
    weights = np.take_along_axis(_softmax(logits), ids, axis=-1)
    if normalize:
        weights /= weights.sum(axis=-1, keepdims=True)
    return ids, weights


def experts(
    x: np.ndarray,
    ids: np.ndarray,
    weights: np.ndarray,
    gate_up: np.ndarray,
    down: np.ndarray,
    activation: Activation,
    biases: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Pairs (token, choice) sorted by expert: one product per expert that was chosen at all."""
    tokens, top_k = ids.shape
    order = np.argsort(ids, axis=None, kind="stable")
    chosen, begins = np.unique(ids.reshape(-1)[order], return_index=True)
    ends = np.append(begins[1:], tokens * top_k)
    outputs = np.empty((tokens * top_k, x.shape[-1]), np.float32)
    for expert, begin, end in zip(chosen, begins, ends, strict=True):
        pairs = order[begin:end]
        hidden = x[pairs // top_k] @ gate_up[expert].T
        if biases is not None:
            hidden += biases[0][expert]
        result = gated(hidden, activation) @ down[expert].T
        if biases is not None:
            result += biases[1][expert]
        outputs[pairs] = result
    total: np.ndarray = np.einsum("tkd,tk->td", outputs.reshape(tokens, top_k, -1), weights)
    return total


def add_sigmoid_gated(x: np.ndarray, delta: np.ndarray, gate: np.ndarray) -> np.ndarray:
    y: np.ndarray = x + sigmoid(gate) * delta
    return y
