"""A decoder layer of a draft network, over the reference ops: plain numpy, float32.

Letters in shapes: n rows, H query heads, G KV heads, D head size, d hidden size.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from penstock.kernels.ops import Activation, HeadShape
from penstock.kernels.reference.linear import linear
from penstock.kernels.reference.mlp import gated
from penstock.kernels.reference.norm import rms_norm
from penstock.kernels.reference.rope import rope_table, rotate
from penstock.models.arch.config import activation, rope
from penstock.models.drafters.weights import DraftWeights
from penstock.models.rope import inverse_frequencies


class Projection(Struct, frozen=True):
    """weight [N, K], bias [N] or None."""

    weight: np.ndarray
    bias: np.ndarray | None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return linear(x, self.weight, self.bias)


class DraftLayer(Struct, frozen=True):
    """Attention and gated MLP, without the norm before attention: what that reads differs by network.

    window: positions that a query sees, None for all; causal: none behind its own.
    """

    heads: HeadShape
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    q_norm: np.ndarray | None
    k_norm: np.ndarray | None
    gate_up: np.ndarray
    down: np.ndarray
    activation: Activation
    frequencies: np.ndarray
    rope_factor: float
    eps: float
    window: int | None
    causal: bool

    def queries(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """x [n, K], positions int32[n] -> [n, H, D]"""
        return self._turned(self.q(x), self.heads.heads, self.q_norm, positions)

    def keys_values(self, x: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x [n, K], positions int32[n] -> twice [n, G, D]"""
        keys = self._turned(self.k(x), self.heads.kv_heads, self.k_norm, positions)
        return keys, self.v(x).reshape(keys.shape)

    def _turned(
        self, x: np.ndarray, heads: int, gain: np.ndarray | None, positions: np.ndarray
    ) -> np.ndarray:
        x = x.reshape(len(x), heads, self.heads.head_dim)
        if gain is not None:
            x = rms_norm(x, gain, self.eps)
        return rotate(x, rope_table(positions, self.frequencies, self.rope_factor), "half")

    def attend(
        self,
        q: np.ndarray,
        positions: np.ndarray,
        keys: np.ndarray,
        values: np.ndarray,
        key_positions: np.ndarray,
    ) -> np.ndarray:
        """q [n, H, D] at `positions` over keys, values [m, G, D] at `key_positions` -> [n, d]"""
        rows, kv_heads, head_dim = len(q), self.heads.kv_heads, self.heads.head_dim
        grouped = (q * np.float32(head_dim**-0.5)).reshape(rows, kv_heads, -1, head_dim)
        queries = grouped.transpose(1, 2, 0, 3).reshape(kv_heads, -1, head_dim)
        scores = np.matmul(queries, keys.transpose(1, 2, 0)).reshape(kv_heads, -1, rows, len(keys))
        distance = positions[:, None] - key_positions[None, :]
        if self.causal:
            scores[..., distance < 0] = -np.inf
        if self.window is not None:
            scores[..., np.abs(distance) >= self.window] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = np.matmul(scores.reshape(kv_heads, -1, len(keys)), values.transpose(1, 0, 2))
        mixed = mixed.reshape(kv_heads, -1, rows, head_dim).transpose(2, 0, 1, 3)
        return self.o(mixed.reshape(rows, -1))

    def feed(self, x: np.ndarray) -> np.ndarray:
        """x [n, d], normed -> what the MLP adds"""
        return linear(gated(linear(x, self.gate_up), self.activation), self.down)


def load_layer(
    weights: DraftWeights, prefix: str, inputs: int, *, window: int | None, causal: bool, context: int
) -> DraftLayer:
    """The layer whose tensors begin with `prefix`; its attention reads `inputs` features. `context` is the
    longest that is served."""
    c = weights.config
    heads, hidden, size = c.heads, int(c.need("hidden_size")), int(c.need("intermediate_size"))
    turned = rope(c, "full_attention" if window is None else "sliding_attention")
    frequencies, factor = inverse_frequencies(turned, context)

    def projection(name: str, rows: int, columns: int) -> Projection:
        full = f"{prefix}self_attn.{name}_proj"
        return Projection(weights.take(f"{full}.weight", rows, columns), weights.maybe(f"{full}.bias", rows))

    kv_rows = heads.kv_heads * heads.head_dim
    return DraftLayer(
        heads=heads,
        q=projection("q", heads.heads * heads.head_dim, inputs),
        k=projection("k", kv_rows, inputs),
        v=projection("v", kv_rows, inputs),
        o=projection("o", hidden, heads.heads * heads.head_dim),
        q_norm=weights.maybe(f"{prefix}self_attn.q_norm.weight", heads.head_dim),
        k_norm=weights.maybe(f"{prefix}self_attn.k_norm.weight", heads.head_dim),
        gate_up=np.concatenate(
            [weights.take(f"{prefix}mlp.{name}_proj.weight", size, hidden) for name in ("gate", "up")]
        ),
        down=weights.take(f"{prefix}mlp.down_proj.weight", hidden, size),
        activation=activation(c),
        frequencies=frequencies,
        rope_factor=factor,
        eps=float(c.get("rms_norm_eps", 1e-6)),
        window=window,
        causal=causal,
    )
