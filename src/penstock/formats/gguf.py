"""GGUF reader: metadata and tensor directory of one file, memory-mapped (versions 2 and 3, little endian).

Invariants: no length, count or offset of the file is used before it is checked against the bytes that
are there, so a damaged file costs at most one walk over its own header and ends in ModelRefused; tensor
data is never touched by `open`. Arrays of strings (vocabularies) are located at open and decoded on
first access, numeric arrays are views of the map.

Source: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from penstock.errors import ModelRefused
from penstock.formats.ggml_types import BY_ID, GGMLType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NAME_BYTES = 65535  # the specification's limit on keys; ggml's on tensor names is lower still
MAX_NESTING = 8  # arrays of arrays; arbitrary, no known writer nests at all
MAX_ITEMS = 2**24  # keys, tensors, strings of one array; arbitrary, 30 times the largest vocabulary known:
# each takes more memory than file, so their number must not grow with the size of a hostile file
MAX_ELEMENTS = 2**62  # so that products of dimensions stay below 2**63 in every consumer

_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")
_TYPE_STRING = 8
_TYPE_ARRAY = 9
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


class TensorInfo(Struct, frozen=True):
    """One tensor: `shape` in row-major (torch) order, `offset` from the start of the file, in bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


class _StringArray(Struct, frozen=True):
    """A checked but undecoded array of strings: `starts` are the offsets of the characters."""

    starts: list[int]
    ends: list[int]


class _Cursor:
    """Reads the header front to back; every step is bounded by the size of the file."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.at = 0

    def damaged(self, what: str) -> ModelRefused:
        return ModelRefused(f"{self.path}: damaged GGUF file: {what}; fetch the file again")

    def need(self, nbytes: int, what: str) -> int:
        """Claim `nbytes` at the current place; returns where they start."""
        start = self.at
        if nbytes > self.size - start:
            raise self.damaged(f"{what} needs {nbytes} bytes at offset {start}, the file has {self.size}")
        self.at = start + nbytes
        return start

    def uint32(self, what: str) -> int:
        return int(_UINT32.unpack_from(self.buffer, self.need(4, what))[0])

    def uint64(self, what: str) -> int:
        return int(_UINT64.unpack_from(self.buffer, self.need(8, what))[0])

    def count(self, what: str, min_bytes: int, limit: int | None = MAX_ITEMS) -> int:
        """A count of items of at least `min_bytes` each, bounded by what is left of the file."""
        count = self.uint64(what)
        if limit is not None and count > limit:
            raise self.damaged(f"{what} is {count}, the limit is {limit}")
        left = self.size - self.at
        if count * min_bytes > left:
            raise self.damaged(f"{what} is {count}, at least {count * min_bytes} bytes, {left} are left")
        return count

    def text(self, what: str, limit: int | None = None) -> str:
        length = self.uint64(f"length of {what}")
        if limit is not None and length > limit:
            raise self.damaged(f"{what} is {length} bytes long, the limit is {limit}")
        start = self.need(length, what)
        return self.decode(start, start + length, what)

    def decode(self, start: int, end: int, what: str) -> str:
        try:
            return self.buffer[start:end].decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} at offset {start} is not UTF-8 ({error.reason})") from None

    def strings(self, count: int, what: str) -> _StringArray:
        """Locate `count` strings. A tight loop: vocabularies have 50k to 500k entries."""
        at, size, buffer, length_at = self.at, self.size, self.buffer, _UINT64.unpack_from
        starts, ends = [], []
        for i in range(count):
            start = at + 8
            if start > size:
                raise self.damaged(
                    f"item {i} of {count} of {what} starts at offset {at}, the file has {size} bytes"
                )
            at = start + length_at(buffer, at)[0]
            if at > size:
                raise self.damaged(
                    f"item {i} of {count} of {what} ends at offset {at}, the file has {size} bytes"
                )
            starts.append(start)
            ends.append(at)
        self.at = at
        return _StringArray(starts, ends)

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            return np.frombuffer(self.buffer, scalar, 1, self.need(scalar.itemsize, what))[0].item()
        if kind == _TYPE_STRING:
            return self.text(what)
        if kind == _TYPE_ARRAY:
            return self.array(what, depth)
        raise self.damaged(f"{what} has value type {kind}, known are 0 to 12")

    def array(self, what: str, depth: int) -> Any:
        kind = self.uint32(f"element type of {what}")
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            count = self.count(f"length of {what}", scalar.itemsize, limit=None)
            return np.frombuffer(self.buffer, scalar, count, self.need(count * scalar.itemsize, what))
        if kind == _TYPE_STRING:
            return self.strings(self.count(f"length of {what}", 8), what)
        if kind == _TYPE_ARRAY and depth < MAX_NESTING:
            count = self.count(f"length of {what}", 12)
            return [self.value(_TYPE_ARRAY, f"item {i} of {what}", depth + 1) for i in range(count)]
        raise self.damaged(
            f"{what} has element type {kind} at depth {depth}; known are 0 to 12, depth {MAX_NESTING}"
        )


class Metadata(Mapping[str, Any]):
    """The key-values of a file. Arrays of strings are list[str], decoded once, on first access; numeric
    arrays are read-only numpy views; arrays of arrays are lists; the rest are plain Python values.

    Raises ModelRefused on access to strings that are not UTF-8.
    """

    def __init__(self, cursor: _Cursor, values: dict[str, Any]) -> None:
        self._cursor = cursor
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, (_StringArray, list)):
            value = self._values[key] = self._plain(value, key)
        return value

    def _plain(self, value: Any, key: str) -> Any:
        if isinstance(value, list):
            return [self._plain(item, key) if not isinstance(item, str) else item for item in value]
        if not isinstance(value, _StringArray):
            return value
        buffer = self._cursor.buffer
        try:
            return [buffer[start:end].decode() for start, end in zip(value.starts, value.ends, strict=True)]
        except UnicodeDecodeError:
            for start, end in zip(value.starts, value.ends, strict=True):
                self._cursor.decode(start, end, f"a string of {key}")
            raise

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class GGUFFile:
    """One open GGUF file.

    `version`, `metadata`, `tensors` (by name, in file order), `alignment` and `data_start` (both in
    bytes). The file must not be truncated while it is open: it is mapped, not read.
    """

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self._buffer = buffer
        cursor = _Cursor(path, buffer)
        magic = buffer[cursor.need(4, "the magic") : 4]
        if magic != MAGIC:
            raise cursor.damaged(f"it starts with {magic!r}, not with {MAGIC!r}")
        self.version = cursor.uint32("the version")
        if self.version not in VERSIONS:
            raise ModelRefused(
                f"{path}: GGUF version {self.version} (0x{self.version:08x}) can't be read; supported are "
                f"2 and 3, little endian"
            )
        num_tensors = cursor.count("tensor count", 8 + 4 + 4 + 8)
        num_values = cursor.count("metadata count", 8 + 4 + 1)
        self.metadata = Metadata(cursor, _read_values(cursor, num_values))
        self.alignment = _alignment(cursor, self.metadata)
        entries = [_read_entry(cursor) for _ in range(num_tensors)]
        self.data_start = math.ceil(cursor.at / self.alignment) * self.alignment
        self.tensors = _place(cursor, entries, self.data_start, self.alignment)

    @classmethod
    def open(cls, path: Path | str) -> GGUFFile:
        """Map `path` and read its header.

        Raises ModelRefused naming the file, what is wrong and the numbers (not a GGUF file, unknown
        version or type, a count, length or offset beyond the file), FileNotFoundError if it is absent.
        """
        path = Path(path)
        with path.open("rb") as file:
            try:
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # mmap refuses empty files
                raise ModelRefused(f"{path}: an empty file, not a GGUF file; fetch the file again") from None
        return cls(path, buffer)

    def data(self, name: str) -> np.ndarray:
        """uint8[nbytes], read-only: the stored bytes of tensor `name`, mapped. KeyError if unknown."""
        info = self.tensors[name]
        return np.frombuffer(self._buffer, np.uint8, info.nbytes, info.offset)

    def header(self) -> memoryview:
        """Every byte before the tensor data (magic, metadata, tensor directory), without copying."""
        return memoryview(self._buffer)[: min(self.data_start, len(self._buffer))]

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self._buffer)


def _read_values(cursor: _Cursor, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for i in range(count):
        key = cursor.text(f"metadata key {i} of {count}", MAX_NAME_BYTES)
        if key in values:
            raise cursor.damaged(f"metadata key {key!r} appears twice")
        values[key] = cursor.value(cursor.uint32(f"type of {key!r}"), repr(key))
    return values


def _alignment(cursor: _Cursor, metadata: Metadata) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1) or alignment > 2**30:
        raise cursor.damaged(f"general.alignment is {alignment!r}, not a power of two up to 2**30")
    return alignment


class _Entry(Struct, frozen=True):
    """A line of the tensor directory, its offset still relative to the data section."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLType
    relative: int
    nbytes: int


def _read_entry(cursor: _Cursor) -> _Entry:
    name = cursor.text("a tensor name", MAX_NAME_BYTES)
    num_dims = cursor.uint32(f"dimension count of {name!r}")
    if num_dims > MAX_DIMS:
        raise cursor.damaged(f"tensor {name!r} has {num_dims} dimensions, at most {MAX_DIMS} are possible")
    dims = [cursor.uint64(f"dimension {i} of {name!r}") for i in range(num_dims)]
    number = cursor.uint32(f"type of {name!r}")
    kind = BY_ID.get(number)
    if kind is None:
        raise ModelRefused(
            f"{cursor.path}: tensor {name!r} has element type {number}, which is unknown; known are "
            f"{', '.join(t.name for t in BY_ID.values())}"
        )
    row = dims[0] if dims else 1
    if row % kind.block:
        raise cursor.damaged(
            f"rows of {name!r} have {row} elements, {kind.name} needs a multiple of {kind.block}"
        )
    elements = math.prod(dims)
    if elements > MAX_ELEMENTS:
        raise cursor.damaged(f"tensor {name!r} of dimensions {dims} has {elements} elements")
    relative = cursor.uint64(f"offset of {name!r}")
    # ggml stores the fastest-running dimension first
    return _Entry(name, tuple(reversed(dims)), kind, relative, elements // kind.block * kind.block_bytes)


def _place(cursor: _Cursor, entries: list[_Entry], start: int, alignment: int) -> dict[str, TensorInfo]:
    """Absolute offsets, each inside the file, aligned, and overlapping no other tensor."""
    tensors: dict[str, TensorInfo] = {}
    for entry in entries:
        if entry.name in tensors:
            raise cursor.damaged(f"tensor {entry.name!r} appears twice")
        if entry.relative % alignment:
            raise cursor.damaged(
                f"offset {entry.relative} of {entry.name!r} is not a multiple of {alignment}"
            )
        offset = start + entry.relative
        if offset + entry.nbytes > cursor.size:
            raise cursor.damaged(
                f"tensor {entry.name!r} takes bytes {offset} to {offset + entry.nbytes}, the file has "
                f"{cursor.size} (an interrupted download?)"
            )
        tensors[entry.name] = TensorInfo(entry.name, entry.shape, entry.kind.name, offset, entry.nbytes)
    last_end, last_name = 0, ""
    for info in sorted(tensors.values(), key=lambda t: t.offset):
        if info.nbytes and info.offset < last_end:
            raise cursor.damaged(
                f"tensor {info.name!r} starts at {info.offset}, {last_name!r} before it ends at {last_end}"
            )
        if info.nbytes:
            last_end, last_name = info.offset + info.nbytes, info.name
    return tensors
