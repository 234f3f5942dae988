"""Linear, norm, rope, activation and expert ops of every backend against float64 formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.kernels.backend import OpTableBackend, backend_names, open_backend, resolve_backend
from penstock.kernels.batch import Batch, LayerKV
from penstock.kernels.ops import Activation, HeadShape, Ops

TOLERANCE = 5e-5
sizes = st.sampled_from([1, 2, 3, 7, 16, 33])
seeds = st.integers(0, 1 << 20)


class Tensor:
    """A WeightTensor over an array."""

    dtype = "F32"

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    def float32(self, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            return self.values
        out[...] = self.values
        return out

    def raw(self) -> np.ndarray | None:
        return self.values.view(np.uint8)


@pytest.fixture(scope="module", params=["reference"])
def ops(request: pytest.FixtureRequest) -> Ops:
    backend = open_backend(request.param)
    assert isinstance(backend, OpTableBackend)
    return backend.ops


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def close(got: Any, expected: np.ndarray) -> bool:
    return bool(np.abs(np.asarray(got, np.float64) - expected).max(initial=0) < TOLERANCE)


@given(sizes, sizes, st.lists(sizes, min_size=1, max_size=3), st.booleans(), seeds)
def test_linear(ops: Ops, tokens: int, inner: int, rows: list[int], biased: bool, seed: int) -> None:
    """Red if joined parts, the bias or the transposition of a linear layer is wrong at any size."""
    rng = np.random.default_rng(seed)
    parts = [normal(rng, n, inner) for n in rows]
    biases = [normal(rng, n) for n in rows]
    x = normal(rng, tokens, inner)
    weight = ops.prepare([Tensor(part) for part in parts])
    bias = ops.vector([Tensor(b) for b in biases]) if biased else None
    expected = x.astype(np.float64) @ np.concatenate(parts).T.astype(np.float64)
    if biased:
        expected += np.concatenate(biases)
    assert close(ops.linear(x, weight, bias), expected)


def test_joined_experts_keep_their_expert(ops: Ops) -> None:
    """Red if gate and up of stacked experts are joined along the experts instead of the rows."""
    rng = np.random.default_rng(0)
    gate, up = normal(rng, 3, 4, 5), normal(rng, 3, 4, 5)
    x, down = normal(rng, 2, 5), normal(rng, 3, 5, 4)
    ids, weights = np.array([[2], [0]], np.int32), np.ones((2, 1), np.float32)
    joined = ops.prepare([Tensor(gate), Tensor(up)])
    got = ops.experts(x, ids, weights, joined, ops.prepare([Tensor(down)]), Activation())
    expected = []
    for row, (expert,) in zip(x.astype(np.float64), ids, strict=True):
        g = gate[expert] @ row
        expected.append(down[expert] @ (g / (1 + np.exp(-g)) * (up[expert] @ row)))
    assert close(got, np.array(expected))


@pytest.mark.parametrize("rows", [1, 255, 257])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_logits(ops: Ops, rows: int, softcap: float | None) -> None:
    """Red if the head, its scale or its soft cap differs at the edge of a row chunk."""
    rng = np.random.default_rng(rows)
    x, weight = normal(rng, rows, 8), normal(rng, 11, 8)
    expected = x.astype(np.float64) @ weight.T * 0.5
    if softcap:
        expected = softcap * np.tanh(expected / softcap)
    assert close(ops.logits(x, ops.prepare([Tensor(weight)]), 0.5, softcap), expected)


def test_embed(ops: Ops) -> None:
    """Red if rows are mixed up or Gemma's scale is lost; the table itself must stay as it was."""
    table = normal(np.random.default_rng(0), 6, 4)
    weight = ops.prepare([Tensor(table.copy())])
    tokens = np.array([5, 0, 5], np.int32)
    assert close(ops.embed(weight, tokens, 3.0), table[tokens] * 3.0)
    assert close(ops.embed(weight, tokens, 1.0), table[tokens])


def rms(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


@given(sizes, sizes, st.booleans(), st.sampled_from([1.0, 0.25]), seeds)
def test_norms(ops: Ops, tokens: int, width: int, sandwich: bool, scale: float, seed: int) -> None:
    """Red if the residual, its scale, the post norm or eps enters at the wrong place."""
    rng = np.random.default_rng(seed)
    x, delta, gain, post = normal(rng, tokens, width), normal(rng, tokens, width), *normal(rng, 2, width)
    eps = 0.1
    before = x.copy(), delta.copy()
    assert close(ops.rms_norm(x, gain, eps), rms(x, gain, eps))
    added = x + scale * (rms(delta, post, eps) if sandwich else delta.astype(np.float64))
    total, normed = ops.add_rms_norm(x, delta, gain, eps, post_gain=post if sandwich else None, scale=scale)
    assert close(total, added)
    assert close(normed, rms(added, gain, eps))
    assert np.array_equal(x, before[0]) and np.array_equal(delta, before[1])


@given(st.sampled_from(["half", "interleaved"]), st.sampled_from([2, 4, 8]), st.booleans(), seeds)
def test_rope_and_qk_norm(ops: Ops, style: Any, turned: int, normed: bool, seed: int) -> None:
    """Red if a pair, an angle's sign, the untouched rest or the order of norm and rope is wrong."""
    rng = np.random.default_rng(seed)
    shape, tokens = HeadShape(3, 1, 8), 4
    positions = np.array([0, 1, 2, 3], np.int32)
    inv_freq = (0.7 ** np.arange(turned // 2)).astype(np.float32)
    qkv = normal(rng, tokens, 5 * 8)
    gains = (normal(rng, 8), normal(rng, 8)) if normed else None
    offsets = np.array([0, tokens], np.int32)
    batch = Batch(positions, positions, offsets, offsets[:1], offsets[1:], (np.array([[1]], np.int32),))
    kv = LayerKV(
        k=np.zeros((2, 4, 1, 8), np.float32), v=np.zeros((2, 4, 1, 8), np.float32), group=0, block_size=4
    )
    table = ops.rope_table(positions, inv_freq, 1.5)
    q = ops.write_kv(qkv, shape, table, style, gains, 0.1, ops.plan(batch), kv)
    split = qkv.reshape(tokens, 5, 8).astype(np.float64)
    for token, head in np.ndindex(tokens, 4):
        x = split[token, head]
        if gains:
            x = rms(x, gains[head // 3], 0.1)
        expected = x.copy()
        for pair in range(turned // 2):
            a, b = (pair, pair + turned // 2) if style == "half" else (2 * pair, 2 * pair + 1)
            # A rotation of the plane (a, b), written as a complex product, times the factor.
            z = (
                complex(x[a], x[b])
                * 1.5
                * complex(math.cos(token * inv_freq[pair]), math.sin(token * inv_freq[pair]))
            )
            expected[a], expected[b] = z.real, z.imag
        assert close(q[token, head] if head < 3 else kv.k[1, token, 0], expected)
    assert close(kv.v[1, :, 0], split[:, 4])


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "clamped_swiglu"])
def test_gated(ops: Ops, kind: Any) -> None:
    """Red if gate and up are swapped, or an activation overflows or clamps the wrong side."""
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [normal(rng, 3, 10) * 4, np.array([[-200.0, 200.0, -90.0, 9.0, 0.0] * 2], np.float32)]
    )
    gate, up = values[:, :5].astype(np.float64), values[:, 5:].astype(np.float64)
    if kind == "silu":
        expected = gate / (1 + np.exp(-gate)) * up
    elif kind == "gelu_tanh":
        expected = gate * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) * up
    else:
        gate, up = np.minimum(gate, 3.0), np.clip(up, -3.0, 3.0)
        expected = gate / (1 + np.exp(-1.2 * gate)) * (up + 1)
    got = np.asarray(ops.gated(values, Activation(kind, alpha=1.2, limit=3.0)), np.float64)
    assert np.abs((got - expected) / np.maximum(np.abs(expected), 1)).max() < TOLERANCE


@given(
    st.sampled_from(["before", "after"]), st.booleans(), st.integers(1, 6), st.integers(1, 6), sizes, seeds
)
def test_route(ops: Ops, softmax: Any, normalize: bool, num: int, top_k: int, tokens: int, seed: int) -> None:
    """Red if the choice or the weights of experts differ from softmax before or after the choice."""
    top_k = min(top_k, num)
    logits = normal(np.random.default_rng(seed), tokens, num)
    ids, weights = ops.route(logits, top_k, softmax, normalize)
    for row, chosen, given_weights in zip(logits.astype(np.float64), ids, weights, strict=True):
        order = sorted(range(num), key=lambda e: -row[e])[:top_k]
        assert [int(e) for e in chosen] == order
        share = np.exp(row) / np.exp(row).sum()
        expected = share[order]
        if softmax == "after" or normalize:
            expected = expected / expected.sum()
        assert close(given_weights, expected)


def test_equal_routing_scores_take_the_first_expert(ops: Ops) -> None:
    """Red if ties are broken by something that may change with the batch."""
    ids, _ = ops.route(np.zeros((3, 5), np.float32), 2, "before", True)
    assert ids.tolist() == [[0, 1]] * 3


@given(sizes, st.integers(1, 3), st.booleans(), seeds)
def test_experts(ops: Ops, tokens: int, top_k: int, biased: bool, seed: int) -> None:
    """Red if a token gets another token's expert, weight or bias; experts without tokens are allowed."""
    rng = np.random.default_rng(seed)
    num, width, size = 4, 5, 3
    gate_up, down = normal(rng, num, 2 * size, width), normal(rng, num, width, size)
    biases = (normal(rng, num, 2 * size), normal(rng, num, width)) if biased else None
    x = normal(rng, tokens, width)
    ids = np.argsort(rng.random((tokens, num)), axis=1)[:, :top_k].astype(np.int32)
    weights = rng.random((tokens, top_k)).astype(np.float32)
    got = ops.experts(
        x, ids, weights, ops.prepare([Tensor(gate_up)]), ops.prepare([Tensor(down)]), Activation(), biases
    )
    expected = np.zeros((tokens, width))
    for token, choice in np.ndindex(tokens, top_k):
        expert = ids[token, choice]
        hidden = gate_up[expert].astype(np.float64) @ x[token] + (biases[0][expert] if biases else 0)
        gated = hidden[:size] / (1 + np.exp(-hidden[:size])) * hidden[size:]
        result = down[expert] @ gated + (biases[1][expert] if biases else 0)
        expected[token] += weights[token, choice] * result
    assert close(got, expected)


def test_add_sigmoid_gated(ops: Ops) -> None:
    """Red if the shared expert is not weighed by the sigmoid of its gate."""
    rng = np.random.default_rng(0)
    x, delta, gate = normal(rng, 3, 4), normal(rng, 3, 4), normal(rng, 3, 1) * 50
    with np.errstate(over="ignore"):
        expected = x + delta / (1 + np.exp(-gate.astype(np.float64)))
    assert close(ops.add_sigmoid_gated(x, delta, gate), expected)


def test_unknown_backend_is_named() -> None:
    """Red if a typing error in `backend` falls back silently to another backend."""
    with pytest.raises(ConfigError, match="'cuda' is not a kernel backend; use one of auto, cpu, reference"):
        open_backend("cuda")
    assert resolve_backend("auto") in backend_names()
