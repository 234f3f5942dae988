"""Errors on the HTTP side: each API's envelope, its headers, and the layer that makes it from exceptions.

What an error body looks like is the request's dialect (`penstock.wire.dialect`). 429, 503 and 529 carry
Retry-After, 401 carries WWW-Authenticate, 405 carries Allow. A defect (anything that is no PenstockError) is
a 500 that shows the request id and nothing else; the traceback goes to the log.
"""

from __future__ import annotations

import logging
import math

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.api.body import drain
from penstock.api.exchange import exchange_of
from penstock.call import Failure
from penstock.errors import InvalidRequest, PenstockError, from_kind

log = logging.getLogger("penstock.api")

JSON = b"application/json"
Headers = list[tuple[bytes, bytes]]


class MethodNotAllowed(InvalidRequest):
    status = 405

    def __init__(self, method: str, path: str, allowed: str) -> None:
        super().__init__(f"{method} {path}: allowed here: {allowed}", code="method_not_allowed")
        self.allowed = allowed


class UnsupportedMedia(InvalidRequest):
    status = 415


class ClientGone(Exception):
    """The client closed its connection: nobody reads an answer any more."""


class SlowReader(Exception):
    """The client reads too slowly to go on for it."""


def failure_of(error: BaseException, request_id: str) -> Failure:
    """The event that ends a stream which `error` broke."""
    if isinstance(error, PenstockError):
        return Failure(error.kind, error.message, error.status, error.param, error.code, error.retry_after_s)
    return Failure("internal_error", f"internal error; the server's log has it under {request_id}", 500)


def error_of(failure: Failure) -> PenstockError:
    """A Failure that came before anything was sent, as the exception with its HTTP status."""
    error = from_kind(
        failure.kind,
        failure.message,
        param=failure.param,
        code=failure.code,
        retry_after_s=failure.retry_after_s,
    )
    error.status = failure.status
    return error


async def send_bytes(
    send: Send, status: int, body: bytes, content_type: bytes = JSON, headers: Headers | None = None
) -> None:
    """A whole response in two messages."""
    fixed = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": fixed + (headers or [])})
    await send({"type": "http.response.body", "body": body})


async def send_error(scope: Scope, receive: Receive, send: Send, error: PenstockError) -> None:
    """The error's response. If the request's body is still coming, the connection ends with it:
    what the client goes on sending is thrown away for a moment, so that it gets to read the answer."""
    exchange = exchange_of(scope)
    failure = failure_of(error, exchange.id)
    status = exchange.dialect.status(failure)
    body = exchange.dialect.error_body(failure, exchange.id)
    headers = _error_headers(error, status)
    if exchange.body_done or not _has_body(scope):
        await send_bytes(send, status, body, headers=headers)
        return
    headers += [(b"content-type", JSON), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await drain(scope, receive)
    await send({"type": "http.response.body", "body": b""})


def _error_headers(error: PenstockError, status: int) -> Headers:
    if status in (429, 503, 529):
        seconds = max(1, math.ceil(error.retry_after_s or 1.0))
        return [(b"retry-after", b"%d" % seconds)]
    if status == 401:
        return [(b"www-authenticate", b"Bearer")]
    if isinstance(error, MethodNotAllowed):
        return [(b"allow", error.allowed.encode())]
    return []


def _has_body(scope: Scope) -> bool:
    names = dict(scope["headers"])
    return b"transfer-encoding" in names or names.get(b"content-length", b"0") != b"0"


class ErrorLayer:
    """Turns what the inner layers raise into a response, if none has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except ClientGone:
            return
        except Exception as error:  # the outermost net: nothing may reach the server as a bare 500
            mapped = error if isinstance(error, PenstockError) else None
            if mapped is None or started:
                log.error("request %s broke", exchange_of(scope).id, exc_info=error)
                mapped = PenstockError(failure_of(error, exchange_of(scope).id).message)
            if started:
                raise
            await send_error(scope, receive, send, mapped)
