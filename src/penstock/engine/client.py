"""The caller's end of an engine process: one ZeroMQ DEALER socket, read on the asyncio loop.

Greeting: a Ping as soon as the connection stands; the engine answers with Loading, Ready or Refused.
After that a Ping every second, for both sides: the engine drops the requests of a caller silent for
5 s, and its answers say that it still lives.

A connection is one life of the engine: when it ends, every open request is lost, the socket is
thrown away with all that it still queued, and a new one (new identity) knocks until an engine
answers. So nothing of an old life can reach a new engine, and a second Ready means nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid

import zmq

from penstock.engine.messages import (
    Abort,
    Loading,
    Outputs,
    Ping,
    Progress,
    Ready,
    Refused,
    Submit,
    ToEngine,
    Unpin,
    decode_from_engine,
    encoder,
)
from penstock.engine.sockets import socket_path
from penstock.engine.transport import Listener, State, Status
from penstock.errors import EngineUnavailable, ModelRefused, PenstockError, from_kind

PING_S = 1.0
RECONNECT_MS = (20, 1000)  # first and longest wait between attempts; an ipc connect costs microseconds
MESSAGES_PER_TURN = 64  # then other tasks of the loop get their turn

log = logging.getLogger("penstock.engine.client")


class ZmqTransport:
    """Speaks to the engine at `address` (ipc://…), which may start later or come back after a death.

    reconnect=False: after a loss it stays silent; its owner makes a new one (the supervisor).
    """

    def __init__(self, address: str, *, reconnect: bool = True, ping_s: float = PING_S) -> None:
        socket_path(address)
        self._address = address
        self._reconnect = reconnect
        self._ping_s = ping_s
        self._state = State.STARTING
        self._detail = f"waiting for an engine at {address}"
        self._restarts = 0
        self._heard_at = time.monotonic()
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(self, listener: Listener) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._context = zmq.Context(io_threads=1)
        self._open()
        self._ping_later()

    def submit(self, request: Submit) -> None:
        if self._state is not State.READY:
            raise EngineUnavailable(f"the engine is not ready: {self._detail}", retry_after_s=1.0)
        self._send(request)

    def abort(self, request_id: str, keep: int | None = None) -> None:
        if self._state is State.READY:
            self._send(Abort(id=request_id, keep=keep))

    def unpin(self, name: str) -> None:
        if self._state is State.READY:
            self._send(Unpin(name=name))

    def status(self) -> Status:
        heard_s = time.monotonic() - self._heard_at
        return Status(state=self._state, detail=self._detail, restarts=self._restarts, heard_s=heard_s)

    async def close(self) -> None:
        if self._context is None or self._state is State.CLOSED:
            return
        self._state, self._detail = State.CLOSED, "closed"
        if self._timer is not None:
            self._timer.cancel()
        self._discard_socket()
        self._context.term()

    # ------------------------------------------------------------------ the socket's life

    def _open(self) -> None:
        assert self._context is not None
        sock = self._context.socket(zmq.DEALER)
        sock.set_hwm(0)  # a full queue would block or drop; the engine reads at once or is dead
        sock.linger = 0
        sock.setsockopt(zmq.ROUTING_ID, uuid.uuid4().hex.encode())
        sock.setsockopt(zmq.IMMEDIATE, 1)  # never queue for an engine that is not there
        sock.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS[0])
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS[1])
        self._monitor = sock.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._socket = sock
        self._loop.add_reader(_descriptor(sock), self._on_readable, sock)
        self._loop.add_reader(_descriptor(self._monitor), self._on_monitor, self._monitor)
        sock.connect(self._address)
        # The descriptors are edge-triggered: look once at what came before the readers stood.
        self._loop.call_soon(self._on_monitor, self._monitor)

    def _discard_socket(self) -> None:
        sock, monitor = self._socket, self._monitor
        self._socket = self._monitor = None
        if sock is None or monitor is None:
            return
        self._loop.remove_reader(_descriptor(sock))
        self._loop.remove_reader(_descriptor(monitor))
        sock.disable_monitor()
        monitor.close(linger=0)
        sock.close(linger=0)

    def _ping_later(self) -> None:
        self._timer = self._loop.call_later(self._ping_s, self._on_ping_due)

    def _on_ping_due(self) -> None:
        self._send(Ping())
        self._ping_later()

    def _send(self, message: ToEngine) -> None:
        sock = self._socket
        if sock is None:
            return
        try:
            sock.send(encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return  # not connected: the monitor reports the loss, which fails what was open
        # Sending may swallow the edge that announced an incoming message.
        self._loop.call_soon(self._on_readable, sock)

    def _on_monitor(self, monitor: zmq.Socket[bytes]) -> None:
        from zmq.utils.monitor import parse_monitor_message

        while monitor is self._monitor and _has_input(monitor):
            event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._send(Ping())
            elif self._state is not State.REFUSED:
                self._lose(EngineUnavailable("the connection to the engine was lost", retry_after_s=1.0))

    def _lose(self, error: PenstockError) -> None:
        """This life of the engine is over."""
        was_ready = self._state is State.READY
        self._state, self._detail = State.STARTING, error.message
        self._discard_socket()
        if self._reconnect:
            self._restarts += was_ready
            self._open()
        if was_ready or not self._reconnect:
            self._listener.on_lost(error)

    # ------------------------------------------------------------------ messages

    def _on_readable(self, sock: zmq.Socket[bytes]) -> None:
        for _ in range(MESSAGES_PER_TURN):
            if sock is not self._socket or not _has_input(sock):
                return
            self._handle(sock.recv(zmq.NOBLOCK))
        self._loop.call_soon(self._on_readable, sock)

    def _handle(self, payload: bytes) -> None:
        self._heard_at = time.monotonic()
        match decode_from_engine(payload):
            case Outputs(deltas=deltas):
                self._listener.on_deltas(deltas)
            case Progress() as progress:
                self._listener.on_progress(progress)
            case Loading(phase=phase, share=share) if self._state is State.STARTING:
                self._detail = f"loading: {phase} {share:.0%}"
            case Ready() as ready if self._state is State.STARTING:
                self._state, self._detail = State.READY, "ready"
                self._listener.on_ready(ready)
            case Refused(kind=kind, message=message):
                self._on_refused(from_kind(kind, message))

    def _on_refused(self, error: PenstockError) -> None:
        if isinstance(error, EngineUnavailable):
            error.retry_after_s = 1.0
            self._lose(error)
            return
        if self._state is not State.REFUSED:
            self._state, self._detail = State.REFUSED, error.message
            self._listener.on_lost(error if isinstance(error, ModelRefused) else ModelRefused(error.message))


def _has_input(sock: zmq.Socket[bytes]) -> bool:
    return bool(int(sock.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def _descriptor(sock: zmq.Socket[bytes]) -> int:
    return int(sock.getsockopt(zmq.FD))
