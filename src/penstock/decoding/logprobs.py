"""Log-probabilities of the model's raw distribution, before any penalty, mask or temperature.

float32, natural logarithm. Rows are handled one by one, so a row's values do not depend on the batch.
"""

from __future__ import annotations

import math

import numpy as np

from penstock.decoding import draw
from penstock.decoding.filters import top_k
from penstock.decoding.params import RowLogprobs


def log_normalizer(row: np.ndarray) -> np.float32:
    """log(sum(exp(row))) of float32[V], from exact sums: see draw."""
    total = int(draw.weights(row, 1.0).sum())
    return np.float32(float(row.max()) + math.log(float(total) * draw.UNIT))


def best(row: np.ndarray, k: int) -> np.ndarray:
    """int32[min(k, V)]: ids of the largest entries, the largest first, equal ones by id."""
    if k == 0:
        return np.empty(0, dtype=np.int32)
    ids = top_k(row, k)
    return ids[np.argsort(-row[ids], kind="stable")].astype(np.int32)


def row_logprobs(logits: np.ndarray, chosen: np.ndarray, k: int) -> RowLogprobs:
    """Log-probability of `chosen` and of the k best tokens at each of n positions.

    logits: float32[n, V], raw; chosen: int[n]; k is clamped to V. A token the model rules out (logit
    -inf) has -inf.
    """
    k = min(k, logits.shape[1])
    of_chosen = np.empty(len(chosen), dtype=np.float32)
    top_ids = np.empty((len(chosen), k), dtype=np.int32)
    top = np.empty((len(chosen), k), dtype=np.float32)
    for i, (row, token) in enumerate(zip(logits, chosen, strict=True)):
        normalizer = log_normalizer(row)
        top_ids[i] = best(row, k)
        with np.errstate(over="ignore"):
            of_chosen[i] = row[token] - normalizer
            top[i] = row[top_ids[i]] - normalizer
    return RowLogprobs(chosen=of_chosen, top_ids=top_ids, top=top)
