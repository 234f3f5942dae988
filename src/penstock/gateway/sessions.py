"""Sessions: calls that go on from stored turns, and become turns themselves.

Before a call is answered its stored items are put in front of its own; when its answer is complete, before
the last event is passed on, both are stored. So whoever sees the end of an answer can go on from it. An
answer that failed, or whose reader left, is not stored. Two calls that go on from one response make two
threads; calls of one conversation are appended in the order in which they end.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import msgspec

from penstock.call import Call, Done, Event, Session
from penstock.errors import InvalidRequest, NotFound
from penstock.gateway.service import ModelService
from penstock.store.opening import LazyTurns
from penstock.store.records import NewResponse
from penstock.wire.fold import Fold
from penstock.wire.openai_responses import with_turns
from penstock.wire.openai_responses_items import item_type, stored

Json = dict[str, Any]


class Sessions:
    """The stage before a ModelService for calls that have a `session`."""

    def __init__(self, service: ModelService, turns: LazyTurns) -> None:
        self._service = service
        self._turns = turns

    async def stream(
        self, call: Call, request_id: str, body: Callable[[Fold], bytes]
    ) -> AsyncIterator[Event]:
        """As ModelService.stream. `body` makes the response object that is stored of the whole answer."""
        session = call.session
        if session is None:
            raise ValueError("a call without a session needs no stage for it")
        call, items = await self.resolve(call)
        fold = Fold()
        async with aclosing(self._service.stream(call, request_id)) as events:  # type: ignore[type-var]
            async for event in events:
                if session.store:
                    fold.add(event)
                    if isinstance(event, Done):
                        await self.keep(call.tenant, session, items, body(fold))
                yield event

    async def resolve(self, call: Call) -> tuple[Call, list[Json]]:
        """(the call with the messages of all its turns, its own items).

        Raises InvalidRequest or NotFound for turns and items that are not stored here, and for items that
        can't be read.
        """
        session = call.session
        if session is None:
            return call, []
        own = await self._own_items(call.tenant, session)
        before = await self._before(call.tenant, session)
        if before or own != list(session.items) or not call.messages:
            call = with_turns(call, [*before, *own])
        return call, own

    async def keep(self, tenant: str, session: Session, items: list[Json], body: bytes) -> None:
        """Store a response object with the items that it answers."""
        response = msgspec.json.decode(body)
        key = uuid.uuid4().hex
        new = NewResponse(
            response["id"],
            response["created_at"],
            body.decode(),
            [stored(item, f"{key}_{i}") for i, item in enumerate(items)],
            response["output"],
            session.previous_response_id,
            session.conversation,
        )
        turns = await self._turns()
        if not await turns.add_response(tenant, new):
            raise InvalidRequest("previous_response_id, conversation: deleted while this answer was made")

    async def _before(self, tenant: str, session: Session) -> list[Json]:
        turns = None
        if session.previous_response_id is not None:
            turns = await (await self._turns()).history(tenant, session.previous_response_id)
            if turns is None:
                raise InvalidRequest(
                    f"previous_response_id: {session.previous_response_id!r} is not stored here",
                    param="previous_response_id",
                    code="previous_response_not_found",
                )
        elif session.conversation is not None:
            turns = await (await self._turns()).all_items(tenant, session.conversation)
            if turns is None:
                raise NotFound(
                    f"conversation: {session.conversation!r} is not stored here", param="conversation"
                )
        return turns or []

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
