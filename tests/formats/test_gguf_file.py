"""GGUF reader against the `gguf` package's writer, and against damage."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import ModelRefused
from penstock.formats.ggml_types import BY_ID
from penstock.formats.gguf import GGUFFile

TOKENS = [f"token {i} é" for i in range(40)] + [""]


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def key_value(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor_entry(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file_bytes(
    values: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    num_tensors: int | None = None,
    num_values: int | None = None,
) -> bytes:
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(values) if num_values is None else num_values,
    )
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(values) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


def open_bytes(folder: Path, raw: bytes) -> GGUFFile:
    path = folder / "model.gguf"
    path.write_bytes(raw)
    return GGUFFile.open(path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file with every kind of value, made by the independent writer."""
    path = tmp_path_factory.mktemp("gguf") / "written.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_uint32("an.uint32", 7)
    writer.add_int8("an.int8", -3)
    writer.add_uint64("an.uint64", 2**63 + 1)
    writer.add_int64("an.int64", -(2**62))
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_token_list(TOKENS)
    writer.add_token_scores([i / 8 for i in range(41)])
    writer.add_token_types([1] * 40 + [3])
    writer.add_array("an.empty", ["x"])
    values = np.arange(6 * 64, dtype=np.float32).reshape(6, 64)
    writer.add_tensor("matrix", values)
    writer.add_tensor("cube", values.reshape(2, 3, 64).astype(np.float16))
    writer.add_tensor(
        "quantized",
        gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_and_tensors_equal_the_writers(written: Path) -> None:
    """Red if a value type, the dimension order, an offset or a size differs from the reference's."""
    file = GGUFFile.open(written)
    expected = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "an.uint32": 7,
        "an.int8": -3,
        "an.uint64": 2**63 + 1,
        "an.int64": -(2**62),
        "a.float32": 0.5,
        "a.float64": 0.1,
        "a.bool": True,
        "tokenizer.ggml.tokens": TOKENS,
    }
    assert {key: file.metadata[key] for key in expected} == expected
    assert file.metadata["a.bool"] is True
    np.testing.assert_array_equal(file.metadata["tokenizer.ggml.scores"], np.arange(41, dtype=np.float32) / 8)
    assert file.metadata["tokenizer.ggml.token_type"].dtype == np.int32
    values = np.arange(6 * 64, dtype=np.float32)
    assert {name: info.shape for name, info in file.tensors.items()} == {
        "matrix": (6, 64),
        "cube": (2, 3, 64),
        "quantized": (6, 64),
    }
    np.testing.assert_array_equal(file.data("matrix").view("<f4"), values)
    np.testing.assert_array_equal(file.data("cube").view("<f2"), values.astype(np.float16))
    reference = {t.name: t for t in gguf.GGUFReader(written).tensors}
    for name, info in file.tensors.items():
        assert (info.type, info.offset, info.nbytes) == (
            reference[name].tensor_type.name,
            reference[name].data_offset,
            reference[name].n_bytes,
        )


def test_type_table_equals_the_reference() -> None:
    """Red if a type's number, block or size differs from ggml's, which would shift every later tensor."""
    ours = {kind.name: (kind.id, kind.block, kind.block_bytes) for kind in BY_ID.values()}
    reference = {kind.name: (kind.value, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert ours.items() <= reference.items()


def test_version_2_and_alignment(tmp_path: Path) -> None:
    """Red if version 2 or a file's own alignment is not honoured."""
    values = [key_value("general.alignment", 4, struct.pack("<I", 64))]
    tensors = [tensor_entry("t", (4,), 0, 64)]
    raw = file_bytes(values, tensors, version=2)
    raw += bytes(-len(raw) % 64) + bytes(64) + np.arange(4, dtype="<f4").tobytes()
    file = open_bytes(tmp_path, raw)
    assert (file.version, file.alignment) == (2, 64)
    np.testing.assert_array_equal(file.data("t").view("<f4"), [0, 1, 2, 3])


def test_nested_and_empty_arrays(tmp_path: Path) -> None:
    """Red if arrays of arrays or empty arrays stop the reader."""
    inner = struct.pack("<IQ", 8, 2) + string("a") + string("b")
    numbers = struct.pack("<IQ", 4, 1) + struct.pack("<I", 9)
    values = [
        key_value("nested", 9, struct.pack("<IQ", 9, 2) + inner + numbers),
        key_value("empty", 9, struct.pack("<IQ", 8, 0)),
        key_value("none", 9, struct.pack("<IQ", 6, 0)),
    ]
    metadata = open_bytes(tmp_path, file_bytes(values, [])).metadata
    assert metadata["nested"][0] == ["a", "b"]
    np.testing.assert_array_equal(metadata["nested"][1], [9])
    assert metadata["empty"] == []
    assert len(metadata["none"]) == 0


def test_data_is_mapped_read_only(written: Path) -> None:
    """Red if reading a tensor copies it or lets a caller change the file's map."""
    file = GGUFFile.open(written)
    data = file.data("matrix")
    assert not data.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1


ENTRY = tensor_entry("t", (32,), 0, 0)
DAMAGE = {
    "empty file": (b"", "empty"),
    "magic": (file_bytes([], [], magic=b"GGML"), "GGML"),
    "more strings than sane": (
        file_bytes([key_value("k", 9, struct.pack("<IQ", 8, 2**24 + 1) + bytes(8))], []),
        str(2**24),
    ),
    "version 1": (file_bytes([], [], version=1), "version 1 "),
    "big endian": (file_bytes([], [], version=0x03000000), "0x03000000"),
    "tensor count": (file_bytes([], [], num_tensors=2**60), str(2**60)),
    "metadata count": (file_bytes([], [], num_values=2**63), str(2**63)),
    "key length": (file_bytes([struct.pack("<Q", 2**62) + bytes(8)], []), str(2**62)),
    "array length": (file_bytes([key_value("k", 9, struct.pack("<IQ", 6, 2**61))], []), str(2**61)),
    "string array length": (file_bytes([key_value("k", 9, struct.pack("<IQ", 8, 2**40))], []), str(2**40)),
    "string in array": (file_bytes([key_value("k", 9, struct.pack("<IQQ", 8, 1, 2**50))], []), "item 0 of 1"),
    "value type": (file_bytes([key_value("k", 13, bytes(8))], []), "value type 13"),
    "deep nesting": (file_bytes([key_value("k", 9, struct.pack("<IQ", 9, 1) * 500)], []), "depth"),
    "same key": (file_bytes([key_value("k", 4, bytes(4))] * 2, []), "'k' appears twice"),
    "key not text": (file_bytes([string(b"\xff\xfe") + struct.pack("<II", 4, 0)], []), "UTF-8"),
    "alignment": (file_bytes([key_value("general.alignment", 4, struct.pack("<I", 24))], []), "is 24"),
    "dimensions": (file_bytes([], [tensor_entry("t", (1,) * 5, 0, 0)]), "5 dimensions"),
    "tensor type": (file_bytes([], [tensor_entry("t", (32,), 99, 0)]), "type 99"),
    "removed type": (file_bytes([], [tensor_entry("t", (32,), 4, 0)]), "type 4,"),
    "row of blocks": (file_bytes([], [tensor_entry("t", (31, 2), 2, 0)], bytes(99)), "31 elements"),
    "huge shape": (file_bytes([], [tensor_entry("t", (2**40, 2**40), 0, 0)]), str(2**80)),
    "offset": (file_bytes([], [tensor_entry("t", (32,), 0, 2**40)], bytes(128)), "takes bytes"),
    "offset wraps": (file_bytes([], [tensor_entry("t", (32,), 0, 2**64 - 32)], bytes(128)), "takes bytes"),
    "misaligned": (file_bytes([], [tensor_entry("t", (4,), 0, 8)], bytes(128)), "multiple of 32"),
    "truncated data": (file_bytes([], [ENTRY], bytes(127)), "interrupted download"),
    "same tensor": (
        file_bytes([], [ENTRY, tensor_entry("t", (32,), 0, 128)], bytes(256)),
        "'t' appears twice",
    ),
    "overlap": (file_bytes([], [ENTRY, tensor_entry("u", (32,), 0, 96)], bytes(256)), "'u' starts"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused_with_file_and_number(tmp_path: Path, case: str) -> None:
    """Red if a damaged header is accepted, crashes differently, or is refused without its number."""
    raw, telling = DAMAGE[case]
    with pytest.raises(ModelRefused) as refusal:
        open_bytes(tmp_path, raw)
    assert telling in refusal.value.message
    assert str(tmp_path / "model.gguf") in refusal.value.message


def test_vocabulary_that_is_not_text_is_refused_on_access(tmp_path: Path) -> None:
    """Red if broken strings of a vocabulary come back mended, or as a UnicodeDecodeError."""
    raw = file_bytes([key_value("tokens", 9, struct.pack("<IQ", 8, 2) + string("ok") + string(b"\xc3"))], [])
    metadata = open_bytes(tmp_path, raw).metadata
    with pytest.raises(ModelRefused, match="tokens"):
        metadata["tokens"]


def test_absurd_lengths_allocate_nothing(tmp_path: Path) -> None:
    """Red if a length of the file is used for an allocation before it is checked."""
    path = tmp_path / "model.gguf"
    tracemalloc.start()
    try:
        for raw, _ in DAMAGE.values():
            path.write_bytes(raw)
            with pytest.raises(ModelRefused):
                GGUFFile.open(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def use_everything(path: Path) -> None:
    file = GGUFFile.open(path)
    dict(file.metadata)
    for name, info in file.tensors.items():
        assert len(file.data(name)) == info.nbytes


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(0, 6000),
    edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8)), max_size=4),
)
def test_mutated_files_are_read_or_refused(
    written: Path, tmp_path: Path, cut: int, edits: list[tuple[int, bytes]]
) -> None:
    """Red if some damaged file makes the reader fail in any way but ModelRefused."""
    raw = bytearray(written.read_bytes())
    header = len(GGUFFile.open(written).header())
    for at, replacement in edits:
        at %= header
        raw[at : at + len(replacement)] = replacement
    path = tmp_path / "mutated.gguf"
    path.write_bytes(raw[: len(raw) - cut])
    try:
        use_everything(path)
    except ModelRefused as refusal:
        assert str(path) in refusal.message
