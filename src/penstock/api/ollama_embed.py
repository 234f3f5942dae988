"""Ollama's `POST /api/embed` and `POST /api/embeddings` over an EmbeddingService."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
from starlette.types import Receive, Scope, Send

from penstock.api.embeddings import json_body, note_usage, while_connected, written
from penstock.api.errors import send_bytes
from penstock.api.exchange import exchange_of
from penstock.api.ollama_calls import find_among
from penstock.embedding import EmbedCall, Embeddings
from penstock.gateway.service import EmbeddingService
from penstock.observe.metrics import Metrics
from penstock.wire import ollama_embed


class OllamaEmbed:
    """ASGI endpoints `embed` and `embed_one`."""

    def __init__(self, service: EmbeddingService, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics

    async def embed(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()

        def write(answer: Embeddings, call: EmbedCall) -> bytes:
            return ollama_embed.write_body(answer, call.model or "", time.perf_counter() - began)

        await self._answer(scope, receive, send, ollama_embed.read_request, write)

    async def embed_one(self, scope: Scope, receive: Receive, send: Send) -> None:
        def write(answer: Embeddings, call: EmbedCall) -> bytes:
            return ollama_embed.write_old_body(answer)

        await self._answer(scope, receive, send, ollama_embed.read_old_request, write)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        read: Callable[[bytes], EmbedCall],
        write: Callable[[Embeddings, EmbedCall], bytes],
    ) -> None:
        call = read(await json_body(scope, receive))
        name = call.model or ""
        exchange_of(scope).model = name
        card = find_among(self._service.models(), name)
        wanted = msgspec.structs.replace(call, model=card.id)
        answer = await while_connected(receive, self._metrics, self._service.embed(wanted))
        note_usage(scope, answer.prompt_tokens)
        await send_bytes(send, 200, await written(answer, write, answer, call))
