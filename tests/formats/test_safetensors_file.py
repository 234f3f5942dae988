"""safetensors reader against the safetensors library, and against damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from penstock.errors import ModelRefused
from penstock.formats.safetensors import INDEX_NAME, SafetensorsFile, open_folder

RNG = np.random.default_rng(5)
ARRAYS = {
    "a.weight": RNG.standard_normal((3, 5)).astype(np.float32),
    "b.half": RNG.standard_normal((2, 2, 2)).astype(np.float16),
    "c.scalar": np.array(7, np.int64),
    "d.empty": np.zeros((0, 4), np.float32),
    "e.bytes": np.arange(7, dtype=np.uint8),
    "f.bool": np.array([True, False, True]),
}


def file_bytes(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("safetensors") / "model.safetensors"
    save_file(ARRAYS, path, metadata={"format": "pt"})
    return path


def test_tensors_equal_the_writers(written: Path) -> None:
    """Red if a shape, dtype or offset is read differently from the reference library."""
    file = SafetensorsFile.open(written)
    assert file.metadata == {"format": "pt"}
    assert file.tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert file.tensors[name].shape == array.shape
        np.testing.assert_array_equal(file.data(name).view(array.dtype).reshape(array.shape), array)
    assert [file.tensors[name].dtype for name in sorted(ARRAYS)] == ["F32", "F16", "I64", "F32", "U8", "BOOL"]


DAMAGE = {
    "empty file": (b"", "empty"),
    "short": (b"\x01\x00", "2 bytes"),
    "header length": (file_bytes({}, length=99), "99 bytes, 2 are there"),
    "absurd header length": (file_bytes({}, length=2**62), str(2**62)),
    "no JSON": (file_bytes(b"{'a'"), "JSON"),
    "not an object": (file_bytes([1]), "JSON object"),
    "deep JSON": (file_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "header"),
    "no dtype": (file_bytes({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "'a'"),
    "negative dimension": (file_bytes({"a": entry("F32", [-1], 0, 4)}, bytes(4)), "'a'"),
    "text for a number": (file_bytes({"a": entry("F32", ["1"], 0, 4)}, bytes(4)), "'a'"),  # type: ignore[list-item]
    "dtype": (file_bytes({"a": entry("F4", [2], 0, 1)}, bytes(1)), "'F4'"),
    "size": (file_bytes({"a": entry("F32", [2], 0, 4)}, bytes(4)), "needs 8 bytes, has 4"),
    "huge shape": (file_bytes({"a": entry("F32", [2**40, 2**40], 0, 4)}, bytes(4)), str(2**82)),
    "end before begin": (file_bytes({"a": entry("F32", [1], 4, 0)}, bytes(4)), "has -4"),
    "truncated": (file_bytes({"a": entry("F32", [2], 0, 8)}, bytes(7)), "interrupted download"),
    "hole": (file_bytes({"a": entry("U8", [2], 2, 4)}, bytes(4)), "starts at byte"),
    "overlap": (
        file_bytes({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, bytes(6)),
        "'b' starts",
    ),
    "rest": (file_bytes({"a": entry("U8", [2], 0, 2)}, bytes(4)), "tensors end at"),
    "metadata": (file_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused_with_file_and_number(tmp_path: Path, case: str) -> None:
    """Red if a damaged header is accepted, crashes differently, or is refused without its number."""
    raw, telling = DAMAGE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ModelRefused) as refusal:
        SafetensorsFile.open(path)
    assert telling in refusal.value.message
    assert str(path) in refusal.value.message


def test_shards_of_the_index(tmp_path: Path) -> None:
    """Red if a sharded folder loses a tensor, or reads weights that the index does not name."""
    names = sorted(ARRAYS)
    parts = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for part, held in parts.items():
        save_file({name: ARRAYS[name] for name in held}, tmp_path / part)
    save_file(ARRAYS, tmp_path / "consolidated.safetensors")
    weight_map = {name: part for part, held in parts.items() for name in held}
    index = tmp_path / INDEX_NAME
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    assert [file.path.name for file in open_folder(tmp_path)] == list(parts)
    assert {name for file in open_folder(tmp_path) for name in file.tensors} == set(names)

    index.write_text(json.dumps({"weight_map": {**weight_map, "ghost": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ModelRefused, match="'ghost' is in the index only"):
        open_folder(tmp_path)
    index.write_text(json.dumps({"weight_map": {**weight_map, "ghost": "../outside.safetensors"}}))
    with pytest.raises(ModelRefused, match="leaves the folder"):
        open_folder(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelRefused, match="shard is missing"):
        open_folder(tmp_path)
    index.write_text("{}")
    with pytest.raises(ModelRefused, match="weight_map"):
        open_folder(tmp_path)


def test_folder_without_index_must_be_unambiguous(tmp_path: Path) -> None:
    """Red if one of several unrelated weight files is picked silently."""
    with pytest.raises(ModelRefused, match=r"no model\.safetensors"):
        open_folder(tmp_path)
    save_file(ARRAYS, tmp_path / "one.safetensors")
    assert [file.path.name for file in open_folder(tmp_path)] == ["one.safetensors"]
    save_file(ARRAYS, tmp_path / "two.safetensors")
    with pytest.raises(ModelRefused, match="2 safetensors files"):
        open_folder(tmp_path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(0, 400),
    edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=4)), max_size=4),
)
def test_mutated_files_are_read_or_refused(
    written: Path, tmp_path: Path, cut: int, edits: list[tuple[int, bytes]]
) -> None:
    """Red if some damaged file makes the reader fail in any way but ModelRefused."""
    raw = bytearray(written.read_bytes())
    header = len(SafetensorsFile.open(written).header())
    for at, replacement in edits:
        at %= header
        raw[at : at + len(replacement)] = replacement
    path = tmp_path / "mutated.safetensors"
    path.write_bytes(raw[: len(raw) - cut])
    try:
        file = SafetensorsFile.open(path)
        for name, info in file.tensors.items():
            assert len(file.data(name)) == info.nbytes
    except ModelRefused as refusal:
        assert str(path) in refusal.message
