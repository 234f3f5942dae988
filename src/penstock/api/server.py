"""Serving: uvicorn with httptools and uvloop, its signals, its limits, and the order of an ending.

First SIGTERM or SIGINT: nothing new is accepted, the service drains, running answers get
`settings.drain_s`; what still runs then is told so in its stream. A second signal ends it now.
uvicorn has no limit on headers with httptools and no time limit on them, so the protocol here has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penstock.api.app import App
from penstock.config import ServerSettings
from penstock.errors import ConfigError
from penstock.wire.openai_common import error_bytes

MAX_HEADER_BYTES = 64 * 1024
HEADERS_S = 20.0  # from the first byte of a request, or the connection, to the end of its headers
LINGER_S = 1.0  # for reading on after a refusal
KEEP_ALIVE_S = 75  # idle connections; longer than the usual 60 s of clients' pools, so they close first

log = logging.getLogger("penstock.server")


class LimitedProtocol(HttpToolsProtocol):
    """httptools' protocol with bounds on request headers, JSON errors, and an abort for slow readers."""

    _in_head = False  # between the first byte of a request and the end of its headers
    _head_bytes = 0  # blocks received since then, without the first: it may end an earlier body
    _field_bytes = 0  # of URL and headers parsed so far
    _head_timer: asyncio.TimerHandle | None = None
    _too_large = False
    _refused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        was_in_head = self._in_head
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data) if was_in_head else 0
            if self._head_bytes > MAX_HEADER_BYTES:
                self._too_large = True
                self.send_400_response("")
            elif self._head_timer is None:
                self._start_head_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self._field_bytes = 0
        self.scope["penstock.abort"] = self._reset  # type: ignore[typeddict-unknown-key]

    def _reset(self) -> None:
        """End the connection so that the kernel too drops what was not sent: a client that keeps its
        window shut could hold those megabytes for as long as it likes."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def _count(self, size: int) -> None:
        self._field_bytes += size
        if self._field_bytes > MAX_HEADER_BYTES:
            self._too_large = True
            raise httptools.HttpParserError("headers too large")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for bytes that are no HTTP; the connection ends with it."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # inside another answer a 400 would read as part of it
            return
        if self._too_large:
            status, text = b"431 Request Header Fields Too Large", f"headers: over {MAX_HEADER_BYTES} bytes"
        else:
            status, text = b"400 Bad Request", "this is not a valid HTTP request"
        body = error_bytes(text, "invalid_request_error")
        self.transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % (status, len(body))
            + b"connection: close\r\n\r\n"
            + body
        )
        self._refuse()

    def _refuse(self) -> None:
        """End the connection, but read on for a moment: closing over unread bytes would reset it, and
        a client that still sends would lose the answer."""
        self._refused = True
        self._stop_head_timer()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._head_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEADERS_S, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Server(uvicorn.Server):
    """Signals are ours (`serve_app`): uvicorn would raise them again after a clean end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(settings: ServerSettings) -> socket.socket:
    """A listening socket. Raises ConfigError naming the address if it can't be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    host = settings.host.strip("[]")
    try:
        sock = socket.create_server((host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"host, port: can't listen on {host}:{settings.port}: {error.strerror or error}"
        ) from None
    sock.setblocking(False)
    return sock


async def serve_app(
    app: App,
    settings: ServerSettings,
    on_ready: Callable[[str], None] | None = None,
    *,
    stop: asyncio.Event | None = None,
    sock: socket.socket | None = None,
    signals: bool = True,
) -> None:
    """Start the service, listen, serve until a signal (or `stop`), drain, close the service.

    `on_ready` gets the base URL once connections are accepted; the model may still be loading.
    `signals=False` leaves SIGINT and SIGTERM to the caller.
    Run it under `uvloop.run`. Raises ConfigError if the address is taken.
    """
    sock = sock or bind(settings)
    host, port = sock.getsockname()[:2]
    server = _Server(_config(app, settings))
    drains: list[asyncio.Task[None]] = []

    def end() -> None:
        if server.should_exit:
            server.force_exit = True
            return
        log.info("stopping: running answers get %g s", settings.drain_s)
        server.should_exit = True
        drains.append(asyncio.ensure_future(app.drain(settings.drain_s)))

    with _signals(end) if signals else contextlib.nullcontext():
        await app.start()
        serving = asyncio.create_task(_serve(server, sock))
        if stop is not None:
            waiting = asyncio.create_task(stop.wait())
            waiting.add_done_callback(lambda task: None if task.cancelled() else end())
        else:
            waiting = None
        try:
            if on_ready is not None:
                on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            await serving
        finally:
            if waiting is not None:
                waiting.cancel()
            for task in drains:
                task.cancel()
            await app.close()


async def _serve(server: _Server, sock: socket.socket) -> None:
    await server.serve(sockets=[sock])
    # After a forced end (second signal, drain time over) tasks are left: they get to say goodbye.
    left = list(server.server_state.tasks)
    for task in left:
        if not task.cancelling():
            task.cancel()
    if left:
        await asyncio.wait(left, timeout=2.0)


def _config(app: App, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=LimitedProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
    )


@contextlib.contextmanager
def _signals(end: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `end` while inside; elsewhere than in the main thread they can't be had."""
    loop = asyncio.get_running_loop()
    caught = []
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, end)
            caught.append(number)
        except (ValueError, RuntimeError):
            log.debug("signals are not available in this thread")
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
