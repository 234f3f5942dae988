"""Paged attention and the KV write of every backend against brute force in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.kernels.backend import OpTableBackend, open_backend
from penstock.kernels.batch import Batch, LayerKV
from penstock.kernels.ops import AttentionParams, HeadShape, Ops
from penstock.kernels.reference import attention as reference_attention
from penstock.kernels.reference import plan as reference_plan

TOLERANCE = 2e-5
NOWHERE = 1 << 30


@pytest.fixture(scope="module", params=["reference"])
def ops(request: pytest.FixtureRequest) -> Ops:
    backend = open_backend(request.param)
    assert isinstance(backend, OpTableBackend)
    return backend.ops


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(
        st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 1, 1, 2, 5, 19])), min_size=1, max_size=7)
    )
    return {
        "rows": rows,
        "kv_heads": draw(st.sampled_from([1, 2, 3])),
        "per_kv": draw(st.sampled_from([1, 2, 5])),
        "head_dim": draw(st.sampled_from([2, 6, 8])),
        "block_size": draw(st.sampled_from([1, 4, 16])),
        "window": draw(st.sampled_from([None, 1, 3, 8, 17, 100])),
        "softcap": draw(st.sampled_from([None, 3.0])),
        "sinks": draw(st.booleans()),
        "seed": draw(st.integers(0, 1 << 20)),
    }


class Scene:
    """A batch over a pool in which only what a row may read is a number."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.rng = rng = np.random.default_rng(case["seed"])
        self.shape = HeadShape(case["kv_heads"] * case["per_kv"], case["kv_heads"], case["head_dim"])
        self.window, size = case["window"], case["block_size"]
        starts = np.array([start for start, _ in case["rows"]], np.int32)
        counts = np.array([count for _, count in case["rows"]], np.int32)
        contexts = starts + counts
        width = -(-int(contexts.max()) // size) + 1
        pool_shape = (3, len(starts) * width, size, case["kv_heads"], case["head_dim"])
        # A layer's pages are strided views of a pool that holds other layers too.
        pool_k, pool_v = np.full(pool_shape, np.nan, np.float32), np.full(pool_shape, np.nan, np.float32)
        self.kv = LayerKV(k=pool_k[1], v=pool_v[1], group=0, block_size=size)
        self.others = (pool_k[::2], pool_v[::2])
        self.table = np.full((len(starts), width), NOWHERE, np.int32)
        ids = rng.permutation(pool_shape[1])
        self.past: list[tuple[np.ndarray, np.ndarray]] = []
        for row, (start, context) in enumerate(zip(starts, contexts, strict=True)):
            oldest = 0 if self.window is None else max(0, int(start) - self.window + 1)
            for block in range(oldest // size, -(-int(context) // size)):
                self.table[row, block] = ids[row * width + block]
            k, v = (rng.normal(size=(start, *pool_shape[3:])).astype(np.float32) for _ in range(2))
            for position in range(oldest, start):
                place = self.table[row, position // size], position % size
                self.kv.k[place], self.kv.v[place] = k[position], v[position]
            self.past.append((k, v))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        total = int(offsets[-1])
        positions = np.concatenate([np.arange(s, c) for s, c in zip(starts, contexts, strict=True)])
        tokens = rng.integers(0, 9, total).astype(np.int32)
        self.batch = Batch(tokens, positions.astype(np.int32), offsets, starts, contexts, (self.table,))
        columns = (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.head_dim
        self.qkv = rng.normal(size=(total, columns)).astype(np.float32)
        self.params = AttentionParams(1 / math.sqrt(case["head_dim"]), self.window, case["softcap"])
        self.sinks = rng.normal(size=self.shape.heads).astype(np.float32) if case["sinks"] else None

    def expected(self) -> np.ndarray:
        """One query and one head at a time, float64."""
        heads, kv_heads, head_dim = self.shape.heads, self.shape.kv_heads, self.shape.head_dim
        split = self.qkv.reshape(len(self.qkv), heads + 2 * kv_heads, head_dim).astype(np.float64)
        out = np.zeros((len(self.qkv), heads, head_dim))
        for row, (k, v) in enumerate(self.past):
            first, last = self.batch.offsets[row], self.batch.offsets[row + 1]
            keys = np.concatenate([k, split[first:last, heads : heads + kv_heads]])
            values = np.concatenate([v, split[first:last, heads + kv_heads :]])
            for token in range(first, last):
                position = self.batch.positions[token]
                oldest = 0 if self.window is None else max(0, position - self.window + 1)
                for head in range(heads):
                    kv_head = head // (heads // kv_heads)
                    scores = keys[oldest : position + 1, kv_head] @ split[token, head] * self.params.scale
                    if self.params.softcap:
                        scores = self.params.softcap * np.tanh(scores / self.params.softcap)
                    weights = np.exp(scores)
                    total = weights.sum() + (0 if self.sinks is None else np.exp(float(self.sinks[head])))
                    out[token, head] = weights @ values[oldest : position + 1, kv_head] / total
        return out.reshape(len(out), -1)

    def run(self, ops: Ops) -> np.ndarray:
        plan = ops.plan(self.batch)
        q = ops.write_kv(self.qkv, self.shape, None, "half", None, 1e-6, plan, self.kv)
        result: np.ndarray = ops.attention(q, plan, self.kv, self.params, self.sinks)
        return result


@given(case=cases())
def test_attention(ops: Ops, case: dict[str, Any]) -> None:
    """Red if a mask, a window edge, a sink, the soft cap or the table is applied to the wrong key, or
    if anything is read that the row does not own (it is NaN, or out of bounds)."""
    scene = Scene(case)
    assert np.abs(scene.run(ops) - scene.expected()).max() < TOLERANCE


@given(case=cases(), score_bytes=st.sampled_from([64, 1024]), gather_bytes=st.sampled_from([64, 4096]))
def test_attention_in_small_pieces(case: dict[str, Any], score_bytes: int, gather_bytes: int) -> None:
    """Red if cutting queries into chunks, or rows into buckets, changes the result."""
    scene = Scene(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_attention, "SCORE_BYTES", score_bytes)
        patch.setattr(reference_plan, "GATHER_BYTES", gather_bytes)
        got = scene.run(open_backend("reference").ops)
    assert np.abs(got - scene.expected()).max() < TOLERANCE


@given(case=cases())
def test_kv_write_touches_only_its_tokens(ops: Ops, case: dict[str, Any]) -> None:
    """Red if a row that straddles blocks writes to a neighbour's block, or to another layer."""
    scene = Scene(case)
    before = scene.kv.k.copy(), scene.kv.v.copy()
    ops.write_kv(scene.qkv, scene.shape, None, "half", None, 1e-6, ops.plan(scene.batch), scene.kv)
    split = scene.qkv.reshape(len(scene.qkv), -1, scene.shape.head_dim)
    size, heads = scene.kv.block_size, scene.shape.heads
    for row in range(scene.batch.num_rows):
        for token in range(scene.batch.offsets[row], scene.batch.offsets[row + 1]):
            block, place = divmod(int(scene.batch.positions[token]), size)
            at = scene.table[row, block], place
            before[0][at] = split[token, heads : heads + scene.shape.kv_heads]
            before[1][at] = split[token, heads + scene.shape.kv_heads :]
    assert np.array_equal(scene.kv.k, before[0], equal_nan=True)
    assert np.array_equal(scene.kv.v, before[1], equal_nan=True)
    assert all(np.isnan(other).all() for other in scene.others)


def test_long_prefill_memory_is_bounded() -> None:
    """Red if the scores of a long prefill are held at once: 16 heads × 4096² would be 1 GiB."""
    import tracemalloc

    ops = open_backend("reference").ops
    length, shape = 4096, HeadShape(16, 2, 8)
    kv = LayerKV(
        k=np.zeros((256, 16, 2, 8), np.float32),
        v=np.zeros((256, 16, 2, 8), np.float32),
        group=0,
        block_size=16,
    )
    batch = Batch(
        tokens=np.zeros(length, np.int32),
        positions=np.arange(length, dtype=np.int32),
        offsets=np.array([0, length], np.int32),
        starts=np.zeros(1, np.int32),
        contexts=np.array([length], np.int32),
        tables=(np.arange(256, dtype=np.int32)[None],),
    )
    q = np.zeros((length, shape.heads, shape.head_dim), np.float32)
    tracemalloc.start()
    ops.attention(q, ops.plan(batch), kv, AttentionParams(1.0), None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < ops.attention_workspace_bytes
