"""The safetensors writer against the safetensors library and our own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from penstock.formats.safetensors import SafetensorsFile, SafetensorsWriter

TYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
}
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(st.sampled_from(list(TYPES)), SHAPES)))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, declared: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Red if offsets, shapes, names or the order of writing mix tensors up, or one is not aligned."""
    declared.pop("__metadata__", None)
    path = tmp_path_factory.mktemp("writer") / "model.safetensors"
    rng = np.random.default_rng(len(declared))
    arrays = {
        name: rng.integers(0, 100, shape).astype(TYPES[dtype]) for name, (dtype, shape) in declared.items()
    }
    with SafetensorsWriter(path, declared, {"format": "pt"}) as writer:
        for name in reversed(list(arrays)):
            writer.write(name, arrays[name])
    theirs = load_file(path)
    assert theirs.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name], array, strict=True)
    ours = SafetensorsFile.open(path)
    assert ours.metadata == {"format": "pt"}
    for name, info in ours.tensors.items():
        assert (info.dtype, info.shape) == declared[name]
        assert info.offset % TYPES[info.dtype]().itemsize == 0


def test_bfloat16_and_metadata(tmp_path: Path) -> None:
    """Red if BF16, which numpy does not have, is written with another width or order of bytes."""
    path = tmp_path / "m.safetensors"
    with SafetensorsWriter(path, {"w": ("BF16", (2,))}) as writer:
        writer.write("w", np.array([0x3F80, 0xC000], np.uint16))
    with safe_open(path, "pt") as file:
        assert file.get_tensor("w").tolist() == [1.0, -2.0]
        assert file.metadata() is None


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    """Red if a file that lacks tensors, or whose making failed, appears under the final name."""
    path = tmp_path / "m.safetensors"
    shape = {"a": ("F32", (2,)), "b": ("F32", (2,))}
    with pytest.raises(ValueError, match="never written: b"), SafetensorsWriter(path, shape) as writer:
        writer.write("a", np.zeros(2, np.float32))
    with (
        pytest.raises(ValueError, match="a: 4 bytes given, 8 declared"),
        SafetensorsWriter(path, shape) as writer,
    ):
        writer.write("a", np.zeros(1, np.float32))
    assert list(tmp_path.iterdir()) == []
