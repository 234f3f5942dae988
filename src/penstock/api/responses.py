"""Routes about stored responses: get, delete, cancel, their input, and counting tokens before asking.

`POST /v1/responses` itself is a `GenerateRoute`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.body import read_body
from penstock.api.errors import ClientGone
from penstock.api.exchange import exchange_of
from penstock.api.generate import GenerateRoute
from penstock.api.media import require_json
from penstock.api.tokens import find_model
from penstock.errors import InvalidRequest, NotFound, PenstockError
from penstock.gateway.service import ModelService
from penstock.gateway.sessions import Sessions
from penstock.store.opening import LazyTurns
from penstock.store.records import Cut, Page
from penstock.wire import openai_responses
from penstock.wire.openai_common import decode_request, encode
from penstock.wire.openai_responses_stream import ID_PREFIX

MAX_LIMIT = 100


class ItemList(Struct):
    """A page of items, as both APIs list them."""

    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class DeletedResponse(Struct):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputTokens(Struct):
    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


class _Named(Struct):
    model: str | None = None


_named_decoder = msgspec.json.Decoder(_Named)


class Cancelled(PenstockError):
    """What ends the answer of a call that was cancelled from elsewhere."""

    kind = "invalid_request_error"
    status = 409


class ResponseRoutes:
    """Endpoints over the stored responses and those that `generate` is answering."""

    def __init__(
        self, service: ModelService, sessions: Sessions, turns: LazyTurns, generate: GenerateRoute
    ) -> None:
        self._service = service
        self._sessions = sessions
        self._turns = turns
        self._generate = generate

    async def get(self, request: Request) -> Response:
        if request.query_params.get("stream") == "true":
            raise InvalidRequest(
                "stream: a stored response is not streamed again; leave it out", param="stream"
            )
        tenant, name = tenant_of(request), request.path_params["response_id"]
        body = await (await self._turns()).response(tenant, name)
        if body is None:
            raise unknown_response(name)
        return Response(body, media_type="application/json")

    async def delete(self, request: Request) -> Response:
        tenant, name = tenant_of(request), request.path_params["response_id"]
        if not await (await self._turns()).delete_response(tenant, name):
            raise unknown_response(name)
        self._sessions.forget(tenant, name)
        return json_response(DeletedResponse(name))

    async def input_items(self, request: Request) -> Response:
        tenant, name = tenant_of(request), request.path_params["response_id"]
        page = await (await self._turns()).input_items(tenant, name, cut_of(request))
        if page is None:
            raise unknown_response(name)
        return page_response(page)

    async def cancel(self, request: Request) -> Response:
        """End an answer that is being made; what there is of it is stored as cancelled."""
        tenant, name = tenant_of(request), request.path_params["response_id"]
        running = self._generate.running.get(name.removeprefix(ID_PREFIX))
        if running is None or running.call.tenant != tenant:
            if await (await self._turns()).response(tenant, name) is None:
                raise unknown_response(name)
            raise InvalidRequest(f"response_id: {name} is complete; only running answers can be cancelled")
        assert isinstance(running.encoder, openai_responses.Encoder)
        body = running.encoder.cancelled()
        running.backlog.fail(Cancelled("the answer was cancelled", code="response_cancelled"))
        resolved = await self._sessions.resolve(running.call)
        session = resolved.call.session
        if session is not None and session.store:
            await self._sessions.keep(resolved, session, body)
        return Response(body, media_type="application/json")

    async def input_tokens(self, request: Request) -> Response:
        """Tokens of the prompt that the same body would make at /v1/responses; `model` may be left out."""
        named, fields = decode_request(await json_body(request), _named_decoder, frozenset())
        fields["model"] = find_model(self._service, named.model).id
        call = openai_responses.read_request(msgspec.json.encode(fields), store=False)
        if exchange_of(request.scope).identity.tenant:
            call = msgspec.structs.replace(call, tenant=tenant_of(request))
        call = (await self._sessions.resolve(call)).call
        tokens = await self._service.tokenize_chat(call.model, call.messages, call.tools, True)
        return json_response(InputTokens(len(tokens)))


def tenant_of(request: Request) -> str:
    tenant: str = exchange_of(request.scope).identity.tenant
    return tenant


def cut_of(request: Request) -> Cut:
    """`after`, `limit` and `order` of a list request. Raises InvalidRequest."""
    return Cut(request.query_params.get("after"), limit_of(request, 20, MAX_LIMIT), is_descending(request))


def limit_of(request: Request, default: int, most: int) -> int:
    """`limit` of a list request. Raises InvalidRequest."""
    given = request.query_params.get("limit", str(default))
    if not (given.isascii() and given.isdigit() and len(given) <= 9 and 1 <= int(given) <= most):
        raise InvalidRequest(f"limit: {given[:20]!r} is not a number from 1 to {most}", param="limit")
    return int(given)


def is_descending(request: Request) -> bool:
    """`order` of a list request. Raises InvalidRequest."""
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order: {order[:20]!r}; use asc or desc", param="order")
    return order == "desc"


def page_response(page: Page) -> Response:
    ids = [item["id"] for item in page.items]
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return json_response(ItemList(page.items, first, last, page.has_more))


def json_response(value: Any) -> Response:
    return Response(encode(value), media_type="application/json")


async def json_body(request: Request) -> bytes:
    require_json(request.scope)
    body = await read_body(request.receive)
    if body is None:
        raise ClientGone
    return body


def unknown_response(name: str) -> NotFound:
    return NotFound(f"response_id: {name[:100]!r} is not stored here", param="response_id")
