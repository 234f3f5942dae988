"""The engine process's I/O thread: owns the socket, so that pings are answered whatever the core does.

    callers ── ROUTER ──► front thread ── inbox ───────────────► main thread: drive(core)
    callers ◄─ ROUTER ─── front thread ◄─ inproc PUSH/PULL ────── main thread: sink, publish

The main thread may sit in a long step or in loading; this thread still answers pings, greets new
callers, drops silent ones and notices the parent's death. It needs the GIL for microseconds only,
and numpy and native steps release it.

Unbounded send queues are deliberate: a ROUTER socket at its high-water mark would drop token
deltas without a word. What bounds them is the ping: a caller that does not read does not ping
either, and one that is silent for `silence_s` is dropped.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable

import msgspec
import zmq

from penstock.engine.drive import ClientGone, Inbox
from penstock.engine.messages import (
    FromEngine,
    Loading,
    Ping,
    Progress,
    Ready,
    Refused,
    Shutdown,
    decode_to_engine,
    encoder,
)
from penstock.errors import EngineUnavailable

SILENCE_S = 5.0  # five missed pings: longer than any garbage collection or disk stall of a live gateway
_INPROC = "inproc://core"
_STOP = b"stop"

log = logging.getLogger("penstock.engine")


class Front(threading.Thread):
    """`post` and `publish` belong to the main thread; everything else runs in this one."""

    def __init__(
        self,
        address: str,
        inbox: Inbox,
        *,
        parent_fd: int | None,
        on_orphaned: Callable[[], None],
        silence_s: float = SILENCE_S,
    ) -> None:
        """Binds at once: after the constructor callers can connect. `on_orphaned` must not return."""
        super().__init__(name="penstock-engine-front", daemon=True)
        self._inbox = inbox
        self._parent_fd = parent_fd
        self._on_orphaned = on_orphaned
        self._silence_s = silence_s
        self._context = zmq.Context(io_threads=1)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.set_hwm(0)
        self._router.linger = 0
        self._router.bind(address)
        self._pull = self._context.socket(zmq.PULL)
        self._pull.set_hwm(0)
        self._pull.bind(_INPROC)
        self._push = self._context.socket(zmq.PUSH)
        self._push.set_hwm(0)
        self._push.connect(_INPROC)
        self._seen: dict[bytes, float] = {}  # client -> when it was last heard
        self._hello: FromEngine = Loading(phase="start", share=0.0)  # what a new client is told
        self._progress = Progress()
        self._progress_at = time.monotonic()

    # ------------------------------------------------------------------ main thread

    def post(self, client: str, message: FromEngine) -> None:
        """Send to one client."""
        self._push.send_multipart([client.encode("latin-1"), encoder.encode(message)])

    def announce(self, message: Loading | Ready | Refused) -> None:
        """Tell every client, now and later ones when they come."""
        self._hello = message
        self._push.send_multipart([b"", encoder.encode(message)])

    def publish(self, progress: Progress) -> None:
        """Progress of the core: to every client now, and in answer to pings until the next one."""
        self._progress_at = time.monotonic()
        self._progress = progress
        self._push.send_multipart([b"", encoder.encode(progress)])

    def stop(self) -> None:
        """Flush what was posted, close the socket, end the thread. Call once, last."""
        self._push.send_multipart([_STOP, b"", b""])
        self.join()
        self._push.close(linger=0)
        self._context.term()

    # ------------------------------------------------------------------ this thread

    def run(self) -> None:
        try:
            self._serve()
        except BaseException:
            # A deaf engine is worse than a dead one: a dead one is noticed and restarted.
            log.critical("the I/O thread of the engine failed", exc_info=True)
            os._exit(1)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._pull, zmq.POLLIN)
        if self._parent_fd is not None:
            poller.register(self._parent_fd, zmq.POLLIN)
        running = True
        while running:
            ready = dict(poller.poll(self._until_next_expiry_ms()))
            if self._parent_fd in ready and os.read(self._parent_fd, 4096) == b"":  # type: ignore[arg-type]
                self._on_orphaned()
            if self._pull in ready:
                running = self._forward()
            if self._router in ready:
                self._receive()
            self._drop_silent()
        self._router.close(linger=200)  # milliseconds: the last words of a clean exit
        self._pull.close(linger=0)

    def _until_next_expiry_ms(self) -> int | None:
        if not self._seen or math.isinf(self._silence_s):
            return None
        due = min(self._seen.values()) + self._silence_s - time.monotonic()
        return max(0, int(due * 1000) + 1)

    def _forward(self) -> bool:
        """Main thread's messages to the socket. False when told to stop."""
        while True:
            try:
                client, payload, *stop = self._pull.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return True
            if stop:
                return False
            for target in (client,) if client else tuple(self._seen):
                self._router.send_multipart([target, payload])

    def _receive(self) -> None:
        while True:
            try:
                client, payload = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            except ValueError:
                log.warning("dropped a message that is not one frame")
                continue
            try:
                message = decode_to_engine(payload)
            except msgspec.DecodeError as error:
                log.warning("dropped an unreadable message of %d bytes: %s", len(payload), error)
                continue
            known = client in self._seen
            self._seen[client] = time.monotonic()
            if not known:
                self._router.send_multipart([client, encoder.encode(self._hello)])
            if isinstance(message, Ping):
                self._router.send_multipart([client, encoder.encode(self._current_progress())])
            elif isinstance(message, Shutdown) or isinstance(self._hello, Ready):
                self._inbox.put((client.decode("latin-1"), message))
            else:
                log.warning("dropped a request that came before the model was ready")

    def _current_progress(self) -> Progress:
        waited = time.monotonic() - self._progress_at
        return msgspec.structs.replace(self._progress, last_step_s=self._progress.last_step_s + waited)

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for client, seen in list(self._seen.items()):
            if now - seen < self._silence_s:
                continue
            del self._seen[client]
            self._inbox.put((client.decode("latin-1"), ClientGone()))
            # It may only have been stopped for a while: tell it that its requests are gone.
            reason = f"the engine heard nothing from this caller for {now - seen:.1f} s: requests dropped"
            goodbye = Refused(kind=EngineUnavailable.kind, message=reason)
            self._router.send_multipart([client, encoder.encode(goodbye)])
            log.info("client %s silent for %.1f s: dropped", client.hex()[:16], now - seen)
