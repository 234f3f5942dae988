"""Linear layers of every instruction set against float64, and what their bits do not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("penstock.kernels.cpu._native", reason="the native extension is not built")

import native_kernels as native
from native_kernels import EXACT_FMA, FORMS, ISAS, linear, panels, seen

seeds = st.integers(0, 2**32 - 1)
row_counts = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 25, 33, 40])


@st.composite
def problems(draw: st.DrawFn, gated: bool = False) -> tuple[native.Panels, np.ndarray, np.random.Generator]:
    """A weight of any form and size and rows for it."""
    rng = np.random.default_rng(draw(seeds))
    form = draw(st.sampled_from(FORMS))
    n = 2 * draw(st.integers(1, 70)) if gated else draw(st.integers(1, 100))
    step = native.inputs_step(form)
    k = step * draw(st.integers(1, max(2, (200 if step == 1 else 288) // step)))
    size = np.float32(draw(st.sampled_from([1e-3, 1, 50])))
    x = rng.standard_normal((draw(row_counts), k)).astype(np.float32) * size
    return panels(rng, form, n, k, gated), x, rng


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_product_is_exact_to_float32_rounding(isa: str, problem: tuple) -> None:
    """Red if a layout, a group's scale, a tail of rows, columns or inputs or a bias goes wrong."""
    weight, x, rng = problem
    bias = rng.standard_normal(weight.n).astype(np.float32)
    exact = seen(weight, x) @ weight.values.T
    # A weight of zero may be a scale times an integer less as much: rounded at their size, not at its own.
    room = 1e-5 * native.bound(weight, x) + 1e-6 * (1.0 + np.abs(x).max(axis=1, keepdims=True))
    assert np.all(np.abs(linear(isa, weight, x) - exact) <= room)
    assert np.all(np.abs(linear(isa, weight, x, bias=bias, scale=0.5) - (exact + bias) / 2) <= room)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_added_and_soft_capped_products(isa: str, problem: tuple) -> None:
    """Red if the residual is overwritten, scaled with the product, or the cap is of another shape."""
    weight, x, rng = problem
    residual = rng.standard_normal((len(x), weight.n)).astype(np.float32)
    exact = seen(weight, x) @ weight.values.T
    room = 1e-5 * native.bound(weight, x) + 1e-5
    added = linear(isa, weight, x, residual, add=True, scale=0.25)
    assert np.all(np.abs(added - (residual + 0.25 * exact)) <= room)
    capped = linear(isa, weight, x, scale=0.25, softcap=30.0)
    assert np.all(np.abs(capped - 30 * np.tanh(0.25 * exact / 30)) <= room)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", ["Q4_0", "Q4_1", "Q8_0"])
@settings(max_examples=40, deadline=None)
@given(seed=seeds, k=st.sampled_from([64, 96, 128, 320, 576]), rows=row_counts, data=st.data())
def test_fine_pairs_see_more_of_their_inputs(
    isa: str, form: str, seed: int, k: int, rows: int, data: st.DataObject
) -> None:
    """Red if the rest of a fine pair meets another pair's weights, is lost, or moves what lies beside it."""
    rng = np.random.default_rng(seed)
    fine = np.array(sorted(data.draw(st.sets(st.integers(0, k // 64 - 1)))), np.uint16)
    weight = panels(rng, form, data.draw(st.integers(1, 40)), k)
    x = rng.standard_normal((rows, k)).astype(np.float32)
    kernels, made = native._native.Kernels(isa), native.quantized_rows(rows, k, len(fine))
    kernels.quantize(x, made, fine)
    out = np.full((rows, weight.n), 99, np.float32)
    kernels.linear(weight.view, None, made, out, None, fine=fine)
    exact = (seen(weight, x) + native.reference_rest(x, fine)) @ weight.values.T
    # A value half way between two 128th steps may take either.
    either = np.abs(x).max(initial=0) / 127 / 128 * np.abs(weight.values).max() * 4
    assert np.all(np.abs(out - exact) <= 1e-5 * native.bound(weight, x) + either)


@pytest.mark.parametrize("isa", ISAS)
def test_a_norm_makes_the_same_fine_rows(isa: str) -> None:
    """Red if a norm's fine rows differ from those of its result as floats."""
    x = np.random.default_rng(3).standard_normal((5, 320)).astype(np.float32) * 3
    fine = np.array([1, 4], np.uint16)
    floats, normed, again = (
        np.empty_like(x),
        native.quantized_rows(5, 320, 2),
        native.quantized_rows(5, 320, 2),
    )
    kernels = native._native.Kernels(isa)
    kernels.norm(x, np.ones(320, np.float32), 1e-5, floats, normed, fine)
    kernels.quantize(floats, again, fine)
    assert all(np.array_equal(a, b) for a, b in zip(normed, again, strict=True))


def activation(kind: int, gate: np.ndarray, up: np.ndarray, alpha: float, limit: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        if kind == 0:
            return gate / (1 + np.exp(-gate)) * up
        if kind == 1:
            return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        return gate / (1 + np.exp(-alpha * gate)) * (up + 1)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(problem=problems(gated=True), kind=st.sampled_from([0, 1, 2]), biased=st.booleans())
def test_gated_product(isa: str, problem: tuple, kind: int, biased: bool) -> None:
    """Red if gates and ups are mixed up at odd sizes, or the quantized copy differs from the floats."""
    weight, x, rng = problem
    x = x / np.float32(np.sqrt(weight.k))
    rows, size = len(x), weight.n // 2
    bias = rng.standard_normal(weight.n).astype(np.float32) if biased else None
    out, quantized = np.full((rows, size), 99, np.float32), native.quantized_rows(rows, size)
    native._native.Kernels(isa).linear_gated(
        weight.view, **native.rows_for(isa, weight, x), out=out, out_quantized=quantized, bias=bias,
        kind=kind, alpha=1.702, limit=7.0, rows=rows,
    )  # fmt: skip
    product = seen(weight, x) @ weight.values.T + (0 if bias is None else bias)
    exact = activation(kind, product[:, :size], product[:, size:], 1.702, 7.0)
    error = 1e-5 * native.bound(weight, x) + 1e-6
    by_gate = error[:, :size] * (np.abs(product[:, size:]) + 2) * 2
    by_up = error[:, size:] * (np.abs(product[:, :size]) + 2) * 2
    assert np.all(np.abs(out - exact) <= by_gate + by_up + 1e-5 * np.abs(exact))
    for made, expected in zip(quantized, native.reference_quantize(out), strict=True):
        assert np.array_equal(made, expected)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(problem=problems(), data=st.data())
def test_bits_of_a_row_are_its_own(isa: str, problem: tuple, data: st.DataObject) -> None:
    """Red if a row's result depends on how many rows are computed with it, or on which."""
    weight, x, _ = problem
    together = linear(isa, weight, x)
    for row in range(min(len(x), 4)):
        start = data.draw(st.integers(0, row))
        stop = data.draw(st.integers(row + 1, len(x)))
        assert np.array_equal(linear(isa, weight, x[start:stop])[row - start], together[row])


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_instruction_sets_agree_to_the_bit(problem: tuple) -> None:
    """Red if instruction sets with fused multiply-add differ in any bit, or the portable one by rounding."""
    weight, x, rng = problem
    bias = rng.standard_normal(weight.n).astype(np.float32)
    results = {isa: linear(isa, weight, x, bias=bias) for isa in ISAS}
    first = results[ISAS[0]]
    for isa in EXACT_FMA:
        assert np.array_equal(results[isa].view(np.uint32), first.view(np.uint32)), isa
    assert np.all(np.abs(results["portable"] - first) <= 4e-6 * native.bound(weight, x) + 1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_broken_inputs_stay_in_their_row(isa: str, form: str, broken: float) -> None:
    """Red if a NaN or infinity turns into numbers, or reaches another row."""
    rng = np.random.default_rng(5)
    weight = panels(rng, form, 37, 256)
    x = rng.standard_normal((11, 256)).astype(np.float32)
    clean = linear(isa, weight, x)
    x[4, 77] = broken
    result = linear(isa, weight, x)
    assert np.array_equal(np.delete(result, 4, axis=0), np.delete(clean, 4, axis=0))
    if weight.quantized:
        assert np.isnan(result[4]).all()
    else:
        assert not np.isfinite(result[4]).any()


@pytest.mark.parametrize("isa", ISAS)
def test_largest_integer_sums(isa: str) -> None:
    """Red if an instruction set's integer sums saturate or overflow where all products are largest."""
    for form, fills in (("Q4_1", (0xFF, 0xF0, 0x0F)), ("Q8_0", (0x80, 0x7F, 0x81))):
        for fill in fills:
            for sign in (1, -1):
                raw = native.stored_rows(np.random.default_rng(1), form, 16, 64).reshape(16, 2, -1)
                raw[:, :, 2 if form == "Q8_0" else 4 :] = fill
                raw = np.ascontiguousarray(raw.reshape(16, -1))
                weight = native.packed(form, raw, 16, 64)
                x = np.full((3, 64), sign, np.float32)
                error = np.abs(linear(isa, weight, x) - seen(weight, x) @ weight.values.T)
                assert np.all(error <= 1e-6 * native.bound(weight, x))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=30, deadline=None)
@given(seed=seeds, form=st.sampled_from(FORMS), n=st.integers(1, 60), groups=st.integers(1, 3))
def test_embedding_rows(isa: str, seed: int, form: str, n: int, groups: int) -> None:
    """Red if a row is read from another lane or panel, or with another group's scale."""
    rng = np.random.default_rng(seed)
    weight = panels(rng, form, n, max(32, native.inputs_step(form)) * groups)
    for token in {0, n // 2, n - 1}:
        out = np.empty(weight.k, np.float32)
        native._native.Kernels(isa).embed(weight.view, token, 1.5, out)
        assert np.allclose(out, 1.5 * weight.values[token], rtol=3e-7, atol=1e-6)
