"""`POST /v1/embeddings`, `/v1/rerank` and `/v1/score` over an EmbeddingService.

A client that leaves takes what it asked for with it: its texts that are in no batch yet are dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from penstock.api.body import read_body
from penstock.api.errors import ClientGone, send_bytes
from penstock.api.exchange import exchange_of
from penstock.api.media import require_json
from penstock.call import Usage
from penstock.embedding import Embeddings
from penstock.errors import NotFound
from penstock.gateway.service import EmbeddingService
from penstock.observe.metrics import Metrics
from penstock.wire import openai_embeddings, rerank, score

T = TypeVar("T")

INLINE_FLOATS = 8192  # written in about a millisecond; more are written in a thread


class EmbeddingRoutes:
    """ASGI endpoints `embed`, `rerank` and `score`; without a service no model is found."""

    def __init__(self, service: EmbeddingService | None, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics

    async def embed(self, scope: Scope, receive: Receive, send: Send) -> None:
        call, base64_wanted = openai_embeddings.read_request(await json_body(scope, receive))
        service = self._of(scope, call.model)
        answer = await while_connected(receive, self._metrics, service.embed(call))
        note_usage(scope, answer.prompt_tokens)
        arguments = (answer, call.model or "", base64_wanted)
        await send_bytes(send, 200, await written(answer, openai_embeddings.write_body, *arguments))

    async def rerank(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = rerank.read_request(await json_body(scope, receive))
        service = self._of(scope, call.score.model)
        answer = await while_connected(receive, self._metrics, service.score(call.score))
        note_usage(scope, answer.prompt_tokens)
        body = rerank.write_body(call, answer, call.score.model or "", exchange_of(scope).call_id)
        await send_bytes(send, 200, body)

    async def score(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = score.read_request(await json_body(scope, receive))
        service = self._of(scope, call.model)
        answer = await while_connected(receive, self._metrics, service.score(call))
        note_usage(scope, answer.prompt_tokens)
        body = score.write_body(answer, call.model or "", exchange_of(scope).call_id, int(time.time()))
        await send_bytes(send, 200, body)

    def _of(self, scope: Scope, model: str | None) -> EmbeddingService:
        exchange_of(scope).model = model or ""
        if self._service is None:
            raise NotFound(
                f"model: {model!r}: this server has no embedding models; name some with --embedding-models",
                param="model",
                code="model_not_found",
            )
        return self._service


async def written(answer: Embeddings, write: Callable[..., bytes], *arguments: Any) -> bytes:
    """`write(*arguments)`, in a thread where many floats take long."""
    if answer.vectors.size <= INLINE_FLOATS:
        return write(*arguments)
    return await asyncio.to_thread(write, *arguments)


async def while_connected(receive: Receive, metrics: Metrics, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves (ClientGone)."""
    working = asyncio.create_task(work, name="penstock-embed")
    leaving = asyncio.create_task(_departure(receive), name="penstock-watch")
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            metrics.cancelled("disconnect")
            raise ClientGone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def json_body(scope: Scope, receive: Receive) -> bytes:
    require_json(scope)
    body = await read_body(receive)
    if body is None:
        raise ClientGone
    return body


def note_usage(scope: Scope, prompt_tokens: int) -> None:
    """For the access log."""
    exchange_of(scope).usage = Usage(prompt_tokens=prompt_tokens)
