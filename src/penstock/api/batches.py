"""Routes of batches, OpenAI's and Anthropic's: one service underneath."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from penstock.api.anthropic import limit_of as anthropic_limit_of
from penstock.api.exchange import header
from penstock.api.responses import json_body, json_response, limit_of, tenant_of
from penstock.errors import InvalidRequest
from penstock.gateway.batches.service import BatchService
from penstock.store.records import Cut, NewLine
from penstock.wire import anthropic_batches, anthropic_messages, openai_batches
from penstock.wire.openai_common import decode_request

MAX_LIMIT = 100

_new = msgspec.json.Decoder(openai_batches.NewBatch)
_new_messages = msgspec.json.Decoder(anthropic_batches.NewMessageBatch)
_CHOICES = {"completion_window": "24h", "anchor": "created_at"}


class BatchRoutes:
    """OpenAI's: `/v1/batches`."""

    def __init__(self, service: BatchService) -> None:
        self._service = service

    async def create(self, request: Request) -> Response:
        new, _ = decode_request(await json_body(request), _new, frozenset(), _CHOICES)
        return _shown(await self._service.create_from_file(tenant_of(request), new))

    async def list(self, request: Request) -> Response:
        cut = Cut(request.query_params.get("after"), limit_of(request, 20, MAX_LIMIT))
        found, has_more = await self._service.page(tenant_of(request), openai_batches.API, cut)
        bodies = [openai_batches.batch_body(batch) for batch in found]
        first, last = (bodies[0].id, bodies[-1].id) if bodies else (None, None)
        return json_response(openai_batches.BatchList(bodies, first, last, has_more))

    async def get(self, request: Request) -> Response:
        return _shown(await self._service.get(tenant_of(request), openai_batches.API, _name(request)))

    async def cancel(self, request: Request) -> Response:
        return _shown(await self._service.cancel(tenant_of(request), openai_batches.API, _name(request)))


class MessageBatchRoutes:
    """Anthropic's: `/v1/messages/batches`."""

    def __init__(self, service: BatchService) -> None:
        self._service = service

    async def create(self, request: Request) -> Response:
        new, _ = decode_request(await json_body(request), _new_messages, frozenset())
        seen = set[str]()
        for i, one in enumerate(new.requests):
            if one.custom_id in seen:
                raise InvalidRequest(
                    f"requests.{i}.custom_id: {one.custom_id!r} is given twice; results are told apart by it"
                )
            seen.add(one.custom_id)
        lines = [NewLine(one.custom_id, bytes(one.params).decode()) for one in new.requests]
        model = anthropic_batches.params_model(new.requests[0].params)
        made = await self._service.create(tenant_of(request), anthropic_messages.PATH, model, lines)
        return json_response(anthropic_batches.batch_body(made, _origin(request)))

    async def list(self, request: Request) -> Response:
        query = request.query_params
        before = query.get("before_id")
        after = query.get("after_id")
        if before is not None and after is not None:
            raise InvalidRequest("before_id, after_id: a page begins at one of them", param="before_id")
        cut = Cut(before or after, anthropic_limit_of(query.get("limit")), before is None)
        found, has_more = await self._service.page(tenant_of(request), anthropic_batches.API, cut)
        if before is not None:
            found.reverse()
        bodies = [anthropic_batches.batch_body(batch, _origin(request)) for batch in found]
        first, last = (bodies[0].id, bodies[-1].id) if bodies else (None, None)
        return json_response(anthropic_batches.MessageBatchList(bodies, has_more, first, last))

    async def get(self, request: Request) -> Response:
        found = await self._service.get(tenant_of(request), anthropic_batches.API, _name(request))
        return json_response(anthropic_batches.batch_body(found, _origin(request)))

    async def cancel(self, request: Request) -> Response:
        found = await self._service.cancel(tenant_of(request), anthropic_batches.API, _name(request))
        return json_response(anthropic_batches.batch_body(found, _origin(request)))

    async def delete(self, request: Request) -> Response:
        await self._service.delete(tenant_of(request), anthropic_batches.API, _name(request))
        return json_response(anthropic_batches.DeletedMessageBatch(_name(request)))

    async def results(self, request: Request) -> Response:
        found = await self._service.get(tenant_of(request), anthropic_batches.API, _name(request))
        if found.is_open:
            raise InvalidRequest(f"batch_id: {found.id} still runs; its results are there when it has ended")
        return StreamingResponse(self._service.results(found.id), media_type="application/x-jsonl")


def _shown(batch: Any) -> Response:
    return json_response(openai_batches.batch_body(batch))


def _name(request: Request) -> str:
    name: str = request.path_params["batch_id"]
    return name


def _origin(request: Request) -> str:
    host = (header(request.scope, b"host") or b"").decode("latin-1")
    return f"{request.scope.get('scheme', 'http')}://{host}"
