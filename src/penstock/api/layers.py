"""Two of the layers around the routes: the request's id, and the access log with its counters."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.api.dialects import dialect_of
from penstock.api.exchange import Exchange, exchange_of, header
from penstock.observe.log import access_log, fields
from penstock.observe.metrics import Metrics

CLIENT_GONE = 499  # nginx's number for a client that left before its answer; never sent, only counted


class RequestIdLayer:
    """Takes a sane inbound `x-request-id` or makes one; it stands in the answer's headers and in logs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(header(scope, b"x-request-id"), dialect_of(scope))
        scope["penstock"] = exchange
        names = [(b"x-request-id", exchange.id.encode("ascii")), *exchange.dialect.headers(exchange.id)]

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *names]
            await send(message)

        await self._app(scope, receive, named)


class AccessLogLayer:
    """One line and one count per request, also when the client left or the server broke."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.request_started()
        exchange = exchange_of(scope)
        try:
            await self._app(scope, receive, send)
        finally:
            status = exchange.status or CLIENT_GONE
            self._metrics.request_ended(exchange.route, status, exchange.finish_reason)
            if access_log.isEnabledFor(logging.INFO):
                access_log.info("%s", _line(scope, exchange, status))


def _line(scope: Scope, exchange: Exchange, status: int) -> str:
    usage = exchange.usage
    return fields(
        method=scope["method"],
        path=scope["path"],
        status=status,
        ms=exchange.elapsed_s() * 1000,
        model=exchange.model or None,
        prompt=usage.prompt_tokens if usage else None,
        cached=usage.cached_tokens if usage else None,
        generated=usage.completion_tokens if usage else None,
        finish=exchange.finish_reason or None,
        id=exchange.id,
        call=exchange.call_id if exchange.call_id != exchange.id else None,
    )
