"""Where a model's tensors come from: one interface over GGUF and safetensors.

Invariants: opening reads headers only (headers are checked, tensor data stays on disk until asked
for); `raw` and, for aligned F32, `float32` are views of the file's map; a source may be read from
several threads at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from penstock.errors import ModelRefused
from penstock.formats.gguf import MAGIC, GGUFFile
from penstock.formats.safetensors import SafetensorsFile, open_folder
from penstock.models.weights.dequantize import dequantize

_SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_SAMPLE_BYTES = 1024


class WeightSource(Protocol):
    """Named tensors of one model.

    `config` is config.json ({} for GGUF), `metadata` the GGUF key-values ({} for safetensors);
    `path` is what was opened: a file (the first shard of a split GGUF) or a folder.
    """

    kind: Literal["gguf", "safetensors"]
    path: Path
    config: dict[str, Any]
    metadata: Mapping[str, Any]
    revision: str

    def names(self) -> list[str]:
        """Tensor names, in file order."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Row-major (torch) order. KeyError for an unknown name, here and below."""
        ...

    def dtype(self, name: str) -> str:
        """Stored element type: "F32", "BF16", "Q4_1", …"""
        ...

    def nbytes(self, name: str) -> int:
        """Stored bytes."""
        ...

    def raw(self, name: str) -> np.ndarray:
        """uint8[nbytes], read-only view of the file's map."""
        ...

    def float32(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """float32 of `shape(name)`: `out` if given (C-contiguous), else fresh, or a read-only view of the
        map for aligned F32. ModelRefused if the type can't be dequantized."""
        ...

    def close(self) -> None:
        """Let go of the files. Views handed out stay valid; the map goes with the last of them."""
        ...


class _FileSource:
    """What GGUF and safetensors have in common: tensors spread over files, found by name."""

    def __init__(
        self, path: Path, files: Sequence[GGUFFile | SafetensorsFile], dtypes: Mapping[str, str]
    ) -> None:
        self.path = path
        self.config: dict[str, Any] = {}
        self.metadata: Mapping[str, Any] = {}
        self._dtypes = dtypes
        self._file_of: dict[str, GGUFFile | SafetensorsFile] = {}
        for file in files:
            for name in file.tensors:
                if name in self._file_of:
                    raise ModelRefused(
                        f"{file.path}: tensor {name!r} is also in {self._file_of[name].path.name}; "
                        f"fetch the model again"
                    )
                self._file_of[name] = file
        self.revision = _revision(files)

    def names(self) -> list[str]:
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file_of[name].tensors[name].shape

    def dtype(self, name: str) -> str:
        return self._dtypes[name]

    def nbytes(self, name: str) -> int:
        return self._file_of[name].tensors[name].nbytes

    def raw(self, name: str) -> np.ndarray:
        return self._file_of[name].data(name)

    def float32(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        return dequantize(self.raw(name), self.dtype(name), self.shape(name), out)

    def close(self) -> None:
        self._file_of = {}


class GGUFSource(_FileSource):
    """A GGUF file or the shards of a split one; metadata is the first shard's."""

    kind: Literal["gguf", "safetensors"] = "gguf"

    def __init__(self, path: Path, files: list[GGUFFile]) -> None:
        super().__init__(path, files, {info.name: info.type for f in files for info in f.tensors.values()})
        self.metadata = files[0].metadata


class SafetensorsSource(_FileSource):
    """A safetensors file or a model folder; config.json is read from beside the weights."""

    kind: Literal["gguf", "safetensors"] = "safetensors"

    def __init__(self, path: Path, files: list[SafetensorsFile]) -> None:
        super().__init__(path, files, {info.name: info.dtype for f in files for info in f.tensors.values()})
        self.config = _read_config(files[0].path.parent / "config.json")


def open_source(path: Path | str) -> WeightSource:
    """Open a GGUF file (any shard of a split one opens all), a safetensors file, or a folder.

    A folder holds safetensors (single or with an index), or exactly one GGUF model. Raises
    ModelRefused for anything that is missing, damaged or neither format; names and numbers are in
    the message.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise ModelRefused(f"{path}: no such file or folder; give a GGUF file or a folder with safetensors")
    if path.suffix == ".safetensors":
        return SafetensorsSource(path, [SafetensorsFile.open(path)])
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == MAGIC or path.suffix == ".gguf":
        return _open_gguf(path)
    raise ModelRefused(
        f"{path}: not GGUF (starts with {magic!r}) and not named .safetensors; other formats can't be served"
    )


def _open_folder(folder: Path) -> WeightSource:
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json")):
        return SafetensorsSource(folder, open_folder(folder))
    found = [(path, _SHARD.match(path.name)) for path in sorted(folder.glob("*.gguf"))]
    models = [path for path, shard in found if shard is None or int(shard["number"]) == 1]
    if len(models) == 1:
        return _open_gguf(models[0])
    if models:
        names = ", ".join(path.name for path in models)
        raise ModelRefused(f"{folder}: holds {len(models)} GGUF models ({names}); give one of the files")
    raise ModelRefused(
        f"{folder}: neither safetensors nor GGUF files in it; give a folder or file that is a model"
    )


def _open_gguf(path: Path) -> GGUFSource:
    match = _SHARD.match(path.name)
    if match is None:
        file = GGUFFile.open(path)
        declared = file.metadata.get("split.count", 1)
        if declared not in (0, 1):
            raise ModelRefused(
                f"{path}: is one of {declared!r} parts but not named like NAME-00001-of-0000N.gguf; "
                f"restore its name"
            )
        return GGUFSource(path, [file])
    count = int(match["count"])
    paths = [path.with_name(f"{match['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    missing = [p.name for p in paths if not p.is_file()]
    if missing or not paths:
        names = ", ".join(missing[:3])
        raise ModelRefused(f"{path}: {len(missing)} of {count} parts are missing ({names}); fetch them")
    files = [GGUFFile.open(p) for p in paths]
    for number, file in enumerate(files):
        place = (file.metadata.get("split.no"), file.metadata.get("split.count"))
        if place != (number, count):
            raise ModelRefused(
                f"{file.path}: split.no, split.count are {place}, its name says {(number, count)}; "
                f"restore its name"
            )
    total = files[0].metadata.get("split.tensors.count")
    held = sum(len(file.tensors) for file in files)
    if total is not None and total != held:
        raise ModelRefused(
            f"{path}: {total} tensors declared, its {count} parts hold {held}; fetch them again"
        )
    return GGUFSource(paths[0], files)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelRefused(f"{path}: missing; a safetensors model needs its config.json beside the weights")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{path}: not JSON ({error}); fetch the model again") from None
    if not isinstance(config, dict):
        raise ModelRefused(f"{path}: a JSON {type(config).__name__}, not an object; fetch the model again")
    return config


def _revision(files: Iterable[GGUFFile | SafetensorsFile]) -> str:
    """Hex SHA-256 over, per file: its size, its header (shapes, types, metadata), and of every tensor the
    first, middle and last 1024 bytes.

    It identifies content without reading all of it, and depends on neither names nor times. Training
    moves weights of every tensor it touches, so an updated tensor shows in its samples; a file made to
    differ only between the samples is not told apart.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.nbytes.to_bytes(8, "little"))
        digest.update(file.header())
        for name in file.tensors:
            data: Any = file.data(name)
            if len(data) <= 3 * _SAMPLE_BYTES:
                digest.update(data)
                continue
            middle = len(data) // 2
            for at in (0, middle, len(data) - _SAMPLE_BYTES):
                digest.update(data[at : at + _SAMPLE_BYTES])
    return digest.hexdigest()
