"""Dequantization against the `gguf` package and torch, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ModelRefused
from penstock.formats.ggml_types import BY_NAME
from penstock.models.weights.dequantize import dequantize, supported

QUANTIZED = [name for name in supported() if name in BY_NAME and BY_NAME[name].block > 1]
HAS_ORACLE = [name for name in QUANTIZED if name != "Q8_K"]


@pytest.mark.parametrize("name", HAS_ORACLE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the oracle's, of random scales that are nan or inf
@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 40))
def test_random_blocks_equal_the_reference(name: str, seed: int, blocks: int) -> None:
    """Red if a bit of a block is read from another place, or the arithmetic is done in another order."""
    kind = BY_NAME[name]
    raw = np.random.default_rng(seed).integers(0, 256, (blocks, kind.block_bytes), np.uint8)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[name])
    got = dequantize(raw.reshape(-1), name, (blocks, kind.block))
    np.testing.assert_array_equal(got, expected)  # nan equals nan
    assert got.dtype == np.float32


def test_q8_k_by_its_definition() -> None:
    """Red if Q8_K's float32 scale or its int8 quants move (the package has no oracle)."""
    rng = np.random.default_rng(3)
    scales = rng.standard_normal(5).astype(np.float32)
    quants = rng.integers(-128, 128, (5, 256)).astype(np.int8)
    sums = rng.integers(0, 256, (5, 32), np.uint8)
    raw = np.concatenate([scales.view(np.uint8).reshape(5, 4), quants.view(np.uint8), sums], axis=1)
    expected = [
        [float(np.float32(s) * np.float32(q)) for q in row] for s, row in zip(scales, quants, strict=True)
    ]
    np.testing.assert_array_equal(
        dequantize(raw.reshape(-1), "Q8_K", (5, 256)), np.array(expected, np.float32)
    )


@pytest.mark.parametrize("name", HAS_ORACLE)
def test_tensors_longer_than_a_chunk(name: str) -> None:
    """Red if the seam between two chunks of work loses or repeats blocks, or `out` is not what is filled."""
    kind = BY_NAME[name]
    rows, columns = 301, 2 * 256
    quantized = np.random.default_rng(1).integers(
        0, 128, (rows, columns // kind.block * kind.block_bytes), np.uint8
    )
    out = np.full((rows, columns), 7, np.float32)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(quantized, gguf.GGMLQuantizationType[name])
    assert dequantize(quantized.reshape(-1), name, (rows, columns), out) is out
    np.testing.assert_array_equal(out, expected)


FLOATS = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@pytest.mark.parametrize("name", FLOATS)
def test_every_bit_pattern_of_small_floats(name: str) -> None:
    """Red if any pattern of a small float type (denormal, nan, inf) becomes another float32."""
    kind = FLOATS[name]
    raw = np.arange(256 if kind.itemsize == 1 else 65536, dtype=f"<u{kind.itemsize}").view(np.uint8)
    expected = torch.from_numpy(raw).view(kind).to(torch.float32).numpy()
    got = dequantize(raw, name, expected.shape)
    np.testing.assert_array_equal(got, expected)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.signbit(got[finite]), np.signbit(expected[finite]))


@pytest.mark.parametrize("name", ["F64", "I64", "I32", "I16", "I8", "U8", "BOOL"])
def test_plain_numbers(name: str) -> None:
    """Red if an integer or double is read with another width or sign."""
    kind = {"F64": "<f8", "BOOL": "?", "U8": "u1"}.get(
        name, f"<i{int(name[1:]) // 8}" if name[0] == "I" else ""
    )
    values = np.array([0, 1, 1, 0] if name == "BOOL" else [0, 1, 100, -5 if name != "U8" else 250]).astype(
        kind
    )
    got = dequantize(values.view(np.uint8), name, (2, 2))
    np.testing.assert_array_equal(got, values.astype(np.float32).reshape(2, 2))
    assert got.dtype == np.float32


def test_aligned_float32_is_not_copied_unaligned_is() -> None:
    """Red if mapped float32 weights are doubled in memory, or an unaligned view reaches a kernel."""
    buffer = np.zeros(4 * 9, np.uint8)
    view = dequantize(buffer[4:], "F32", (8,))
    assert np.shares_memory(view, buffer)
    copy = dequantize(buffer[1:33], "F32", (8,))
    assert copy.flags.aligned
    assert not np.shares_memory(copy, buffer)


def test_unknown_type_is_refused_with_the_known_ones() -> None:
    """Red if a type that can't be read passes silently or the message names no alternative."""
    with pytest.raises(ModelRefused, match=r"IQ1_S.*Q4_K"):
        dequantize(np.zeros(50, np.uint8), "IQ1_S", (256,))
