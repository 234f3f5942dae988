"""Packed weights: exact values of every stored type, checkpoint integers, rounding, which form is chosen."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("penstock.kernels.cpu._native", reason="the native extension is not built")

import native_kernels as native
from native_kernels import ISAS, STORED

from penstock.errors import ModelRefused
from penstock.kernels.codes import QuantizedCodes
from penstock.kernels.cpu.weights import CpuWeights, JoinedWeight
from penstock.models.weights.dequantize import dequantize

seeds = st.integers(0, 2**32 - 1)


class Tensor:
    """A WeightTensor of given rows, codes or floats."""

    def __init__(self, dtype: str, shape: tuple[int, ...], content: Any) -> None:
        self.dtype, self.shape, self.content = dtype, shape, content

    def float32(self, out: np.ndarray | None = None) -> np.ndarray:
        if isinstance(self.content, QuantizedCodes):
            c = self.content
            scale, offset = (np.repeat(a, c.group, axis=-1) for a in (c.scale, c.offset))
            return (scale * c.values + offset).astype(np.float32)
        if self.content.dtype == np.float32:
            return self.content
        return dequantize(self.content.reshape(-1), self.dtype, self.shape)

    def raw(self) -> np.ndarray | None:
        return self.content if self.dtype in native.STORED or self.dtype == "Q2_K" else None

    def codes(self) -> QuantizedCodes | None:
        return self.content if isinstance(self.content, QuantizedCodes) else None


def stored(rng: np.random.Generator, dtype: str, n: int, k: int, experts: int = 0) -> Tensor:
    outer = (experts,) if experts else ()
    raw = native.stored_rows(rng, dtype, max(experts, 1) * n, k)
    return Tensor(dtype, (*outer, n, k), raw.reshape(*outer, n, -1))


def floats(rng: np.random.Generator, n: int, k: int, dtype: str = "F32") -> Tensor:
    return Tensor(dtype, (n, k), rng.standard_normal((n, k)).astype(np.float32))


def values(weight: native.Panels | Any, n: int, k: int, isa: str = ISAS[0]) -> np.ndarray:
    """float32 [n, k], read back row by row through `embed`."""
    out = np.empty((n, k), np.float32)
    for row in range(n):
        native._native.Kernels(isa).embed(weight, row, 1.0, out[row])
    return out


def held(packed: Any, data: np.ndarray) -> np.ndarray:
    """The values of a PackedWeight that CpuWeights made in `data`."""
    view = native._native.PanelView(packed.format, packed.n, packed.k, False, data, packed.group)
    return values(view, packed.n, packed.k)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", list(STORED))
@settings(max_examples=6, deadline=None)
@given(seed=seeds, n=st.integers(1, 40), blocks=st.integers(1, 3), gated=st.booleans())
def test_stored_types_keep_every_bit(
    isa: str, form: str, seed: int, n: int, blocks: int, gated: bool
) -> None:
    """Red if a block's bits, scales or order are read wrongly, or a scale is rounded on the way."""
    rng = np.random.default_rng(seed)
    k = native.inputs_step(form) * blocks
    raw = native.stored_rows(rng, form, 2 * n if gated else n, k)
    weight = native.packed(form, raw, len(raw), k)
    expected = dequantize(raw.reshape(-1), form, (len(raw), k))
    assert np.array_equal(values(weight.view, len(raw), k, isa), expected)


@pytest.mark.parametrize("form", ["Q4_0", "Q5_0"])
@pytest.mark.parametrize("scale", [5e-8, 1e-7, 3e-5, 6.2e-5, 1.0, 4000.0])
def test_minima_of_symmetric_types_are_exact(form: str, scale: float) -> None:
    """Red if scale times 8 or 16 is rounded, subnormal scales included."""
    raw = native.stored_rows(np.random.default_rng(0), form, 16, 64)
    raw.reshape(32, -1)[:, :2] = np.full(32, scale, np.float16).view(np.uint8).reshape(32, 2)
    weight = native.packed(form, raw, 16, 64)
    assert np.array_equal(values(weight.view, 16, 64), dequantize(raw.reshape(-1), form, (16, 64)))


def test_a_minimum_beyond_half_precision_is_refused() -> None:
    """Red if such a weight becomes infinite instead of an error that says what to do."""
    raw = native.stored_rows(np.random.default_rng(0), "Q5_0", 16, 32)
    raw[:, :2] = np.full(16, 5000, np.float16).view(np.uint8).reshape(16, 2)
    with pytest.raises(ModelRefused, match="weights float32"):
        CpuWeights().prepare([Tensor("Q5_0", (16, 32), raw)])


@settings(max_examples=40, deadline=None)
@given(seed=seeds, n=st.integers(1, 40), k=st.integers(1, 130), size=st.sampled_from([1e-3, 1.0, 300.0]))
def test_floats_rounded_to_int8(seed: int, n: int, k: int, size: float) -> None:
    """Red if a weight is off by more than half a step of its row's scale."""
    rows = (np.random.default_rng(seed).standard_normal((n, k)) * size).astype(np.float32)
    data = np.zeros(native._native.packed_bytes(native.Q8_GROUP, n, k, 1, False, k), np.uint8)
    native._native.PackedWeight(native.Q8_GROUP, n, k, 1, False, data, True, k).quantize(rows, 0, 0)
    got = values(native._native.PanelView(native.Q8_GROUP, n, k, False, data, k), n, k)
    step = np.abs(rows).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(got - rows) <= 0.5001 * step)
    assert np.allclose(np.abs(got).max(axis=1), np.abs(rows).max(axis=1), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, n=st.integers(1, 40), k=st.integers(1, 130), size=st.sampled_from([1e-2, 1.0, 300.0]))
def test_floats_rounded_to_int4(seed: int, n: int, k: int, size: float) -> None:
    """Red if a weight is off by more than half a step of its group of 32 and the rounding of its scales."""
    rows = (np.random.default_rng(seed).standard_normal((n, k)) * size).astype(np.float32)
    data = np.zeros(native._native.packed_bytes(native.Q4, n, k, 1, False), np.uint8)
    native._native.PackedWeight(native.Q4, n, k, 1, False, data, True).quantize(rows, 0, 0)
    got = values(native._native.PanelView(native.Q4, n, k, False, data), n, k)
    for first in range(0, k, 32):
        group = rows[:, first : first + 32]
        span = group.max(axis=1) - group.min(axis=1)
        room = span / 30 + 2e-3 * (span + np.abs(group).max(axis=1)) + 1e-6
        assert np.all(np.abs(got[:, first : first + 32] - group) <= room[:, None])


@pytest.mark.parametrize("form", [native.Q4, native.Q8_GROUP])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_broken_floats_are_not_rounded(form: int, broken: float) -> None:
    """Red if a NaN or infinity silently becomes an integer."""
    rows = np.ones((16, 64), np.float32)
    rows[3, 40] = broken
    group = 64 if form == native.Q8_GROUP else 0
    data = np.zeros(native._native.packed_bytes(form, 16, 64, 1, False, group), np.uint8)
    with pytest.raises(OverflowError, match="not a number"):
        native._native.PackedWeight(form, 16, 64, 1, False, data, True, group).quantize(rows, 0, 0)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=30, deadline=None)
@given(seed=seeds, rows=st.integers(1, 5), n=st.integers(1, 150))
def test_activations_per_token(isa: str, seed: int, rows: int, n: int) -> None:
    """Red if a row has more than one scale, or its sums don't belong to it."""
    x = np.random.default_rng(seed).standard_normal((rows, n)).astype(np.float32)
    q, scale, total, start, half = made = native.quantized_rows(rows, n)
    native._native.Kernels(isa).quantize_row(x, made)
    peak = np.abs(x).max(axis=1, keepdims=True)
    groups = -(-n // 32)
    padded = np.zeros_like(q, np.float32)
    padded[:, :n] = x
    assert np.array_equal(q, np.rint(padded * (np.float32(127) / peak)).astype(np.int8))
    assert np.array_equal(scale[:, :groups], np.repeat(peak * np.float32(1 / 127), groups, axis=1))
    sums = q.reshape(rows, -1, 32).sum(axis=2, dtype=np.int32)
    assert np.array_equal(total, scale * sums.astype(np.float32))
    assert np.array_equal(start, 0x4B400000 - 128 * sums)
    assert np.array_equal(half, 0x4B400000 - 32 * q.reshape(rows, -1, 16).sum(axis=2, dtype=np.int32))


def codes_of(rng: np.random.Generator, bits: int, n: int, k: int, group: int, **more: Any) -> Tensor:
    """Integers with 16-bit scales and zero points."""
    scale = rng.uniform(0.01, 0.1, (n, k // group)).astype(np.float16).astype(np.float32)
    zero = rng.integers(0, 2**bits, scale.shape).astype(np.float32)
    integers = rng.integers(0, 2**bits, (n, k), np.uint8)
    return Tensor(
        f"INT{bits}/{group}", (n, k), QuantizedCodes(integers, bits, group, scale, -scale * zero, **more)
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("k", "group"), [(64, 32), (96, 32), (192, 64), (256, 128), (40, 40), (192, 96)])
def test_checkpoint_integers_keep_their_values(bits: int, k: int, group: int) -> None:
    """Red if a group's scale or offset is taken for another's, or repeated wrongly."""
    rng = np.random.default_rng(bits * k)
    weights, tensor = CpuWeights(), codes_of(rng, bits, 37, k, group, activation="token")
    packed = weights.prepare([tensor])
    got = held(packed, packed.data)
    assert np.allclose(got, tensor.float32(), rtol=0, atol=2e-6)
    assert packed.per_token and packed.nbytes == weights.weight_bytes(tensor.shape, tensor.dtype)


def test_groups_that_no_form_has_are_floats(caplog: pytest.LogCaptureFixture) -> None:
    """Red if integers in groups of 16 are rounded or refused instead of kept exactly, aloud and once."""
    weights = CpuWeights()
    tensor = codes_of(np.random.default_rng(1), 4, 20, 64, 16)
    with caplog.at_level(logging.INFO, "penstock.kernels"):
        packed = weights.prepare([tensor])
        weights.prepare([tensor])
    assert packed.format == native.F32 and packed.nbytes == weights.weight_bytes((20, 64), "INT4/16")
    assert np.array_equal(held(packed, packed.data), tensor.float32())
    assert [record.message for record in caplog.records] == [
        "INT4/16 has no native form: kept as float32, exactly"
    ]


@pytest.mark.parametrize("precision", ["file", "float32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("dtype", [*STORED, "Q2_K", "F32", "BF16"])
def test_bytes_are_known_before_loading(precision: Any, dtype: str) -> None:
    """Red if the memory plan counts other bytes than a weight takes."""
    rng, weights = np.random.default_rng(3), CpuWeights(precision)
    if dtype in ("F32", "BF16"):
        tensor = floats(rng, 48, 256, dtype)
    elif dtype == "Q2_K":
        tensor = Tensor(dtype, (48, 256), rng.integers(0, 60, (48, 84), np.uint8))
    else:
        tensor = stored(rng, dtype, 48, 256)
    for role in ("layer", "vocabulary", "router"):
        packed = weights.prepare([tensor], role)
        assert packed.nbytes == weights.weight_bytes(tensor.shape, dtype, role)


def test_parts_of_several_types_are_joined() -> None:
    """Red if the rows of a fused matrix that a file stores in two types lose a form of their own."""
    rng = np.random.default_rng(4)
    parts = [stored(rng, "Q4_K", 32, 256), stored(rng, "Q4_K", 16, 256), stored(rng, "Q6_K", 16, 256)]
    joined = CpuWeights().prepare(parts)
    assert isinstance(joined, JoinedWeight)
    assert [(part.format, part.n) for part in joined.parts] == [(native.Q4_SUPER, 48), (native.Q6, 16)]
    got = np.concatenate([held(part, part.data) for part in joined.parts])
    assert np.array_equal(got, np.concatenate([part.float32() for part in parts]))


def test_routers_are_not_rounded() -> None:
    """Red if what chooses experts is rounded to bfloat16 or to integers."""
    tensor = floats(np.random.default_rng(5), 8, 64)
    for precision in ("file", "int8", "int4"):
        packed = CpuWeights(precision).prepare([tensor], "router")  # type: ignore[arg-type]
        assert packed.format == native.F32


def test_experts_are_packed_one_by_one() -> None:
    """Red if an expert's rows land in another expert's panels."""
    rng = np.random.default_rng(6)
    tensor = stored(rng, "Q5_K", 24, 256, experts=3)
    packed = CpuWeights().prepare([tensor])
    size = packed.nbytes // 3
    for expert in range(3):
        view = native._native.PanelView(
            packed.format, 24, 256, False, packed.data[expert * size : (expert + 1) * size]
        )
        assert np.array_equal(values(view, 24, 256), tensor.float32()[expert])
