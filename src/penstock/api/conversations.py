"""Routes of conversations: lists of items with metadata, which responses are appended to."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.responses import cut_of, json_body, json_response, page_response, tenant_of
from penstock.errors import NotFound
from penstock.gateway.sessions import Sessions
from penstock.store.opening import LazyTurns
from penstock.store.records import Conversation, Page
from penstock.wire.openai_common import decode_request
from penstock.wire.openai_responses_items import read_items, stored

MAX_ITEMS = 20  # of one request, as OpenAI has it

R = TypeVar("R", bound=Struct)
Json = dict[str, Any]
Items = Annotated[list[Json], Meta(max_length=MAX_ITEMS)]
Metadata = dict[str, str]


class NewConversation(Struct, omit_defaults=True):
    items: Items | None = None
    metadata: Metadata | None = None


class ConversationUpdate(Struct):
    metadata: Metadata


class NewItems(Struct):
    items: Items


class ConversationBody(Struct):
    id: str
    created_at: int
    metadata: Metadata
    object: Literal["conversation"] = "conversation"


class DeletedConversation(Struct):
    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: bool = True


_new = msgspec.json.Decoder(NewConversation)
_update = msgspec.json.Decoder(ConversationUpdate)
_items = msgspec.json.Decoder(NewItems)


class ConversationRoutes:
    def __init__(self, turns: LazyTurns, sessions: Sessions) -> None:
        self._turns = turns
        self._sessions = sessions

    async def create(self, request: Request) -> Response:
        given = await _read(request, _new)
        made = await (await self._turns()).add_conversation(
            tenant_of(request), int(time.time()), given.metadata or {}, _stored(given.items or [])
        )
        return _shown(made)

    async def get(self, request: Request) -> Response:
        tenant, name = tenant_of(request), _name(request)
        return _shown(await (await self._turns()).conversation(tenant, name) or _unknown(name))

    async def update(self, request: Request) -> Response:
        tenant, name = tenant_of(request), _name(request)
        given = await _read(request, _update)
        updated = await (await self._turns()).update_conversation(tenant, name, given.metadata)
        return _shown(updated or _unknown(name))

    async def delete(self, request: Request) -> Response:
        tenant, name = tenant_of(request), _name(request)
        if not await (await self._turns()).delete_conversation(tenant, name):
            _unknown(name)
        self._sessions.forget(tenant, name)
        return json_response(DeletedConversation(name))

    async def add_items(self, request: Request) -> Response:
        tenant, name = tenant_of(request), _name(request)
        items = _stored((await _read(request, _items)).items)
        if not await (await self._turns()).add_items(tenant, name, items):
            _unknown(name)
        return page_response(Page(items, False))

    async def list_items(self, request: Request) -> Response:
        tenant, name = tenant_of(request), _name(request)
        page = await (await self._turns()).items(tenant, name, cut_of(request))
        return page_response(page or _unknown(name))

    async def get_item(self, request: Request) -> Response:
        tenant, name, item = tenant_of(request), _name(request), request.path_params["item_id"]
        found = await (await self._turns()).item(tenant, name, item)
        return json_response(found or _unknown(name, item))

    async def delete_item(self, request: Request) -> Response:
        tenant, name, item = tenant_of(request), _name(request), request.path_params["item_id"]
        turns = await self._turns()
        if not await turns.delete_item(tenant, name, item):
            _unknown(name, item)
        return _shown(await turns.conversation(tenant, name) or _unknown(name))


async def _read(request: Request, decoder: msgspec.json.Decoder[R]) -> R:
    given, _ = decode_request(await json_body(request), decoder, frozenset())
    return given


def _stored(items: list[Json]) -> list[Json]:
    """Items as they are kept. Raises InvalidRequest for one that no call could go on from."""
    read_items(items, "items")
    key = uuid.uuid4().hex
    return [stored(item, f"{key}_{i}") for i, item in enumerate(items)]


def _shown(conversation: Conversation) -> Response:
    return json_response(ConversationBody(conversation.id, conversation.created_at, conversation.metadata))


def _name(request: Request) -> str:
    name: str = request.path_params["conversation_id"]
    return name


def _unknown(name: str, item: str | None = None) -> Any:
    """Raises NotFound."""
    if item is not None:
        raise NotFound(
            f"item_id: {item[:100]!r} is not an item of conversation {name[:100]!r}", param="item_id"
        )
    raise NotFound(f"conversation_id: {name[:100]!r} is not stored here", param="conversation_id")
