"""The engine process: one loaded model behind a ZeroMQ socket.

    python -m penstock.engine.process --address ipc://… --parent-fd 0   (settings as JSON on stdin)

is how a gateway starts it; `run_engine` is what `penstock engine` calls to run one alone.

Life: bind → load (callers hear Loading) → Ready or Refused → serve → exit.
- Started by a gateway: the inherited pipe `parent_fd` reaches end of file when the gateway is gone,
  however it died; the I/O thread sees it even in the middle of a step, removes the socket and
  exits. (Not PR_SET_PDEATHSIG: it fires when the parent's *thread* ends, and leaves the socket.)
  SIGINT is ignored: Ctrl-C in a terminal is the gateway's to handle, it drains first.
- Alone: lives on when callers go; those silent for 5 s lose their requests. (A parent that only hangs
  finds its requests again: its death would show in the pipe.)
- SIGTERM: releases everything and exits 0.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import msgspec

from penstock.config import EngineSettings
from penstock.engine import sockets
from penstock.engine.drive import BuildEngine, Inbox, drive
from penstock.engine.front import SILENCE_S, Front
from penstock.engine.messages import Delta, Loading, Outputs, Ready, Refused, Shutdown
from penstock.errors import ConfigError, PenstockError

SWITCH_INTERVAL_S = 0.0005  # the I/O thread waits at most this long for the GIL; Python's default is 5 ms
EXIT_REFUSED = 3
EXIT_ORPHANED = 4

log = logging.getLogger("penstock.engine")


def run_engine(
    settings: EngineSettings,
    address: str,
    parent_fd: int | None = None,
    *,
    build: BuildEngine | None = None,
    on_loading: Callable[[Loading], None] | None = None,
    on_ready: Callable[[Ready], None] | None = None,
    silence_s: float | None = None,
) -> int:
    """Load the model and serve it on `address` until SIGTERM; returns the exit status.

    Call it in a process's main thread. Raises ModelRefused and ConfigError when alone; with a
    parent it tells the parent and waits to be stopped. `build` and `silence_s` are for tests.
    """
    if build is None:
        from penstock.engine.build import build_engine

        build = build_engine
    path = sockets.claim(address)
    inbox = Inbox()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    supervised = parent_fd is not None
    if silence_s is None:
        # A parent's death shows in the pipe; one that only hangs for a while should find its requests.
        silence_s = math.inf if supervised else SILENCE_S
    front = Front(
        address, inbox, parent_fd=parent_fd, on_orphaned=lambda: _exit_orphaned(path), silence_s=silence_s
    )
    front.start()
    stopper = _Stopper(inbox)
    try:
        signal.signal(signal.SIGTERM, stopper)
        signal.signal(signal.SIGINT, signal.SIG_IGN if supervised else stopper)
        return _load_and_serve(settings, front, inbox, build, supervised, stopper, on_loading, on_ready)
    except _Terminated:
        return 0
    finally:
        front.stop()
        path.unlink(missing_ok=True)


def _load_and_serve(
    settings: EngineSettings,
    front: Front,
    inbox: Inbox,
    build: BuildEngine,
    supervised: bool,
    stopper: _Stopper,
    on_loading: Callable[[Loading], None] | None,
    on_ready: Callable[[Ready], None] | None,
) -> int:
    def sink(client: str, deltas: list[Delta]) -> None:
        front.post(client, Outputs(deltas))

    def loading(message: Loading) -> None:
        front.announce(message)
        if on_loading is not None:
            on_loading(message)

    try:
        core, ready = build(settings, sink, loading)
    except PenstockError as error:
        front.announce(Refused(kind=error.kind, message=error.message))
        if not supervised:
            raise
        log.error("%s", error.message)
        # The parent has to hear the reason, however late it connects: it ends this process.
        while not isinstance(inbox.get()[1], Shutdown):
            pass
        return EXIT_REFUSED
    try:
        stopper.loading = False
        front.publish(core.progress())
        front.announce(ready)
        if on_ready is not None:
            on_ready(ready)
        # What the start allocated lives until the end: full collections need not walk it again.
        gc.collect()
        gc.freeze()
        drive(core, inbox, front.publish)
    finally:
        core.close()
    return 0


class _Terminated(BaseException):
    """SIGTERM while nobody reads the inbox."""


class _Stopper:
    """Signal handler: a Shutdown for the loop, an exception while the model still loads."""

    def __init__(self, inbox: Inbox) -> None:
        self.loading = True
        self._inbox = inbox

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._inbox.put(("", Shutdown()))
        if self.loading:
            raise _Terminated


def _exit_orphaned(path: Path) -> None:
    """In the I/O thread, maybe in the middle of a step: nothing but the socket needs care."""
    if path.parent.name.startswith(sockets.PREFIX):
        shutil.rmtree(path.parent, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    os._exit(EXIT_ORPHANED)


def _read_settings(descriptor: int) -> EngineSettings:
    """One line of JSON."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            raise ConfigError("engine settings: the pipe ended before the line did")
        line += byte
    return msgspec.json.decode(bytes(line), type=EngineSettings)


def main(build: BuildEngine | None = None) -> int:
    """Entry point of the process that a gateway starts."""
    parser = argparse.ArgumentParser(prog="penstock.engine.process")
    parser.add_argument("--address", required=True, help="ipc:// address to serve on")
    parser.add_argument("--parent-fd", type=int, required=True, help="pipe that ends with the parent")
    parser.add_argument("--model", help="ignored: tells people in `ps` which engine this is")
    parser.add_argument("--log-level", default="INFO")
    options = parser.parse_args()
    logging.basicConfig(level=options.log_level, format="%(levelname)s %(name)s: %(message)s")
    faulthandler.enable()  # a crash in native code leaves its stack on stderr, hence in the parent's log
    settings = _read_settings(options.parent_fd)
    try:
        return run_engine(settings, options.address, options.parent_fd, build=build)
    except PenstockError as error:
        log.error("%s", error.message)
        return 1


if __name__ == "__main__":
    sys.exit(main())
