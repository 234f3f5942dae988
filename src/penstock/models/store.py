"""The model store: the folder where fetched models live, and the only code that changes it.

    $XDG_DATA_HOME/penstock/models/      (default ~/.local/share)
      smollm2/                           a catalogue entry: its files and penstock.json, the record
      hf+org+name/                       a model of the hub
      .partial/  .locks/                 downloads in progress; lock files

Invariants: an entry's folder appears by one rename when it is complete and verified, so an entry
that is there is whole; whoever changes an entry holds its lock; what lies in `.partial` under the
name of an entry whose lock one holds is a leftover of somebody who died.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from penstock.errors import ModelRefused

RECORD_NAME = "penstock.json"
SPACE_MARGIN_BYTES = 64 * 2**20  # left free on the disk beside a download; arbitrary

# (phase, bytes done, bytes in total or None); may be called from another thread than the caller's
Progress = Callable[[str, int, int | None], None]

_STORE_NAME = re.compile(r"^[A-Za-z0-9][\w.+%@-]*$", re.ASCII)


class Record(Struct, frozen=True):
    """What an entry is: written last into its folder, before the folder gets its place.

    `name` is what the user types; `path` is the model inside the folder ("" for the folder itself).
    """

    name: str
    source: str
    path: str
    files: dict[str, int]  # name in the folder: bytes
    revision: str = ""


class StoredModel(Struct, frozen=True):
    """A line of `list_models`."""

    name: str
    path: Path
    size_bytes: int
    source: str
    modified_at: datetime  # UTC


def store_folder() -> Path:
    """The model store; it need not exist. A relative XDG_DATA_HOME counts as unset (as XDG demands)."""
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data_home.is_absolute():
        data_home = Path.home() / ".local" / "share"
    return data_home / "penstock" / "models"


def entry_folder(key: str) -> Path:
    """Where the entry of that key is or would be. `key` is a plain file name."""
    if not is_key(key):
        raise ValueError(f"not a key of the model store: {key!r}")
    return store_folder() / key


def is_key(text: str) -> bool:
    """Whether `text` could name an entry: one path component, no leading dot."""
    return _STORE_NAME.fullmatch(text) is not None


def read_record(key: str) -> Record | None:
    """The record of an entry; None if there is no entry or it was put there by hand."""
    path = entry_folder(key) / RECORD_NAME
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    try:
        return msgspec.json.decode(raw, type=Record)
    except msgspec.DecodeError as error:
        raise ModelRefused(
            f"{path}: not a record of the model store ({error}); remove {path.parent}"
        ) from None


def find_entry(key: str) -> Path | None:
    """The model of the entry `key` (or the GGUF file of that name put there by hand); None if absent."""
    if not is_key(key):
        return None
    folder = entry_folder(key)
    if folder.is_dir():
        record = read_record(key)
        return folder / record.path if record is not None and record.path else folder
    for file in (folder, folder.with_name(f"{key}.gguf")):
        if file.is_file():
            return file
    return None


def is_whole(key: str, record: Record) -> bool:
    """Whether every file of the record is there at its size."""
    folder = entry_folder(key)
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == nbytes
        for name, nbytes in record.files.items()
    )


def entries() -> list[StoredModel]:
    """Everything in the store, by name; also folders and GGUF files that were put there by hand."""
    folder = store_folder()
    if not folder.is_dir():
        return []
    models = []
    for path in folder.iterdir():
        if not is_key(path.name):
            continue
        record = read_record(path.name) if path.is_dir() else None
        modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        if record is not None:
            models.append(StoredModel(record.name, path / record.path, _size(path), record.source, modified))
        elif path.is_dir() or path.suffix == ".gguf":
            name = path.name if path.is_dir() else path.stem
            models.append(StoredModel(name, path, _size(path), "put there by hand", modified))
    return sorted(models, key=lambda model: model.name)


@contextlib.contextmanager
def locked(key: str, progress: Progress) -> Iterator[None]:
    """Hold the lock of an entry; waits for another process that has it (phase "wait")."""
    folder = store_folder() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / key).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("wait", 0, None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def work_folder(key: str, keep: str | None = None) -> Path:
    """An own folder below `.partial` for the holder of the lock; leftovers of others are removed.

    `keep` names a folder that a later attempt may go on with; without it the name is a new one.
    """
    partial = store_folder() / ".partial"
    partial.mkdir(parents=True, exist_ok=True)
    kept = f"{key}~{keep}"  # "~" is in no key, so one key is never a prefix of another's leftovers
    for leftover in partial.glob(f"{key}~*"):
        if keep is None or leftover.name != kept:
            shutil.rmtree(leftover, ignore_errors=True)
    if keep is None:
        return Path(tempfile.mkdtemp(prefix=f"{key}~", dir=partial))
    (partial / kept).mkdir(exist_ok=True)
    return partial / kept


def install(key: str, folder: Path, record: Record) -> Path:
    """Give a complete folder its place, replacing what was there; returns the model's path.

    Only for the holder of the lock. A reader sees the old entry, for an instant none, or the new.
    """
    for name, nbytes in record.files.items():
        size = (folder / name).stat().st_size
        if size != nbytes:
            raise ModelRefused(f"{folder / name}: {size} bytes, expected {nbytes}; pull {record.name} again")
        with (folder / name).open("rb+") as file:
            os.fsync(file.fileno())  # before the rename: a crash must not leave an entry with holes
    (folder / RECORD_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    target = entry_folder(key)
    if target.exists():
        _trash(key, target)
    folder.rename(target)
    return target / record.path if record.path else target


def duplicate(key: str, new: str) -> Path:
    """A second entry of the same files, as hard links: entries never change in place. For the holder of
    `new`'s lock; `key` is an entry, `new` is none. Returns the copy's model."""
    source = entry_folder(key)
    if not source.is_dir():
        file = source if source.is_file() else source.with_name(f"{key}.gguf")
        target = entry_folder(new).with_name(f"{new}.gguf")
        os.link(file, target)
        return target
    folder = work_folder(new)
    shutil.copytree(source, folder, copy_function=os.link, dirs_exist_ok=True)
    record = read_record(key)
    if record is not None:
        (folder / RECORD_NAME).unlink()
        return install(new, folder, msgspec.structs.replace(record, name=new))
    folder.rename(entry_folder(new))
    return entry_folder(new)


def discard(key: str) -> None:
    """Remove an entry that is there: out of sight at once, then for good. For the lock's holder."""
    target = entry_folder(key)
    _trash(key, target if target.exists() else target.with_name(f"{key}.gguf"))


def _trash(key: str, path: Path) -> None:
    trash = Path(tempfile.mkdtemp(prefix=f"{key}~", dir=_made(store_folder() / ".partial")))
    path.rename(trash / path.name)
    shutil.rmtree(trash)


def require_space(needed_bytes: int, what: str) -> None:
    """ModelRefused, with both numbers, if the store's disk has less than `needed_bytes` and a margin."""
    folder = _made(store_folder())
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + SPACE_MARGIN_BYTES:
        raise ModelRefused(
            f"{what} needs {needed_bytes} bytes and {SPACE_MARGIN_BYTES} to spare in {folder}, {free} are "
            f"free; make room, or set XDG_DATA_HOME to a larger disk"
        )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
