"""Sessions: calls that go on from stored turns, and become turns themselves.

Before a call is answered its stored items are put in front of its own; when its answer is complete, before
the last event is passed on, both are stored. So whoever sees the end of an answer can go on from it. An
answer that failed, or whose reader left, is not stored. Two calls that go on from one response make two
threads; calls of one conversation are appended in the order in which they end.

The turns that were used last are kept in memory (`History`): going on from one of them reads a single row, to
know that it is still there, so a turn costs the same whether it is the second or the thousandth.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import Struct

from penstock.call import Call, Done, Event, Session
from penstock.errors import InvalidRequest, NotFound
from penstock.gateway.history import History
from penstock.gateway.service import ModelService
from penstock.recent import Recent
from penstock.store.opening import LazyTurns
from penstock.store.records import NewResponse
from penstock.wire.fold import Fold
from penstock.wire.openai_responses import with_messages
from penstock.wire.openai_responses_items import item_type, stored
from penstock.wire.openai_responses_stream import ID_PREFIX

Json = dict[str, Any]


class Resolved(Struct, frozen=True):
    """A call with the messages of all its turns, its own items, and what came before them. `version`: of its
    conversation, when that was read."""

    call: Call
    items: list[Json]
    before: History = History()
    version: int = 0


class Sessions:
    """The stage before a ModelService for calls that have a `session`.

    max_bytes: of turns that are kept in memory. pin_s: seconds for which a stored turn's prompt is worth
    keeping in the prefix cache.
    """

    def __init__(self, service: ModelService, turns: LazyTurns, max_bytes: int = 0, pin_s: int = 0) -> None:
        self._service = service
        self._turns = turns
        self._pin_s = pin_s
        self._responses: Recent[tuple[str, str], History] = Recent(max_bytes)
        self._conversations: Recent[tuple[str, str], tuple[int, History]] = Recent(max_bytes)

    async def stream(
        self, call: Call, request_id: str, body: Callable[[Fold], bytes]
    ) -> AsyncIterator[Event]:
        """As ModelService.stream. `body` makes the response object that is stored of the whole answer."""
        session = call.session
        if session is None:
            raise ValueError("a call without a session needs no stage for it")
        resolved = await self.resolve(call)
        named = self._named(resolved, session, request_id)
        fold = Fold()
        async with aclosing(self._service.stream(named, request_id)) as events:  # type: ignore[type-var]
            async for event in events:
                if session.store:
                    fold.add(event)
                    if isinstance(event, Done):
                        await self.keep(resolved, session, body(fold))
                yield event

    def _named(self, resolved: Resolved, session: Session, request_id: str) -> Call:
        """The call with the name of what it becomes, pinned if it is stored."""
        session = msgspec.structs.replace(
            session, response_id=ID_PREFIX + request_id, last_tokens=resolved.before.prompt_tokens
        )
        call = msgspec.structs.replace(resolved.call, session=session)
        if not session.store or call.cache.ttl_s is not None or not self._pin_s:
            return call
        return msgspec.structs.replace(call, cache=msgspec.structs.replace(call.cache, ttl_s=self._pin_s))

    async def resolve(self, call: Call) -> Resolved:
        """Raises InvalidRequest or NotFound for turns and items that are not stored here, for items that
        can't be read, and for outputs that do not fit the calls of tools before them."""
        session = call.session
        if session is None:
            return Resolved(call, [])
        own = await self._own_items(call.tenant, session)
        version, before = 0, History()
        if session.previous_response_id is not None:
            before = await self._of_response(call.tenant, session.previous_response_id)
        elif session.conversation is not None:
            version, before = await self._of_conversation(call.tenant, session.conversation)
        if before.messages or before.tail:
            before.check_outputs(own)
        if before.messages or before.tail or own != list(session.items) or not call.messages:
            call = with_messages(call, before.read(own))
        return Resolved(call, own, before, version)

    async def keep(self, resolved: Resolved, session: Session, body: bytes) -> None:
        """Store a response object with the items that it answers."""
        tenant = resolved.call.tenant
        response = msgspec.json.decode(body)
        key = uuid.uuid4().hex
        new = NewResponse(
            response["id"],
            response["created_at"],
            body.decode(),
            [stored(item, f"{key}_{i}") for i, item in enumerate(resolved.items)],
            response["output"],
            session.previous_response_id,
            session.conversation,
        )
        turns = await self._turns()
        kept = await turns.add_response(tenant, new)
        if kept is None:
            raise InvalidRequest("previous_response_id, conversation: deleted while this answer was made")
        if session.conversation is not None and kept.start != resolved.version:
            return  # another answer came first: what is before this one is not what was read
        after = resolved.before.extended([*new.input, *new.output], _prompt_tokens(response))
        self._responses.put((tenant, new.id), after, after.num_bytes)
        if session.conversation is not None:
            place = (tenant, session.conversation)
            self._conversations.put(place, (kept.end, after), after.num_bytes)

    def forget(self, tenant: str, turn: str) -> None:
        """A response, or a conversation, was deleted: nothing of it stays in memory."""
        self._responses.forget((tenant, turn))
        self._conversations.forget((tenant, turn))
        self._service.unpin(turn)

    async def _of_response(self, tenant: str, name: str) -> History:
        turns = await self._turns()
        known = self._responses.get((tenant, name))
        if known is not None and await turns.has_response(tenant, name):
            return known
        items, body = await turns.history(tenant, name), await turns.response(tenant, name)
        if items is None or body is None:
            raise InvalidRequest(
                f"previous_response_id: {name!r} is not stored here",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        found = History().extended(items, _prompt_tokens(msgspec.json.decode(body)))
        self._responses.put((tenant, name), found, found.num_bytes)
        return found

    async def _of_conversation(self, tenant: str, name: str) -> tuple[int, History]:
        """(version, history)."""
        turns = await self._turns()
        known = self._conversations.get((tenant, name))
        if known is not None and await turns.version(tenant, name) == known[0]:
            return known
        read = await turns.all_items(tenant, name)
        if read is None:
            raise NotFound(f"conversation: {name!r} is not stored here", param="conversation")
        version, items = read
        found = History().extended(items)
        self._conversations.put((tenant, name), (version, found), found.num_bytes)
        return version, found

    async def _own_items(self, tenant: str, session: Session) -> list[Json]:
        """The call's items with those that it names in place of their references."""
        names = [str(item.get("id")) for item in session.items if item_type(item) == "item_reference"]
        if not names:
            return list(session.items)
        known = await (await self._turns()).find_items(tenant, names)
        for i, item in enumerate(session.items):
            if item_type(item) == "item_reference" and item.get("id") not in known:
                raise InvalidRequest(
                    f"input[{i}].id: no item {item.get('id')!r} is stored here", param=f"input[{i}].id"
                )
        return [known[item["id"]] if item_type(item) == "item_reference" else item for item in session.items]


def _prompt_tokens(response: Json) -> int:
    """Of a response object that is stored: cancelled ones have no usage."""
    return int((response.get("usage") or {}).get("input_tokens", 0))
