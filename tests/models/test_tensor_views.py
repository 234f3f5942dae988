"""Views of stored tensors: the float32 and the stored bytes must tell the same story."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from penstock.models.tensors import Stacked, Stored, apply_view
from penstock.models.weights.dequantize import dequantize
from penstock.models.weights.source import WeightSource, open_source

ROWS = np.random.default_rng(0).normal(size=(3, 6, 64)).astype(np.float32)


@pytest.fixture
def source(tmp_path: Path) -> WeightSource:
    """A GGUF file with `experts` (3, 6, 64) and its three matrices, all Q8_0."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name, values in {"experts": ROWS, "0": ROWS[0], "1": ROWS[1], "2": ROWS[2]}.items():
        packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_source(tmp_path / "m.gguf")


@pytest.mark.parametrize("view", ["", "even", "odd"])
@pytest.mark.parametrize("stacked", [False, True])
def test_raw_rows_are_the_rows_of_float32(source: WeightSource, view: str, stacked: bool) -> None:
    """Red if a backend that keeps quantized rows would see other rows than the reference does."""
    tensor = Stacked([Stored(source, str(e)) for e in range(3)]) if stacked else Stored(source, "experts")
    viewed = apply_view(tensor, view) if view else tensor
    rows = {"": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}[view]
    assert np.abs(viewed.float32() - ROWS[:, rows]).max() < 0.05
    raw = viewed.raw()
    assert raw is not None
    assert viewed.shape[:-1] == raw.shape[:-1]
    unpacked = dequantize(np.ascontiguousarray(raw).reshape(-1), viewed.dtype, viewed.shape)
    assert np.array_equal(unpacked, viewed.float32())


def test_reordered_columns_have_no_raw_form(source: WeightSource) -> None:
    """Red if a transposed quantized tensor offers bytes whose blocks run along the wrong axis."""
    viewed = apply_view(Stored(source, "0"), "transpose")
    assert viewed.shape == (64, 6)
    assert viewed.raw() is None
    assert np.array_equal(viewed.float32(), Stored(source, "0").float32().T)


def test_views_fill_the_array_that_they_are_given(source: WeightSource) -> None:
    """Red if loading into a part of a joined weight writes elsewhere, or not at all."""
    for tensor in (Stored(source, "0"), apply_view(Stored(source, "0"), "plus_one")):
        out = np.zeros(tensor.shape, np.float32)
        assert tensor.float32(out=out) is out
        assert np.array_equal(out, tensor.float32())
