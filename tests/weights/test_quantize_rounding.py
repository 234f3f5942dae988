"""Rounding weights: error against brute force, ranges, packing against the compressed-tensors package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.models.quantize.round import (
    Groups,
    bfloat16_bits,
    pack_rows,
    round_groups,
    round_rows,
    to_bfloat16,
)

WEIGHTS = st.floats(-4, 4, width=16)


def meaning(groups: Groups, group: int) -> np.ndarray:
    places = np.arange(groups.values.shape[1]) // group
    return groups.scale[:, places] * (groups.values - groups.zero[:, places].astype(np.float32))


@given(arrays(np.float32, (3, 32), elements=WEIGHTS))
def test_rows_are_within_half_a_step(weight: np.ndarray) -> None:
    """Red if int8 rows are clipped, use -128, or miss the nearest of 255 steps."""
    values, scale = round_rows(weight)
    assert (values.dtype, scale.shape) == (np.int8, (3, 1))
    assert values.min() >= -127
    assert (np.abs(values * scale - weight) <= 0.5001 * scale + 1e-7).all()
    assert (scale > 0).all()


@given(arrays(np.float32, (2, 64), elements=WEIGHTS), st.booleans())
def test_groups_are_no_worse_than_plain_rounding(weight: np.ndarray, symmetric: bool) -> None:
    """Red if the search picks a worse clipping than none, or stores a scale that is no bfloat16."""
    groups = round_groups(weight, 32, symmetric=symmetric)
    assert groups.values.max() <= 15
    assert groups.zero.max() <= 15
    assert not symmetric or (groups.zero == 8).all()
    np.testing.assert_array_equal(to_bfloat16(groups.scale), groups.scale)
    error = ((meaning(groups, 32) - weight) ** 2).reshape(2, 2, 32).sum(axis=2)
    low, high = (extreme(weight.reshape(2, 2, 32), axis=2) for extreme in (np.min, np.max))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    span = 2 * np.maximum(high, -low) if symmetric else high - low
    scale = np.maximum(to_bfloat16(span / 15), 2.0**-100)[..., None]
    zero = np.full_like(scale, 8) if symmetric else np.clip(np.rint(-low[..., None] / scale), 0, 15)
    plain = (np.clip(np.rint(weight.reshape(2, 2, 32) / scale) + zero, 0, 15) - zero) * scale
    assert (error <= ((plain - weight.reshape(2, 2, 32)) ** 2).sum(axis=2) * 1.001 + 1e-12).all()


def test_clipping_pays_where_one_value_sticks_out() -> None:
    """Red if the search for the clipping ratio does not search."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((50, 128)).astype(np.float32)
    weight[:, 5] = 5.0
    found = meaning(round_groups(weight, 128), 128)
    low, high = weight.min(axis=1, keepdims=True), weight.max(axis=1, keepdims=True)
    step = (high - low) / 15
    plain = np.rint((weight - low) / step) * step + low
    assert ((found - weight) ** 2).mean() < 0.95 * ((plain - weight) ** 2).mean()


@pytest.mark.parametrize("symmetric", [False, True])
def test_values_on_the_grid_are_kept(symmetric: bool) -> None:
    """Red if weights that int4 can hold exactly come out changed: quantizing twice would add up."""
    rng = np.random.default_rng(1)
    zero = 8 if symmetric else 5
    values = rng.integers(0, 16, (40, 4, 32))
    values[..., 0], values[..., 1] = (1, 15) if symmetric else (0, 15)
    if symmetric:
        values[..., 2] = 0
    scale = to_bfloat16(rng.uniform(0.01, 0.02, (40, 4, 1)).astype(np.float32))
    weight = ((values - zero) * scale).astype(np.float32).reshape(40, 128)
    found = meaning(round_groups(weight, 32, symmetric=symmetric), 32)
    if symmetric:  # the full range is ±7.5 steps; -8 needs the next wider scale
        assert np.abs(found - weight).max() <= 0.6 * scale.max()
    else:
        np.testing.assert_array_equal(found, weight)


@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=st.integers(0, 255)))
def test_packing_is_the_package_s(values: np.ndarray) -> None:
    """Red if another reader of the format would see other integers."""
    for bits in (4, 8):
        cut = values & (2**bits - 1)
        words = torch.from_numpy(pack_rows(cut, bits))
        read = unpack_from_int32(words, bits, torch.Size(cut.shape)).numpy().astype(np.int64) + 2 ** (
            bits - 1
        )
        np.testing.assert_array_equal(read, cut)


@given(arrays(np.float32, 8, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_bfloat16_is_torch_s(values: np.ndarray) -> None:
    """Red if rounding to bfloat16 is not to nearest even."""
    expected = torch.from_numpy(values).to(torch.bfloat16)
    np.testing.assert_array_equal(to_bfloat16(values), expected.float().numpy())
    np.testing.assert_array_equal(bfloat16_bits(values).view(np.int16), expected.view(torch.int16).numpy())


def test_zeros_stay_zeros() -> None:
    """Red if a row or group of zeros divides by zero."""
    groups = round_groups(np.zeros((2, 64), np.float32), 32)
    assert (meaning(groups, 32) == 0).all()
    values, scale = round_rows(np.zeros((2, 64), np.float32))
    assert (values == 0).all()
    assert np.isfinite(scale).all()
