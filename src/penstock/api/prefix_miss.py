"""`why did this miss`: where one request's prompt leaves another's, and the field that made it.

`POST /debug/prefix-miss` compares two bodies, each of a chat completion or a response; `GET
/debug/prefix-miss/{response_id}` a stored response with the one that it goes on from.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.responses import json_body, json_response, tenant_of, unknown_response
from penstock.api.tokens import find_model
from penstock.call import Call, PrefixMiss
from penstock.errors import InvalidRequest
from penstock.gateway.service import ModelService
from penstock.gateway.sessions import Sessions
from penstock.store.opening import LazyTurns
from penstock.store.records import Cut
from penstock.wire import openai_chat, openai_responses
from penstock.wire.openai_common import decode_request

Json = dict[str, Any]
# Of a stored response, what its prompt was made of beside its items.
_PROMPT_FIELDS = ("instructions", "tools", "tool_choice", "previous_response_id")
ALL_ITEMS = 1 << 30


class PrefixMissRequest(Struct):
    """Two request bodies, the earlier one first. `model` may be left out of them."""

    before: Json
    after: Json


class PrefixMissBody(Struct):
    """`miss` is null where the later prompt begins with all the turns of the earlier one."""

    miss: PrefixMiss | None
    object: Literal["prefix_miss"] = "prefix_miss"


_decoder = msgspec.json.Decoder(PrefixMissRequest)


class PrefixMissRoutes:
    def __init__(self, service: ModelService, sessions: Sessions, turns: LazyTurns) -> None:
        self._service = service
        self._sessions = sessions
        self._turns = turns

    async def compare(self, request: Request) -> Response:
        given, _ = decode_request(await json_body(request), _decoder, frozenset({"before", "after"}))
        tenant = tenant_of(request)
        return await self._answer(
            await self._call(tenant, given.before, "before"), await self._call(tenant, given.after, "after")
        )

    async def of_response(self, request: Request) -> Response:
        tenant, name = tenant_of(request), request.path_params["response_id"]
        after = await self._stored(tenant, name)
        before = after.get("previous_response_id")
        if before is None:
            raise InvalidRequest(f"response_id: {name} goes on from no response, there is nothing to compare")
        return await self._answer(
            await self._call(tenant, await self._stored(tenant, before), "before"),
            await self._call(tenant, after, "after"),
        )

    async def _answer(self, before: Call, after: Call) -> Response:
        return json_response(PrefixMissBody(await self._service.explain_miss(before, after)))

    async def _call(self, tenant: str, body: Json, name: str) -> Call:
        body = {**body, "model": find_model(self._service, body.get("model")).id}
        try:
            if "messages" in body:
                call = openai_chat.read_request(msgspec.json.encode(body))
            else:
                call = openai_responses.read_request(msgspec.json.encode(body), store=False)
        except InvalidRequest as error:
            raise InvalidRequest(f"{name}: {error.message}", param=name) from None
        call = msgspec.structs.replace(call, tenant=tenant)
        return (await self._sessions.resolve(call)).call

    async def _stored(self, tenant: str, name: str) -> Json:
        """The body of the request that a stored response answered, as far as its prompt depends on it."""
        turns = await self._turns()
        body = await turns.response(tenant, name)
        page = await turns.input_items(tenant, name, Cut(None, ALL_ITEMS, False))
        if body is None or page is None:
            raise unknown_response(name)
        response = msgspec.json.decode(body)
        found = {field: response[field] for field in _PROMPT_FIELDS if response.get(field) is not None}
        effort = response["reasoning"].get("effort")
        return found | {"input": page.items} | ({"reasoning": {"effort": effort}} if effort else {})
