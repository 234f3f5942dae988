"""Turns: stored responses and conversations, each belonging to one tenant.

What another tenant has does not exist: lookups return None for it. Bodies are JSON objects as their API shows
them; nothing here looks inside but at their ids.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from penstock.store import threads as threads_of
from penstock.store.database import Database
from penstock.store.records import Conversation, Cut, Json, NewResponse, Page, Range
from penstock.store.tables import conversations, items, responses, threads


class Turns:
    """Over one database; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def close(self) -> None:
        await self._database.close()

    # ------------------------------------------------------------------ responses

    async def add_response(self, tenant: str, new: NewResponse) -> Range | None:
        """Append its items and keep it. None: what came before is gone, and nothing was kept."""
        return await self._database.run(lambda connection: _add_response(connection, tenant, new))

    async def response(self, tenant: str, name: str) -> str | None:
        """Its body."""

        def work(connection: Connection) -> str | None:
            row = _response(connection, tenant, name)
            return None if row is None else row.body

        return await self._database.run(work)

    async def has_response(self, tenant: str, name: str) -> bool:
        query = select(responses.c.id).where(responses.c.id == name, responses.c.tenant == tenant)
        return await self._database.run(lambda connection: connection.execute(query).scalar() is not None)

    async def input_items(self, tenant: str, name: str, cut: Cut) -> Page | None:
        """None: no such response, or no item `after`."""

        def work(connection: Connection) -> Page | None:
            row = _response(connection, tenant, name)
            return row and _page(connection, row.thread, row.input_start, row.output_start, cut)

        return await self._database.run(work)

    async def history(self, tenant: str, name: str) -> list[Json] | None:
        """All items up to the end of a response, its own included."""

        def work(connection: Connection) -> list[Json] | None:
            row = _response(connection, tenant, name)
            return None if row is None else threads_of.read(connection, row.thread, row.end)

        return await self._database.run(work)

    async def delete_response(self, tenant: str, name: str) -> bool:
        """Its items go too, unless another response or a conversation holds them."""
        return await self._database.run(lambda connection: _delete_response(connection, tenant, name))

    async def find_items(self, tenant: str, names: Sequence[str]) -> dict[str, Json]:
        """Items by their ids; those that are not there are left out."""

        def work(connection: Connection) -> dict[str, Json]:
            query = select(items.c.id, items.c.body).join(threads, threads.c.id == items.c.thread)
            rows = connection.execute(query.where(threads.c.tenant == tenant, items.c.id.in_(names)))
            return {row.id: json.loads(row.body) for row in rows}

        return await self._database.run(work)

    # ------------------------------------------------------------------ conversations

    async def add_conversation(
        self, tenant: str, created_at: int, metadata: dict[str, str], bodies: Sequence[Json]
    ) -> Conversation:
        def work(connection: Connection) -> Conversation:
            name = threads_of.new_thread(connection, tenant, conversation=f"conv_{uuid.uuid4().hex}")
            threads_of.append(connection, name, bodies)
            row = {"id": name, "tenant": tenant, "metadata": json.dumps(metadata), "created_at": created_at}
            connection.execute(insert(conversations), row)
            return Conversation(name, created_at, metadata)

        return await self._database.run(work)

    async def conversation(self, tenant: str, name: str) -> Conversation | None:
        return await self._database.run(lambda connection: _conversation(connection, tenant, name))

    async def update_conversation(
        self, tenant: str, name: str, metadata: dict[str, str]
    ) -> Conversation | None:
        def work(connection: Connection) -> Conversation | None:
            found = _conversation(connection, tenant, name)
            if found is None:
                return None
            rows = update(conversations).where(conversations.c.id == name)
            connection.execute(rows.values(metadata=json.dumps(metadata)))
            return Conversation(name, found.created_at, metadata)

        return await self._database.run(work)

    async def delete_conversation(self, tenant: str, name: str) -> bool:
        def work(connection: Connection) -> bool:
            if _conversation(connection, tenant, name) is None:
                return False
            connection.execute(delete(conversations).where(conversations.c.id == name))
            threads_of.sweep(connection, name)
            return True

        return await self._database.run(work)

    async def add_items(self, tenant: str, name: str, bodies: Sequence[Json]) -> bool:
        """False: no such conversation."""

        def work(connection: Connection) -> bool:
            if _conversation(connection, tenant, name) is None:
                return False
            threads_of.append(connection, name, bodies)
            return True

        return await self._database.run(work)

    async def items(self, tenant: str, name: str, cut: Cut) -> Page | None:
        """None: no such conversation, or no item `after`."""

        def work(connection: Connection) -> Page | None:
            if _conversation(connection, tenant, name) is None:
                return None
            return _page(connection, name, 0, None, cut)

        return await self._database.run(work)

    async def version(self, tenant: str, name: str) -> int | None:
        """Of a conversation's items: a number that grows with each change. None: no such conversation."""
        query = select(threads.c.length).join(conversations, conversations.c.id == threads.c.id)
        query = query.where(conversations.c.id == name, conversations.c.tenant == tenant)
        return await self._database.run(lambda connection: connection.execute(query).scalar())

    async def all_items(self, tenant: str, name: str) -> tuple[int, list[Json]] | None:
        """(version, items). None: no such conversation."""

        def work(connection: Connection) -> tuple[int, list[Json]] | None:
            if _conversation(connection, tenant, name) is None:
                return None
            length = select(threads.c.length).where(threads.c.id == name)
            return connection.execute(length).scalar_one(), threads_of.read(connection, name)

        return await self._database.run(work)

    async def item(self, tenant: str, name: str, item: str) -> Json | None:
        """None: no such conversation or item."""

        def work(connection: Connection) -> Json | None:
            if _conversation(connection, tenant, name) is None:
                return None
            query = select(items.c.body).where(items.c.thread == name, items.c.id == item)
            body = connection.execute(query.order_by(items.c.position.desc())).scalars().first()
            return None if body is None else json.loads(body)

        return await self._database.run(work)

    async def delete_item(self, tenant: str, name: str, item: str) -> bool:
        """False: no such conversation or item."""

        def work(connection: Connection) -> bool:
            if _conversation(connection, tenant, name) is None:
                return False
            position = threads_of.position_of(connection, name, item)
            if position is None:
                return False
            connection.execute(delete(items).where(items.c.thread == name, items.c.position == position))
            longer = update(threads).where(threads.c.id == name).values(length=threads.c.length + 1)
            connection.execute(longer)  # its positions are taken once; the number tells of the change
            return True

        return await self._database.run(work)


def _response(connection: Connection, tenant: str, name: str) -> Any:
    query = select(responses).where(responses.c.id == name, responses.c.tenant == tenant)
    return connection.execute(query).one_or_none()


def _conversation(connection: Connection, tenant: str, name: str) -> Conversation | None:
    query = select(conversations).where(conversations.c.id == name, conversations.c.tenant == tenant)
    row = connection.execute(query).one_or_none()
    return None if row is None else Conversation(row.id, row.created_at, json.loads(row.metadata))


def _page(connection: Connection, thread: str, start: int, end: int | None, cut: Cut) -> Page | None:
    found = threads_of.page(
        connection, thread, start, end, after=cut.after, limit=cut.limit, descending=cut.descending
    )
    return None if found is None else Page(*found)


def _add_response(connection: Connection, tenant: str, new: NewResponse) -> Range | None:
    if new.previous is not None:
        row = _response(connection, tenant, new.previous)
        if row is None:
            return None
        thread = threads_of.thread_to_go_on(connection, row.thread, row.end)
    elif new.conversation is not None:
        if _conversation(connection, tenant, new.conversation) is None:
            return None
        thread = new.conversation
    else:
        thread = threads_of.new_thread(connection, tenant)
    start = threads_of.append(connection, thread, [*new.input, *new.output])
    middle = start + len(new.input)
    row = {"id": new.id, "tenant": tenant, "thread": thread, "input_start": start, "output_start": middle}
    row |= {"end": middle + len(new.output), "created_at": new.created_at, "body": new.body}
    connection.execute(insert(responses), row)
    return Range(start, middle + len(new.output))


def _delete_response(connection: Connection, tenant: str, name: str) -> bool:
    row = _response(connection, tenant, name)
    if row is None:
        return False
    connection.execute(delete(responses).where(responses.c.id == name))
    threads_of.sweep(connection, row.thread)
    return True
