"""Reference rotary positions (arXiv:2104.09864), QK-norm and the paged KV write."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from penstock.kernels.batch import LayerKV
from penstock.kernels.ops import HeadShape, RopeStyle
from penstock.kernels.reference.norm import rms_norm
from penstock.kernels.reference.plan import ReferencePlan


class RopeTable(NamedTuple):
    """cos, sin: float32[T, D'/2]."""

    cos: np.ndarray
    sin: np.ndarray


def rope_table(positions: np.ndarray, inv_freq: np.ndarray, factor: float) -> RopeTable:
    # The angle is a float32 product, as everywhere where these models were trained.
    angles = positions.astype(np.float32)[:, None] * inv_freq
    return RopeTable(np.cos(angles) * np.float32(factor), np.sin(angles) * np.float32(factor))


def rotate(x: np.ndarray, table: RopeTable, style: RopeStyle) -> np.ndarray:
    """x [T, heads, D] with its first D' dimensions turned; the rest is copied."""
    half = table.cos.shape[1]
    cos, sin = table.cos[:, None], table.sin[:, None]
    first = slice(0, half) if style == "half" else slice(0, 2 * half, 2)
    second = slice(half, 2 * half) if style == "half" else slice(1, 2 * half, 2)
    a, b = x[..., first], x[..., second]
    out = np.empty_like(x)
    np.subtract(a * cos, b * sin, out=out[..., first])
    np.add(b * cos, a * sin, out=out[..., second])
    out[..., 2 * half :] = x[..., 2 * half :]
    return out


def write_kv(
    qkv: np.ndarray,
    shape: HeadShape,
    rope: RopeTable | None,
    style: RopeStyle,
    gains: tuple[np.ndarray, np.ndarray] | None,
    eps: float,
    plan: ReferencePlan,
    kv: LayerKV,
) -> np.ndarray:
    heads, kv_heads = shape.heads, shape.kv_heads
    split = qkv.reshape(len(qkv), heads + 2 * kv_heads, shape.head_dim)
    qk, v = split[:, : heads + kv_heads], split[:, heads + kv_heads :]
    if gains is not None:
        q_normed = rms_norm(qk[:, :heads], gains[0], eps)
        qk = np.concatenate([q_normed, rms_norm(qk[:, heads:], gains[1], eps)], axis=1)
    if rope is not None:
        qk = rotate(qk, rope, style)
    blocks, places = plan.write_places(kv.group, kv.block_size)
    kv.k[blocks, places] = qk[:, heads:]
    kv.v[blocks, places] = v
    q: np.ndarray = qk[:, :heads]
    return q
