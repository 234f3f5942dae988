"""The packed-weights cache: repacking is done once, later starts read.

    $XDG_CACHE_HOME/penstock/packed/DIGEST.packed       (default ~/.cache)

    magic, u32 length of the header, header (MessagePack: entries by key, offsets from the data's start),
    data: the panels of every weight, aligned to 4096

The digest names what the panels are made of: the model's revision, the form asked for and this native
module. Every entry has a CRC-32: an entry that fails it is packed anew and the file replaced. Files are
written beside their place and renamed, so a reader sees a whole one or none; the folder is kept under
a limit by removing what was longest unused. Whatever goes wrong with the cache costs time, never a start.

Invariants: a weight from the cache has the very bytes that packing would give; nothing is written while
a model loads (`finish` starts a thread of low priority).
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from penstock.kernels.cpu import _native
from penstock.kernels.cpu.memory import Regions
from penstock.kernels.cpu.weights import JoinedWeight

MAGIC = b"PENSTOCKPACKED1\n"
ALIGNMENT = 4096
LIMIT_BYTES = 16 << 30  # of the folder: a 4-bit 8B model takes about 5 GB
NICENESS = 15

log = logging.getLogger("penstock.kernels")


class Entry(Struct, frozen=True, array_like=True):
    """One PackedWeight: its constructor's arguments, and where its bytes are."""

    format: int
    n: int
    k: int
    experts: int
    gated: bool
    group: int
    per_token: bool
    offset: int
    nbytes: int
    crc: int


class Header(Struct, frozen=True):
    entries: dict[str, list[Entry]]


def cache_folder() -> Path:
    """It need not exist. A relative XDG_CACHE_HOME counts as unset (as XDG demands)."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "penstock" / "packed"


class PackedCache:
    """The cache file of one model. `load` and `add` may be called from several threads."""

    def __init__(
        self, revision: str, form: str, folder: Path | None = None, limit: int = LIMIT_BYTES
    ) -> None:
        self._folder = folder or cache_folder()
        self._limit = limit
        self.path = self._folder / f"{_digest(revision, form)}.packed"
        self._added: dict[str, Any] = {}
        self._loaded: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._file: int | None = None
        self._data_start = 0
        self._entries: dict[str, list[Entry]] = {}
        self._open()

    def load(self, key: str, regions: Regions) -> Any | None:
        """The weight (PackedWeight or JoinedWeight) stored under `key`, its bytes in `regions`; or None."""
        entries = self._entries.get(key)
        if entries is None:
            return None
        parts = tuple(self._read(entry, regions) for entry in entries)
        if None in parts:
            log.warning("%s: %s is damaged; it is packed again", self.path, key)
            return None
        weight = parts[0] if len(parts) == 1 else JoinedWeight(parts)
        with self._lock:
            self._loaded[key] = weight
        return weight

    def add(self, key: str, weight: Any) -> None:
        """Remember a weight that was not in the file."""
        with self._lock:
            self._added[key] = weight

    def finish(self) -> threading.Thread | None:
        """All weights are there: write the file if one of them is new. Returns the thread that does."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if not self._added:
            return None
        weights = self._loaded | self._added
        thread = threading.Thread(target=self._write, args=(weights,), name="penstock-packed", daemon=True)
        thread.start()
        return thread

    def _open(self) -> None:
        try:
            self._file = os.open(self.path, os.O_RDONLY)
            start = os.pread(self._file, len(MAGIC) + 4, 0)
            if start[: len(MAGIC)] != MAGIC or len(start) < len(MAGIC) + 4:
                raise ValueError("not a packed file")
            length = int.from_bytes(start[len(MAGIC) :], "little")
            header = msgspec.msgpack.decode(os.pread(self._file, length, len(start)), type=Header)
            self._data_start = _aligned(len(start) + length)
            self._entries = header.entries
            os.utime(self.path)  # used: the last to be removed
        except FileNotFoundError:
            pass
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.warning("%s: %s; the weights are packed again", self.path, error)

    def _read(self, entry: Entry, regions: Regions) -> Any | None:
        expected = _native.packed_bytes(
            entry.format, entry.n, entry.k, entry.experts, entry.gated, entry.group
        )
        if self._file is None or entry.nbytes != expected:
            return None
        memory = regions.take(entry.nbytes)
        place, done = memory.data, 0
        while done < entry.nbytes:
            count = os.preadv(self._file, [place[done:]], self._data_start + entry.offset + done)
            if count == 0:
                return None
            done += count
        if zlib.crc32(memory.data) != entry.crc:
            return None
        weight = _native.PackedWeight(
            entry.format, entry.n, entry.k, entry.experts, entry.gated, memory, False, entry.group
        )
        weight.per_token = entry.per_token
        return weight

    def _write(self, weights: dict[str, Any]) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
            self._folder.mkdir(parents=True, exist_ok=True)
            entries, pieces, size = _describe(weights)
            if size > self._limit:
                log.info(
                    "%s: %d bytes exceed the cache's limit of %d; not kept", self.path, size, self._limit
                )
                return
            _make_room(self._folder, self._limit - size, keep=self.path)
            unfinished = self.path.with_suffix(f".{os.getpid()}.tmp")
            try:
                _write_file(unfinished, Header(entries), pieces)
                unfinished.replace(self.path)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: not written (%s); the next start packs again", self.path, error)


def _digest(revision: str, form: str) -> str:
    """Another build of the native module may pack otherwise: its file is part of the name."""
    module = os.stat(_native.__file__)
    text = "\0".join((revision, form, str(module.st_size), str(module.st_mtime_ns)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _describe(weights: dict[str, Any]) -> tuple[dict[str, list[Entry]], list[tuple[int, np.ndarray]], int]:
    """Entries by key, (offset, bytes) of each piece, and the size of all."""
    entries: dict[str, list[Entry]] = {}
    pieces: list[tuple[int, np.ndarray]] = []
    offset = 0
    for key, weight in weights.items():
        for part in weight.parts if isinstance(weight, JoinedWeight) else (weight,):
            data = np.asarray(part.data)
            entries.setdefault(key, []).append(
                Entry(
                    part.format,
                    part.n,
                    part.k,
                    part.experts,
                    part.gated,
                    part.group,
                    part.per_token,
                    offset,
                    len(data),
                    zlib.crc32(data.data),
                )
            )
            pieces.append((offset, data))
            offset = _aligned(offset + len(data))
    return entries, pieces, offset


def _write_file(path: Path, header: Header, pieces: list[tuple[int, np.ndarray]]) -> None:
    encoded = msgspec.msgpack.encode(header)
    start = MAGIC + len(encoded).to_bytes(4, "little") + encoded
    data_start = _aligned(len(start))
    with path.open("wb") as file:
        file.write(start)
        for offset, data in pieces:
            file.seek(data_start + offset)
            file.write(data.data)
        file.flush()
        os.fsync(file.fileno())


def _make_room(folder: Path, room: int, keep: Path) -> None:
    """Remove what writers left unfinished, then the longest unused files, until the rest fits in `room`."""
    for left in folder.glob("*.tmp"):
        if not Path(f"/proc/{left.suffixes[-2][1:]}").exists():
            left.unlink(missing_ok=True)
    files = sorted((f.stat().st_mtime, f.stat().st_size, f) for f in folder.glob("*.packed") if f != keep)
    total = sum(size for _, size, _ in files)
    for _, size, file in files:
        if total <= room:
            break
        file.unlink(missing_ok=True)
        total -= size
