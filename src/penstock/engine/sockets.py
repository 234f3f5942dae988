"""Where engine sockets live: private directories, taken by a lock, cleaned when the owner is dead.

A directory `penstock-XXXXXXXX` (mode 0700) under XDG_RUNTIME_DIR or the temporary directory holds
one socket and a `lock` file. The owner keeps the lock for its life; the kernel gives it back when
the owner dies in whatever way, so "lock can be taken" means "left behind by a dead process".
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

from penstock.errors import ConfigError

PREFIX = "penstock-"
UNLOCKED_GRACE_S = 60.0  # a directory this young without a lock file may be one that is just being made
# sun_path holds 108 bytes with its terminator on Linux, 104 on macOS.
MAX_SOCKET_PATH = 103


def runtime_base() -> Path:
    """XDG_RUNTIME_DIR if it is usable, else the temporary directory, else /tmp: the first that is
    short enough for a socket path."""
    longest = MAX_SOCKET_PATH - len(f"/{PREFIX}XXXXXXXX/engine.sock")
    for given in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"):
        fits = 0 < len(os.fsencode(given)) <= longest
        if fits and os.path.isdir(given) and os.access(given, os.W_OK | os.X_OK):
            return Path(given)
    raise ConfigError(
        f"engine socket: no writable folder of at most {longest} bytes; point XDG_RUNTIME_DIR at one"
    )


class SocketDir:
    """A private directory with one socket, owned by this process until `remove`."""

    def __init__(self) -> None:
        base = runtime_base()
        remove_stale(base)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        self._lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    @property
    def address(self) -> str:
        return ipc_address(self.path / "engine.sock")

    def remove(self) -> None:
        """Idempotent."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def ipc_address(path: Path) -> str:
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH:
        raise ConfigError(
            f"engine address: {path} has {size} bytes, a socket at most {MAX_SOCKET_PATH}; shorten it"
        )
    return f"ipc://{path}"


def socket_path(address: str) -> Path:
    """The file of an `ipc://` address. Raises ConfigError for anything else."""
    if not address.startswith("ipc://") or len(address) <= len("ipc://"):
        raise ConfigError(f"engine address: {address!r} is not of the form ipc:///path/to/engine.sock")
    return Path(address.removeprefix("ipc://"))


def is_listening(path: Path) -> bool:
    """Whether a live process accepts connections on the socket file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except TimeoutError:
            return True  # a full backlog: somebody holds it open
        return True


def claim(address: str) -> Path:
    """Make `address` bindable: create its folder (0700), remove the socket of a dead engine.

    Raises ConfigError if a live engine holds it, or if others may write to the folder.
    """
    path = socket_path(address)
    ipc_address(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.parent.stat()
    if info.st_uid != os.getuid() or info.st_mode & 0o022:
        raise ConfigError(
            f"engine address: others can write to {path.parent}; use a folder of your own with mode 0700"
        )
    if path.exists():
        if is_listening(path):
            raise ConfigError(f"engine address: {address} is in use by a running engine; choose another")
        path.unlink(missing_ok=True)
    return path


def remove_stale(base: Path) -> list[Path]:
    """Remove directories of this user whose owner is dead; returns them."""
    removed = []
    for folder in base.glob(PREFIX + "*"):
        try:
            info = folder.lstat()
            if info.st_uid != os.getuid() or not os.path.isdir(folder) or os.path.islink(folder):
                continue
            lock = folder / "lock"
            if not lock.exists():
                known = not any(folder.iterdir()) or (folder / "engine.sock").exists()
                if not known or time.time() - info.st_mtime < UNLOCKED_GRACE_S:
                    continue
            elif not _lock_is_free(lock):
                continue
        except FileNotFoundError:
            continue  # another process cleans at the same time
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder)
    return removed


def _lock_is_free(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
