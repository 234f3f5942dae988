"""Reference attention over paged KV: causal, sliding window, sinks, soft cap.

Memory beside the result stays bounded: gathered keys and values by `plan.GATHER_BYTES` each (one
row alone may need more: its own keys), scores by SCORE_BYTES (queries are cut into chunks).
"""

from __future__ import annotations

import numpy as np

from penstock.kernels.batch import LayerKV
from penstock.kernels.ops import AttentionParams
from penstock.kernels.reference.plan import GATHER_BYTES, Bucket, ReferencePlan, Span

SCORE_BYTES = 32 << 20
MOST_QUERIES = 256  # per chunk of a span: later keys are skipped by causality chunk by chunk
WORKSPACE_BYTES = 2 * GATHER_BYTES + 3 * SCORE_BYTES


def attention(
    q: np.ndarray, plan: ReferencePlan, kv: LayerKV, params: AttentionParams, sinks: np.ndarray | None
) -> np.ndarray:
    tokens, heads, head_dim = q.shape
    kv_heads = kv.k.shape[2]
    grouped = (q * np.float32(params.scale)).reshape(tokens, kv_heads, heads // kv_heads, head_dim)
    if sinks is not None:
        sinks = sinks.reshape(kv_heads, heads // kv_heads)
    block_bytes = 4 * kv.block_size * kv_heads * head_dim
    buckets, spans = plan.attention_work(kv.group, params.window, kv.block_size, block_bytes)
    out = np.empty((tokens, heads * head_dim), np.float32)
    view = out.reshape(grouped.shape)
    for bucket in buckets:
        view[bucket.tokens] = _attend_bucket(grouped[bucket.tokens], bucket, kv, params, sinks)
    for span in spans:
        _attend_span(grouped, span, kv, params, sinks, view)
    return out


def _attend_bucket(
    q: np.ndarray, bucket: Bucket, kv: LayerKV, params: AttentionParams, sinks: np.ndarray | None
) -> np.ndarray:
    """q [b, G, H/G, D] -> the same shape, one query per row over the row's own keys."""
    rows, kv_heads, _, head_dim = q.shape
    keys = _gather(kv.k, bucket.blocks).reshape(rows, -1, kv_heads, head_dim)
    values = _gather(kv.v, bucket.blocks).reshape(rows, -1, kv_heads, head_dim)
    # What a block holds beyond the row's context belongs to nobody: it may be NaN, and 0·NaN is NaN.
    values[bucket.hidden] = 0.0
    # Keys times queries, then turned: BLAS is twice as fast with the long side first. [b, G, H/G, L]
    products = np.matmul(keys.transpose(0, 2, 1, 3), q.transpose(0, 1, 3, 2))
    scores = np.ascontiguousarray(products.swapaxes(2, 3))
    _soft_cap(scores, params.softcap)
    np.copyto(scores, -np.inf, where=bucket.hidden[:, None, None, :])
    total = _exponentiate(scores, None if sinks is None else sinks[None, :, :, None])
    out: np.ndarray = np.matmul(scores, values.transpose(0, 2, 1, 3))
    out /= total
    return out


def _attend_span(
    q: np.ndarray,
    span: Span,
    kv: LayerKV,
    params: AttentionParams,
    sinks: np.ndarray | None,
    out: np.ndarray,
) -> None:
    """Tokens [span.first, span.last) of q [T, G, H/G, D] into the same places of out."""
    _, kv_heads, per_kv, head_dim = q.shape
    context = span.start + span.last - span.first
    keys = _gather(kv.k, span.blocks).reshape(-1, kv_heads, head_dim)[: context - span.key_start]
    values = _gather(kv.v, span.blocks).reshape(-1, kv_heads, head_dim)[: context - span.key_start]
    chunk = SCORE_BYTES // (4 * kv_heads * per_kv * len(keys))
    chunk = max(1, min(chunk, MOST_QUERIES))
    for first in range(span.first, span.last, chunk):
        last = min(first + chunk, span.last)
        low = span.start + first - span.first  # positions of the chunk's first and last query
        high = low + last - first - 1
        oldest = 0 if params.window is None else max(0, low - params.window + 1)
        seen = slice(max(oldest, span.key_start) - span.key_start, high + 1 - span.key_start)
        queries = q[first:last].transpose(1, 2, 0, 3).reshape(kv_heads, -1, head_dim)
        scores = np.matmul(queries, keys[seen].transpose(1, 2, 0))  # [G, H/G · queries, keys]
        _soft_cap(scores, params.softcap)
        shaped = scores.reshape(kv_heads, per_kv, last - first, -1)
        position = np.arange(low, high + 1)[:, None]
        key_position = span.key_start + np.arange(seen.start, seen.stop)
        hidden = key_position > position
        if params.window is not None:
            hidden |= key_position <= position - params.window
        np.copyto(shaped, -np.inf, where=hidden)
        total = _exponentiate(shaped, None if sinks is None else sinks[:, :, None, None])
        mixed = np.matmul(scores, values[seen].transpose(1, 0, 2)).reshape(kv_heads, per_kv, -1, head_dim)
        mixed /= total
        out[first:last] = mixed.transpose(2, 0, 1, 3)


def _gather(pages: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """float32 copy of the named blocks."""
    return pages[blocks].astype(np.float32, copy=False)


def _soft_cap(scores: np.ndarray, cap: float | None) -> None:
    if cap is not None:
        scores /= np.float32(cap)
        np.tanh(scores, out=scores)
        scores *= np.float32(cap)


def _exponentiate(scores: np.ndarray, sinks: np.ndarray | None) -> np.ndarray:
    """scores [..., L] become exp(score - max) in place; returns their sum [..., 1], sinks included."""
    peak = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        peak = np.maximum(peak, sinks)
    scores -= peak
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total += np.exp(sinks - peak)
    return total
