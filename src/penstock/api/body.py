"""Request bodies: refused from their headers or at the byte that crosses the limit, before parsing.

`BodyLimit` wraps `receive`, so every route is covered, whoever reads. A body that stops coming for
`IDLE_S`, or takes longer than `WHOLE_S`, ends in 408.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.api.exchange import Exchange, exchange_of, header
from penstock.errors import BodyTooLarge, InvalidRequest

IDLE_S = 20.0
WHOLE_S = 300.0
DRAIN_S = 2.0
FORM_BYTES = 64 * 1024  # of a form beside its file


class BodyTimeout(InvalidRequest):
    status = 408


class BodyLimit:
    """The layer: 413 by Content-Length before reading, or while counting what arrives.

    `uploads`: paths whose bodies may have `max_file_bytes`, and a little for the form around a file.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, uploads: Collection[str] = (), max_file_bytes: int = 0
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._uploads = uploads
        self._max_file_bytes = max_file_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        most, setting = self._max_bytes, "max_body_bytes"
        if scope["path"] in self._uploads:
            most, setting = self._max_file_bytes + FORM_BYTES, "max_file_bytes"
        declared = header(scope, b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > most:
            raise _too_large(f"{int(declared)} bytes", most, setting)
        exchange = exchange_of(scope)
        taken = 0
        deadline = asyncio.get_running_loop().time() + WHOLE_S

        async def limited() -> Message:
            nonlocal taken
            if exchange.body_done:  # what comes now is the disconnect, whenever that is
                return await receive()
            message = await _next_message(receive, deadline, exchange)
            taken += len(message.get("body", b""))
            if taken > most:
                raise _too_large(f"more than {most} bytes", most, setting)
            return message

        await self._app(scope, limited, send)


def _too_large(size: str, most: int, setting: str) -> BodyTooLarge:
    return BodyTooLarge(
        f"body: {size}; the limit of this server is {most} ({setting})", code="body_too_large"
    )


async def _next_message(receive: Receive, deadline: float, exchange: Exchange) -> Message:
    now = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(min(now + IDLE_S, deadline)):
            message = await receive()
    except TimeoutError:
        raise BodyTimeout(
            f"body: nothing came for {IDLE_S:g} s, or the whole took over {WHOLE_S:g} s"
        ) from None
    if message["type"] == "http.disconnect" or not message.get("more_body", False):
        exchange.body_done = True
    return message


async def read_body(receive: Receive) -> bytes | None:
    """The whole body, or None if the client left before its end."""
    message = await receive()
    if message["type"] == "http.disconnect":
        return None
    if not message.get("more_body", False):
        return bytes(message.get("body", b""))
    chunks = bytearray(message.get("body", b""))
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks += message.get("body", b"")
    return bytes(chunks)


async def drain(scope: Scope, receive: Receive) -> None:
    """Throw away what still comes of a refused body, for DRAIN_S at most.

    A client that waits for "100 Continue" sends nothing until told to, so it isn't told.
    """
    if (header(scope, b"expect") or b"").lower() == b"100-continue":
        return
    try:
        async with asyncio.timeout(DRAIN_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
