"""safetensors: a reader of one file or a folder (one file or shards named by an index), memory-mapped,
and a writer of one file.

Invariants: the header is checked before any of it is used (length against the file, offsets against
shapes and dtypes, no holes, no overlaps), so a damaged file ends in ModelRefused; tensor data is
never touched by `open`.

Source: the format description of the safetensors library; sharded folders as transformers writes
them (`model.safetensors.index.json`).
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Self

import msgspec
import numpy as np
from msgspec import Meta, Struct

from penstock.errors import ModelRefused

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_DIMS = 8  # arbitrary; weights have up to 4
MAX_DIM = 2**48  # arbitrary; keeps error messages short, the offsets decide

ITEM_BYTES: dict[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}

_NonNegative = Annotated[int, Meta(ge=0)]


class _Entry(Struct, frozen=True):
    """A line of the header; offsets are relative to the end of the header."""

    dtype: str
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=MAX_DIM)]], Meta(max_length=MAX_DIMS)]
    data_offsets: tuple[_NonNegative, _NonNegative]


class SafetensorsInfo(Struct, frozen=True):
    """One tensor: row-major `shape`, `offset` from the start of its file, in bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int


class SafetensorsFile:
    """One open file: `tensors` by name, `metadata` (strings). It must not be truncated while open."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self._buffer = buffer
        self.data_start, header = _read_header(path, buffer)
        self.metadata = _read_metadata(path, header)
        self.tensors = _read_entries(path, header, self.data_start, len(buffer))

    @classmethod
    def open(cls, path: Path | str) -> SafetensorsFile:
        """Map `path` and read its header.

        Raises ModelRefused naming the file, what is wrong and the numbers, FileNotFoundError if absent.
        """
        path = Path(path)
        with path.open("rb") as file:
            try:
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # mmap refuses empty files
                raise _damaged(path, "it is empty") from None
        return cls(path, buffer)

    def data(self, name: str) -> np.ndarray:
        """uint8[nbytes], read-only: the stored bytes of tensor `name`, mapped. KeyError if unknown."""
        info = self.tensors[name]
        return np.frombuffer(self._buffer, np.uint8, info.nbytes, info.offset)

    def header(self) -> memoryview:
        """Every byte before the tensor data, without copying."""
        return memoryview(self._buffer)[: self.data_start]

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self._buffer)


def open_folder(folder: Path) -> list[SafetensorsFile]:
    """The files that hold the weights of a model folder: the shards that its index names, else
    `model.safetensors`, else its only `*.safetensors` file.

    Raises ModelRefused if there are none or several without an index, a shard is missing, or shards
    and index disagree about which tensors there are.
    """
    index = folder / INDEX_NAME
    if index.is_file():
        return _open_shards(index)
    if (folder / SINGLE_NAME).is_file():
        return [SafetensorsFile.open(folder / SINGLE_NAME)]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return [SafetensorsFile.open(found[0])]
    if found:
        raise ModelRefused(
            f"{folder}: {len(found)} safetensors files ({found[0].name}, …) but no {INDEX_NAME} that says "
            f"which belong together; give one file, or fetch the index"
        )
    raise ModelRefused(f"{folder}: no {SINGLE_NAME} and no {INDEX_NAME}; give a folder that has one")


def _open_shards(index: Path) -> list[SafetensorsFile]:
    weight_map = _read_index(index)
    shards = []
    for shard_name in sorted(set(weight_map.values())):
        path = index.parent / shard_name
        if Path(shard_name).name != shard_name:
            raise _damaged(index, f"shard name {shard_name!r} leaves the folder")
        if not path.is_file():
            raise ModelRefused(f"{path}: shard is missing, {index.name} names it; fetch the model again")
        shard = SafetensorsFile.open(path)
        expected = {name for name, place in weight_map.items() if place == shard_name}
        if expected != shard.tensors.keys():
            name = min(expected ^ shard.tensors.keys())
            only = "the index" if name in expected else "the shard"
            raise ModelRefused(
                f"{path}: holds {len(shard.tensors)} tensors, {index.name} lists {len(expected)} for it; "
                f"{name!r} is in {only} only; fetch the model again"
            )
        shards.append(shard)
    return shards


def _read_index(index: Path) -> dict[str, str]:
    class Index(Struct):
        weight_map: dict[str, str]

    try:
        return msgspec.json.decode(index.read_bytes(), type=Index).weight_map
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(index, f"not an index with a weight_map of strings ({error})") from None


def _damaged(path: Path, what: str) -> ModelRefused:
    return ModelRefused(f"{path}: damaged safetensors file: {what}; fetch the file again")


def _read_header(path: Path, buffer: mmap.mmap) -> tuple[int, dict[str, msgspec.Raw]]:
    size = len(buffer)
    if size < 8:
        raise _damaged(path, f"{size} bytes are too few for a header length")
    length = int.from_bytes(buffer[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _damaged(path, f"its header claims {length} bytes, the format allows {MAX_HEADER_BYTES}")
    if length > size - 8:
        raise _damaged(path, f"its header claims {length} bytes, {size - 8} are there")
    try:
        return 8 + length, msgspec.json.decode(buffer[8 : 8 + length], type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, f"its header of {length} bytes is not a JSON object ({error})") from None


def _read_metadata(path: Path, header: dict[str, msgspec.Raw]) -> dict[str, str]:
    raw = header.pop("__metadata__", None)
    if raw is None:
        return {}
    try:
        return msgspec.json.decode(raw, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, f"__metadata__ is not an object of strings ({error})") from None


def _read_entries(
    path: Path, header: dict[str, msgspec.Raw], start: int, size: int
) -> dict[str, SafetensorsInfo]:
    decoder = msgspec.json.Decoder(_Entry)
    tensors = {}
    for name, raw in header.items():
        try:
            entry = decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _damaged(path, f"entry of tensor {name!r} ({error})") from None
        begin, end = entry.data_offsets
        item_bytes = ITEM_BYTES.get(entry.dtype)
        if item_bytes is None:
            raise ModelRefused(
                f"{path}: tensor {name!r} has dtype {entry.dtype!r}, which is not supported; supported are "
                f"{', '.join(ITEM_BYTES)}"
            )
        nbytes = math.prod(entry.shape) * item_bytes
        if end - begin != nbytes:
            raise _damaged(
                path, f"{name!r} ({entry.dtype}, {entry.shape}) needs {nbytes} bytes, has {end - begin}"
            )
        if start + end > size:
            raise _damaged(
                path, f"{name!r} ends at byte {start + end}, the file has {size} (an interrupted download?)"
            )
        tensors[name] = SafetensorsInfo(name, tuple(entry.shape), entry.dtype, start + begin, nbytes)
    _check_contiguous(path, tensors.values(), start, size)
    return tensors


def _check_contiguous(path: Path, tensors: Iterable[SafetensorsInfo], start: int, size: int) -> None:
    """The format forbids holes: every data byte belongs to exactly one tensor."""
    at = start
    for info in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if info.offset != at:
            raise _damaged(
                path, f"{info.name!r} starts at byte {info.offset}, the tensor before it ends at {at}"
            )
        at += info.nbytes
    if at != size:
        raise _damaged(path, f"its tensors end at byte {at}, the file has {size}")


class SafetensorsWriter:
    """Writes one file: the tensors are declared first, then given one by one in any order.

        with SafetensorsWriter(path, {"w": ("F32", (2, 3))}) as writer:
            writer.write("w", array)

    The file appears under its name when the block ends well, whole; nothing is left after an exception.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """tensors: name -> (dtype of ITEM_BYTES, row-major shape)."""
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        at = 0
        # The widest elements first: with the padded header every tensor is then aligned to its own.
        for name, (dtype, shape) in sorted(tensors.items(), key=lambda t: (-ITEM_BYTES[t[1][0]], t[0])):
            nbytes = math.prod(shape) * ITEM_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
            self._places[name] = (at, nbytes)
            at += nbytes
        encoded = msgspec.json.encode(header)
        encoded += b" " * (-len(encoded) % 8)
        self._head = len(encoded).to_bytes(8, "little") + encoded
        self._missing = set(self._places)
        self._partial = path.with_name(path.name + ".partial")

    def __enter__(self) -> Self:
        self._file = self._partial.open("wb")
        self._file.write(self._head)
        return self

    def write(self, name: str, data: np.ndarray) -> None:
        """`data` in the declared element type (BF16 as uint16), C-contiguous. ValueError for another size."""
        at, nbytes = self._places[name]
        if data.nbytes != nbytes:
            raise ValueError(f"{name}: {data.nbytes} bytes given, {nbytes} declared")
        self._file.seek(len(self._head) + at)
        self._file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        self._missing.discard(name)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        complete = kind is None and not self._missing
        if complete:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if complete:
            self._partial.replace(self.path)
            return
        self._partial.unlink()
        if kind is None:
            raise ValueError(f"{self.path}: never written: {', '.join(sorted(self._missing))}")
