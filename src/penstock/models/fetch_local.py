"""Bring a model that is on this machine into the store: another entry, a GGUF file or a folder.

Files of the store never change, so an entry made of another shares them by hard links and takes no room;
files from elsewhere are copied, since nobody knows what their owner does with them.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from penstock.errors import InvalidRequest
from penstock.models import store
from penstock.models.load import inspect_model
from penstock.models.store import Progress, Record

_SHARD = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")
_CHUNK_BYTES = 1 << 22


def fetch_local_model(source: Path, key: str, progress: Progress) -> Path:
    """Make the entry `key` of the files of `source`, replacing what was there; returns the model's path.

    progress: phases "wait" and "unpack". Raises InvalidRequest where `key` can't name an entry, ModelRefused
    where `source` is no model that can be served or the disk has no room.
    """
    if not store.is_key(key):
        raise InvalidRequest(
            f"{key!r}: no name for a model; use letters, digits and . _ + @ % -, a letter or digit first"
        )
    inspect_model(source)
    files = model_files(source)
    shared = source.resolve().is_relative_to(store.store_folder().resolve())
    total = sum(file.stat().st_size for file in files)
    with store.locked(key, progress):
        if not shared:
            store.require_space(total, key)
        work = store.work_folder(key)
        try:
            done = 0
            for file in files:
                done = _take(file.resolve(), work / file.name, shared, done, total, progress)
            return store.install(key, work, _record(key, source, files))
        finally:
            shutil.rmtree(work, ignore_errors=True)


def model_files(source: Path) -> list[Path]:
    """The files that a model at `source` is made of, without the store's record."""
    if source.is_dir():
        names = sorted(source.iterdir())
        return [
            path
            for path in names
            if path.is_file() and path.name != store.RECORD_NAME and path.name[0] != "."
        ]
    shard = _SHARD.fullmatch(source.name)
    if shard is None:
        return [source]
    return sorted(source.parent.glob(f"{shard['stem']}-*-of-{shard['count']}.gguf"))


def _record(key: str, source: Path, files: list[Path]) -> Record:
    return Record(
        name=key,
        source=str(source),
        path="" if source.is_dir() else source.name,
        files={file.name: file.stat().st_size for file in files},
    )


def _take(file: Path, target: Path, shared: bool, done: int, total: int, progress: Progress) -> int:
    """Bytes done after this file."""
    if shared:
        os.link(file, target)
        done += file.stat().st_size
        progress("unpack", done, total)
        return done
    with file.open("rb") as stream, target.open("wb") as copy:
        while chunk := stream.read(_CHUNK_BYTES):
            copy.write(chunk)
            done += len(chunk)
            progress("unpack", done, total)
    return done
