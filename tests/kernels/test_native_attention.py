"""Native attention over pages against the reference's, and against itself however it is cut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

native = pytest.importorskip("penstock.kernels.cpu._native", reason="the native extension is not built")

from penstock.kernels.batch import Batch, LayerKV
from penstock.kernels.ops import AttentionParams, HeadShape
from penstock.kernels.reference.attention import attention
from penstock.kernels.reference.plan import ReferencePlan
from penstock.kernels.reference.rope import RopeTable, write_kv

ISAS = [name for name, present, _ in native.instruction_sets() if present]
INT8, BF16, F32 = 1, 2, 4  # kv kinds: bytes of an element
NOWHERE = 1 << 30
EPS = 1e-6


def to_bf16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, ties to even, as float32."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def to_int8(x: np.ndarray) -> np.ndarray:
    """x [..., D] on a grid of 127 steps up to its largest magnitude, as float32."""
    scale = np.abs(x).max(-1, keepdims=True) * np.float32(1 / 127)
    return (np.rint(x / np.where(scale > 0, scale, 1)) * scale).astype(np.float32)


def head_bytes(kind: int, head_dim: int) -> int:
    """Of one token's key or value."""
    return -(-head_dim // 4) * 4 + 4 if kind == INT8 else head_dim * kind


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    head_dim = draw(st.sampled_from([2, 6, 8, 16, 18, 32, 64, 80, 128, 512]))
    return {
        "start": draw(st.sampled_from([0, 1, 2, 15, 16, 63, 64, 65, 130, 511, 512, 1030])),
        "count": draw(st.sampled_from([1, 1, 2, 5, 19, 70])),
        "kv_heads": draw(st.sampled_from([1, 2])),
        "per_kv": draw(st.sampled_from([1, 2, 3, 7, 16])),
        "head_dim": head_dim,
        "half": draw(st.integers(0, head_dim // 2)),
        "interleaved": draw(st.booleans()),
        "gains": draw(st.booleans()),
        "block_size": draw(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 256])),
        "window": draw(st.sampled_from([0, 0, 1, 3, 17, 100, 600])),
        "softcap": draw(st.sampled_from([0.0, 3.0])),
        "sinks": draw(st.booleans()),
        "kind": draw(st.sampled_from([INT8, BF16, F32])),
        "seed": draw(st.integers(0, 1 << 20)),
    }


class Scene:
    """One row: past tokens and a chunk, in a pool in which only what the chunk may read is a number."""

    def __init__(self, case: dict[str, Any], isa: str) -> None:
        rng = np.random.default_rng(case["seed"])
        self.case = case
        self.shape = HeadShape(case["kv_heads"] * case["per_kv"], case["kv_heads"], case["head_dim"])
        heads, kv_heads, d = self.shape.heads, self.shape.kv_heads, self.shape.head_dim
        self.start, self.count, size = case["start"], case["count"], case["block_size"]
        self.context = self.start + self.count
        blocks = -(-self.context // size) + 1
        page = size * head_bytes(case["kind"], d)
        self.block_bytes = 2 * kv_heads * page
        self.pool = np.full(blocks * self.block_bytes, 0xFF, np.uint8)
        self.table = np.full(blocks, NOWHERE, np.int32)
        needed = -(-self.context // size)
        self.table[:needed] = rng.permutation(blocks)[:needed]
        self.qkv = rng.normal(size=(self.context, (heads + 2 * kv_heads) * d)).astype(np.float32)
        angles = rng.uniform(-3, 3, (self.context, case["half"])).astype(np.float32)
        self.cos, self.sin = np.cos(angles), np.sin(angles)
        self.gains = (
            [rng.normal(1, 0.1, d).astype(np.float32) for _ in range(2)] if case["gains"] else [None] * 2
        )
        self.sinks = rng.normal(size=heads).astype(np.float32) if case["sinks"] else None
        self.scale = 1 / math.sqrt(d)
        self.layer = native.AttentionLayer(isa, heads, kv_heads, d, size, case["kind"], self.pool, page)
        self.layer.attention(case["window"], case["softcap"], self.sinks)
        self.layer.rotation(case["interleaved"], self.gains[0], self.gains[1], EPS, self.scale)
        self.q = np.empty((self.context, heads * d), np.float32)

    def write(self) -> None:
        """Rotates all tokens; then forgets the blocks that the chunk's window has left behind."""
        self.layer.rotate(self.qkv, self.cos, self.sin, self.table, 0, self.q)
        window, size = self.case["window"], self.case["block_size"]
        for block in range(max(0, self.start - window + 1) // size if window else 0):
            self.pool.reshape(-1, self.block_bytes)[self.table[block]] = 0xFF
            self.table[block] = NOWHERE

    def run(self, tokens: int, heads: int, split: bool = False, quantized: Any = (None, None)) -> np.ndarray:
        out = np.full((self.count, self.q.shape[1]), np.nan, np.float32)
        self.layer.attend(self.q[self.start :], self.table, self.start, tokens, heads, split, out, *quantized)
        return out

    def expected(self) -> np.ndarray:
        case, d = self.case, self.shape.head_dim
        pages = [np.zeros((self.context, 1, self.shape.kv_heads, d), np.float32) for _ in range(2)]
        kv = LayerKV(k=pages[0], v=pages[1], group=0, block_size=1)
        table = np.arange(self.context, dtype=np.int32)[None]

        def plan(first: int) -> ReferencePlan:
            return ReferencePlan(
                Batch(
                    tokens=np.zeros(self.context - first, np.int32),
                    positions=np.arange(first, self.context, dtype=np.int32),
                    offsets=np.array([0, self.context - first], np.int32),
                    starts=np.array([first], np.int32),
                    contexts=np.array([self.context], np.int32),
                    tables=(table,),
                )
            )

        gains = None if self.gains[0] is None else (self.gains[0], self.gains[1])
        style = "interleaved" if case["interleaved"] else "half"
        q = write_kv(self.qkv, self.shape, RopeTable(self.cos, self.sin), style, gains, EPS, plan(0), kv)
        rounded = {BF16: to_bf16, INT8: to_int8}.get(case["kind"], np.copy)
        for page in pages:
            page[:] = rounded(page)
        params = AttentionParams(self.scale, case["window"] or None, case["softcap"] or None)
        return attention(q[self.start :], plan(self.start), kv, params, self.sinks)


def tolerance(isa: str, kind: int) -> float:
    if kind == F32:
        return 4e-5
    if kind == INT8:  # a value half way between two steps may take either
        return 0.03
    # Dot products take queries and probabilities as bfloat16: 2^-9 each.
    return 0.06 if isa == "avx512_bf16" else 2e-3


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_against_the_reference(isa: str, case: dict[str, Any]) -> None:
    """Red if a mask, window edge, sink, soft cap, rotation or page layout differs from the reference's, or
    anything is read that the row does not own (it is NaN, or out of bounds)."""
    scene = Scene(case, isa)
    scene.write()
    got = scene.run(tokens=16, heads=case["per_kv"])
    assert np.abs(got - scene.expected()).max() < tolerance(isa, case["kind"])


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=40)
@given(case=cases(), tokens=st.sampled_from([1, 2, 5, 64]), heads=st.integers(1, 16))
def test_same_bits_however_cut(isa: str, case: dict[str, Any], tokens: int, heads: int) -> None:
    """Red if a query's bits depend on the queries computed with it, or on where ranges are merged."""
    scene = Scene(case, isa)
    scene.write()
    want = scene.run(tokens=16, heads=case["per_kv"])
    assert np.array_equal(scene.run(tokens, heads), want)
    if not case["window"]:
        assert np.array_equal(scene.run(1, heads, split=True), want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("split", [False, True])
def test_int8_of_the_result(isa: str, split: bool) -> None:
    """Red if attention's own int8 of its result is another than rounding that result by groups of 32."""
    case = {
        "start": 600, "count": 5, "kv_heads": 2, "per_kv": 3, "head_dim": 64, "half": 32,
        "interleaved": False, "gains": False, "block_size": 16, "window": 0, "softcap": 0.0,
        "sinks": False, "kind": BF16, "seed": 1,
    }  # fmt: skip
    scene = Scene(case, isa)
    scene.write()
    q = np.zeros((5, 384), np.int8)
    scale = np.zeros((5, 12), np.float32)
    out = scene.run(16, 3, split, (q, scale))
    groups = out.reshape(5, 12, 32)
    peak = np.abs(groups).max(-1)
    assert np.allclose(scale, peak / 127, rtol=1e-6)
    assert np.abs(q.reshape(groups.shape) - groups * (127 / peak)[..., None]).max() <= 0.5001
