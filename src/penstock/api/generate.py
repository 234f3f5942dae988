"""The hot route: a body becomes a Call, the service's events become a stream or one JSON body.

The order, for every call: read the body → Call → open the service's stream → wait for its first event
(so that an early error keeps its HTTP status), a streaming one no longer than `keepalive_s` → answer.
From the moment the body is read a watcher waits for the client's departure, in both modes, before and
after the first token; when it comes, the service's iterator is closed at once. A stream that has begun
always ends well-formed: a finish for each choice, or one `error` frame, then `[DONE]`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from penstock.api.affinity import affinity_key
from penstock.api.body import read_body
from penstock.api.coalesce import Backlog
from penstock.api.errors import ClientGone, MethodNotAllowed, SlowReader, error_of, failure_of, send_bytes
from penstock.api.exchange import Exchange, exchange_of
from penstock.api.media import require_json
from penstock.call import Call, Done, Event, Failure, Finish, ReasoningDelta, TextDelta
from penstock.config import ServerSettings
from penstock.errors import PenstockError
from penstock.gateway.sessions import Sessions
from penstock.observe.metrics import Metrics
from penstock.wire.fold import Fold

log = logging.getLogger("penstock.api")

_UNBUFFERED = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
LAST_WORD_S = 1.0  # for the error frame of a stream that the server itself ends


class Encoder(Protocol):
    """What a codec makes of one answer. `media_type`: of its stream. `keep_alive`: what a stream may carry
    while there is nothing to say, b"" if nothing may."""

    media_type: bytes
    keep_alive: bytes

    def feed(self, event: Event) -> bytes: ...

    def close(self) -> bytes: ...

    def body(self, fold: Fold) -> bytes: ...


class RunningCall(NamedTuple):
    """A call that is being answered. `backlog.fail(error)` ends it."""

    call: Call
    backlog: Backlog
    encoder: Encoder


class Answers(Protocol):
    """Who answers calls: see `ModelService.stream`."""

    def stream(self, call: Call, request_id: str) -> AsyncIterator[Event]: ...


class GenerateRoute:
    """One wire format at one path. `codec` is a module of `penstock.wire`; `sessions` answer the calls
    that go on from stored turns, or become some. `running` holds the calls that are being answered, by
    call id."""

    def __init__(
        self,
        service: Answers,
        settings: ServerSettings,
        metrics: Metrics,
        codec: ModuleType,
        sessions: Sessions | None = None,
    ) -> None:
        self._service = service
        self._settings = settings
        self._metrics = metrics
        self._codec = codec
        self._sessions = sessions
        self.running: dict[str, RunningCall] = {}
        self.path: str = codec.PATH

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        exchange.route = self.path
        if scope["method"] != "POST":
            raise MethodNotAllowed(scope["method"], self.path, "POST")
        require_json(scope)
        body = await read_body(receive)
        if body is None:
            raise ClientGone
        call = self._call(body, scope)
        del body  # not kept while the answer runs
        encoder: Encoder = self._codec.Encoder(call, exchange.call_id, int(time.time()), call.model)
        meter = _Meter(self._metrics, call.model, exchange)
        client = _Client(receive, send, scope, self._settings)
        async with Backlog(self._events(call, exchange, encoder), meter.see, client.abort) as backlog:
            watcher = asyncio.create_task(client.watch(backlog), name="penstock-watch")
            self.running[exchange.call_id] = RunningCall(call, backlog, encoder)
            try:
                if call.stream:
                    await self._stream(client, backlog, encoder, exchange)
                else:
                    await self._whole(client, backlog, encoder)
            except ClientGone:
                self._metrics.cancelled("disconnect")
                raise
            except SlowReader as error:
                self._metrics.cancelled("slow_reader")
                log.warning("request %s cancelled: its client does not read (%s)", exchange.id, error)
                client.abort()
                raise ClientGone from None
            finally:
                watcher.cancel()
                del self.running[exchange.call_id]

    def _events(self, call: Call, exchange: Exchange, encoder: Encoder) -> AsyncIterator[Event]:
        if call.session is None or self._sessions is None:
            return self._service.stream(call, exchange.call_id)
        return self._sessions.stream(call, exchange.call_id, encoder.body)

    def _call(self, body: bytes, scope: Scope) -> Call:
        exchange = exchange_of(scope)
        call: Call = self._codec.read_request(body)
        exchange.model = call.model
        if call.cache.key is None and (key := affinity_key(scope)) is not None:
            call = msgspec.structs.replace(call, cache=msgspec.structs.replace(call.cache, key=key))
        tenant = exchange.identity.tenant
        return msgspec.structs.replace(call, tenant=tenant) if tenant else call

    async def _whole(self, client: _Client, backlog: Backlog, encoder: Encoder) -> None:
        fold = Fold()
        while (batch := await backlog.take()) is not None:
            for event in batch:
                fold.add(event)
        if fold.failure is not None:
            raise error_of(fold.failure)
        if not fold.done or any(choice.finish is None for choice in fold.choices()):
            raise RuntimeError("the service ended an answer without Done, or a choice without Finish")
        await client.send_whole(encoder.body(fold))

    async def _stream(self, client: _Client, backlog: Backlog, encoder: Encoder, exchange: Exchange) -> None:
        # Proxies and clients give up on a server that says nothing while a long prompt is computed.
        batch = await backlog.take(self._settings.keepalive_s)
        if batch is None:
            raise RuntimeError("the service ended a stream without any event")
        if batch and isinstance(batch[0], Failure):
            raise error_of(batch[0])
        await client.start_stream(encoder.media_type)
        over = False
        try:
            while batch is not None and not over:
                over = isinstance(batch[-1], Done | Failure) if batch else False
                await client.send_events(backlog, _frames(encoder, batch) if batch else encoder.keep_alive)
                if not over:
                    batch = await backlog.take(self._settings.keepalive_s)
            if not over:
                raise RuntimeError("the service ended a stream without Done or Failure")
        except (ClientGone, SlowReader):
            raise
        except asyncio.CancelledError:
            # The server stops and this stream's time to finish is over: its client is told.
            gone = Failure("service_unavailable_error", "the server is stopping", 503)
            await client.last_word(encoder.feed(gone) + encoder.close())
            raise
        except Exception as error:  # the 200 is out: the error has to stand in the stream
            if not isinstance(error, PenstockError):
                log.error("request %s broke", exchange.id, exc_info=error)
            await client.send_events(backlog, encoder.feed(failure_of(error, exchange.id)))
        await client.end_stream(backlog, encoder.close())


def _frames(encoder: Encoder, batch: Iterable[Event]) -> bytes:
    return b"".join([encoder.feed(event) for event in batch])


class _Client:
    """The socket's side of one call: sends with a time limit, and notices when nobody is there."""

    def __init__(self, receive: Receive, send: Send, scope: Scope, settings: ServerSettings) -> None:
        self._receive = receive
        self._send = send
        self._slow_reader_s = settings.slow_reader_s
        # The server's protocol offers this (api.server); without it a dead-slow socket closes by itself.
        self._abort: Callable[[], Any] | None = scope.get("penstock.abort")

    async def watch(self, backlog: Backlog) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        backlog.fail(ClientGone())

    def abort(self) -> None:
        if self._abort is not None:
            self._abort()

    async def send_whole(self, body: bytes) -> None:
        await self._timed(send_bytes(self._send, 200, body))

    async def start_stream(self, media_type: bytes) -> None:
        headers = [(b"content-type", media_type), *_UNBUFFERED]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send_events(self, backlog: Backlog, frames: bytes) -> None:
        if frames:
            backlog.sending = True
            await self._timed(self._send({"type": "http.response.body", "body": frames, "more_body": True}))
            backlog.sending = False

    async def end_stream(self, backlog: Backlog, frames: bytes) -> None:
        backlog.sending = True
        await self._timed(self._send({"type": "http.response.body", "body": frames}))

    async def last_word(self, frames: bytes) -> None:
        try:
            async with asyncio.timeout(LAST_WORD_S):
                await self._send({"type": "http.response.body", "body": frames})
        except TimeoutError:
            self.abort()

    async def _timed(self, sending: Any) -> None:
        try:
            async with asyncio.timeout(self._slow_reader_s):
                await sending
        except TimeoutError:
            raise SlowReader(f"one write took over {self._slow_reader_s:g} s") from None


class _Meter:
    """Measures one call from its events, before coalescing: what the engine did, not the client."""

    def __init__(self, metrics: Metrics, model: str, exchange: Exchange) -> None:
        self._metrics = metrics
        self._model = model
        self._exchange = exchange
        self._last: dict[int, float] = {}  # choice -> time of its last delta

    def see(self, event: Event) -> None:
        if isinstance(event, TextDelta | ReasoningDelta):
            if event.token_ids:
                self._token(event.index)
        elif isinstance(event, Finish):
            if not self._exchange.finish_reason:
                self._exchange.finish_reason = event.reason
        elif isinstance(event, Done):
            self._done(event)

    def _token(self, index: int) -> None:
        now = time.perf_counter()
        before = self._last.get(index)
        if before is not None:
            self._metrics.observe_itl(self._model, now - before)
        elif not self._last:
            self._metrics.observe_ttft(self._model, now - self._exchange.started)
        self._last[index] = now

    def _done(self, event: Done) -> None:
        usage = event.usage
        self._exchange.usage = usage
        self._metrics.observe_queue(self._model, event.timings.queue_s)
        self._metrics.observe_e2e(self._model, self._exchange.elapsed_s())
        self._metrics.count_tokens(
            self._model, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens
        )
