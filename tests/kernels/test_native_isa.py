"""Instruction sets: how one is chosen, and the kernels beside products, each against numpy and each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("penstock.kernels.cpu._native", reason="the native extension is not built")

import native_kernels as native
from native_kernels import EXACT_FMA, ISAS

from penstock.kernels.cpu import _native

seeds = st.integers(0, 2**32 - 1)
widths = st.one_of(st.integers(1, 200), st.sampled_from([576, 1536]))


def random_rows(seed: int, rows: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, n)) * 10.0 ** rng.integers(-4, 4, (rows, 1))).astype(np.float32)


def test_auto_takes_the_first_that_is_present() -> None:
    """Red if "auto" is not the best set, portable is missing, or a reason is."""
    sets = _native.instruction_sets()
    assert sets[-1][:2] == ("portable", True)
    assert _native.Kernels("auto").name == next(name for name, present, _ in sets if present)
    for name, present, reason in sets:
        assert reason
        if present:
            assert _native.Kernels(name).name == name


def test_what_is_missing_or_unknown_is_refused_by_name() -> None:
    """Red if a forced set silently becomes another one."""
    for name, present, reason in _native.instruction_sets():
        if not present:
            with pytest.raises(ValueError, match=reason):
                _native.Kernels(name)
    with pytest.raises(ValueError, match=r"mmx is unknown; use one of auto, .*portable"):
        _native.Kernels("mmx")


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(seed=seeds, rows=st.integers(0, 5), n=widths)
def test_quantized_activations_are_numpys(isa: str, seed: int, rows: int, n: int) -> None:
    """Red if a scale, a rounding, a sum or the zeros beyond the end differ in any bit."""
    x = random_rows(seed, rows, n)
    x[:, : n // 3] *= np.float32(0)  # whole groups of zeros too
    for made, expected in zip(native.quantize(isa, x), native.reference_quantize(x), strict=True):
        assert np.array_equal(made, expected)


@pytest.mark.parametrize("isa", ISAS)
def test_quantization_rounds_ties_to_even(isa: str) -> None:
    """Red if halves are rounded away from zero."""
    x = np.zeros((1, 32), np.float32)
    x[0, :6] = (127, 0.5, 1.5, 2.5, -0.5, -2.5)
    assert native.quantize(isa, x)[0][0, :6].tolist() == [127, 0, 2, 2, 0, -2]


@settings(max_examples=60, deadline=None)
@given(seed=seeds, rows=st.integers(1, 4), n=widths)
def test_norm(seed: int, rows: int, n: int) -> None:
    """Red if a norm loses its tail, its gain or its quantized copy, or instruction sets differ in a bit."""
    x = random_rows(seed, rows, n)
    gain = np.random.default_rng(seed + 1).standard_normal(n).astype(np.float32)
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * gain
    results = {}
    for isa in ISAS:
        out, quantized = np.full_like(x, 99), native.quantized_rows(rows, n)
        _native.Kernels(isa).norm(x, gain, 1e-5, out, quantized)
        assert np.allclose(out, exact, rtol=2e-6, atol=1e-7)
        for made, expected in zip(quantized, native.reference_quantize(out), strict=True):
            assert np.array_equal(made, expected)
        results[isa] = out
    for isa in EXACT_FMA:
        assert np.array_equal(results[isa], results[EXACT_FMA[0]]), isa


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(seed=seeds, n=widths, gate=st.floats(-100, 100, width=32))
def test_gated_addition(isa: str, seed: int, n: int, gate: float) -> None:
    """Red if the sigmoid is inexact or overflows, or elements beyond a multiple of 16 are forgotten."""
    x, delta = random_rows(seed, 2, n)
    exact = x.astype(np.float64) + delta / (1 + np.exp(-np.float64(gate)))
    out = x.copy()
    _native.Kernels(isa).add_sigmoid(out, delta, gate)
    assert np.all(np.abs(out - exact) <= 1e-6 * (np.abs(x) + np.abs(delta)) + 1e-30)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=80, deadline=None)
@given(seed=seeds, n=st.integers(1, 100), levels=st.integers(1, 50), broken=st.booleans())
def test_argmax_takes_the_first_and_shows_nans(
    isa: str, seed: int, n: int, levels: int, broken: bool
) -> None:
    """Red if ties go to a later index, a NaN is overlooked, or a tail is."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-levels, levels, n).astype(np.float32)
    if broken:
        x[rng.integers(n)] = np.nan
    assert _native.Kernels(isa).argmax(x) == int(np.argmax(x))
    assert _native.Kernels(isa).argmax(np.full(n, -np.inf, np.float32)) == 0
