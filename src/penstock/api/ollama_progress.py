"""Work that takes long (a pull) as Ollama shows it: lines of progress, the last one `{"status": "success"}`.

The work runs in a thread. When the client leaves, its next report of progress raises there, which ends it.
An error before the first report keeps its HTTP status; a later one is the last line.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from msgspec import UNSET, Struct, UnsetType
from starlette.types import Receive, Scope, Send

from penstock.api.errors import ClientGone, failure_of, send_bytes
from penstock.api.exchange import exchange_of
from penstock.errors import PenstockError
from penstock.gateway.service import Progress
from penstock.wire.ollama_common import MEDIA_TYPE, ErrorLine, line
from penstock.wire.openai_common import encode

log = logging.getLogger("penstock.api")

_STATUS = {
    "wait": "waiting for another process that changes this model",
    "download": "pulling",
    "verify": "verifying sha256 digest",
    "unpack": "writing model",
}


class ProgressBody(Struct):
    """`total` and `completed` in bytes."""

    status: str
    total: int | UnsetType = UNSET
    completed: int | UnsetType = UNSET


class _Reports:
    """What the thread said last, per phase, for the loop that sends it: a slow reader skips numbers."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._latest: dict[str, ProgressBody] = {}
        self._told = False  # the loop has been woken for what is there
        self.came = asyncio.Event()
        self.gone = False

    def report(self, phase: str, done: int, total: int | None) -> None:
        if self.gone:
            raise ClientGone
        body = ProgressBody(_STATUS.get(phase, phase))
        if total is not None:
            body.total, body.completed = total, done
        with self._lock:
            self._latest[phase] = body
            told, self._told = self._told, True
        if not told:
            self._loop.call_soon_threadsafe(self.came.set)

    def take(self) -> bytes:
        self.came.clear()
        with self._lock:
            latest, self._latest, self._told = self._latest, {}, False
        return b"".join(map(line, latest.values()))


async def run_with_progress(
    scope: Scope, receive: Receive, send: Send, stream: bool, work: Callable[[Progress], None]
) -> None:
    """Answer with what `work(progress)` reports, or with its end alone. Raises what it raised before that."""
    reports = _Reports()
    working = asyncio.ensure_future(asyncio.to_thread(work, reports.report))
    left = asyncio.ensure_future(_departure(receive))
    try:
        if not stream:
            await asyncio.wait((working, left), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientGone
            await working
            await send_bytes(send, 200, encode(ProgressBody("success")))
            return
        await _send_lines(scope, send, reports, working, left)
    finally:
        reports.gone = True
        left.cancel()
        if not working.done():
            working.add_done_callback(lambda done: done.cancelled() or done.exception())  # told to nobody


async def _send_lines(
    scope: Scope,
    send: Send,
    reports: _Reports,
    working: asyncio.Future[None],
    left: asyncio.Future[None],
) -> None:
    started = False
    while True:
        news = asyncio.ensure_future(reports.came.wait())
        try:
            await asyncio.wait((working, left, news), return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
        if left.done():
            raise ClientGone
        lines, over = reports.take(), working.done()
        if over:
            error = working.exception()
            if error is not None and not started:
                raise error
            lines += line(ProgressBody("success")) if error is None else _error_line(scope, error)
        if not started:
            started = True
            headers = [(b"content-type", MEDIA_TYPE), (b"cache-control", b"no-cache")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": lines, "more_body": not over})
        if over:
            return


def _error_line(scope: Scope, error: BaseException) -> bytes:
    name = exchange_of(scope).id
    if not isinstance(error, PenstockError):
        log.error("request %s broke", name, exc_info=error)
    return line(ErrorLine(failure_of(error, name).message))


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
