"""Threads of items inside a transaction: read with their parents, appended to, forked, swept.

Functions take the connection first; `penstock.store.turns` runs them off the event loop.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from penstock.store.tables import conversations, items, responses, threads

Json = dict[str, Any]


def new_thread(
    connection: Connection,
    tenant: str,
    parent: str | None = None,
    parent_end: int = 0,
    conversation: str | None = None,
) -> str:
    """Its id, which is the conversation's where it belongs to one."""
    name = conversation or uuid.uuid4().hex
    row = {"id": name, "tenant": tenant, "parent": parent, "parent_end": parent_end, "length": 0}
    connection.execute(insert(threads), row | {"is_conversation": conversation is not None})
    return name


def append(connection: Connection, thread: str, bodies: Sequence[Json]) -> int:
    """The position of the first one. Appends to one thread take turns."""
    start: int = connection.execute(
        select(threads.c.length).where(threads.c.id == thread).with_for_update()
    ).scalar_one()
    rows = [
        {"thread": thread, "position": start + i, "id": body["id"], "body": json.dumps(body)}
        for i, body in enumerate(bodies)
    ]
    if rows:
        connection.execute(insert(items), rows)
        connection.execute(update(threads).where(threads.c.id == thread).values(length=start + len(rows)))
    return start


def thread_to_go_on(connection: Connection, thread: str, end: int) -> str:
    """The thread itself where `end` is its end and it is nobody's conversation, else a fork of it."""
    row = connection.execute(select(threads).where(threads.c.id == thread).with_for_update()).one()
    if row.length == end and not row.is_conversation:
        return thread
    return new_thread(connection, row.tenant, thread, end)


def read(connection: Connection, thread: str, end: int | None = None) -> list[Json]:
    """Its items before position `end` (None: all), those of its parents before them."""
    ranges: list[tuple[str, int | None]] = []
    name: str | None = thread
    while name is not None:
        ranges.append((name, end))
        name, end = connection.execute(
            select(threads.c.parent, threads.c.parent_end).where(threads.c.id == name)
        ).one()
    found: list[Json] = []
    for name, end in reversed(ranges):
        query = select(items.c.body).where(items.c.thread == name)
        if end is not None:
            query = query.where(items.c.position < end)
        found += map(json.loads, connection.execute(query.order_by(items.c.position)).scalars())
    return found


def page(
    connection: Connection,
    thread: str,
    start: int,
    end: int | None,
    *,
    after: str | None,
    limit: int,
    descending: bool,
) -> tuple[list[Json], bool] | None:
    """(items of [start, end) behind the one with id `after`, whether there are more); None: no such id."""
    query = select(items.c.body).where(items.c.thread == thread, items.c.position >= start)
    if end is not None:
        query = query.where(items.c.position < end)
    if after is not None:
        position = position_of(connection, thread, after)
        if position is None:
            return None
        query = query.where(items.c.position < position if descending else items.c.position > position)
    order = items.c.position.desc() if descending else items.c.position
    bodies = connection.execute(query.order_by(order).limit(limit + 1)).scalars().all()
    return [json.loads(body) for body in bodies[:limit]], len(bodies) > limit


def position_of(connection: Connection, thread: str, item: str) -> int | None:
    """Of the last item with that id."""
    return connection.execute(
        select(func.max(items.c.position)).where(items.c.thread == thread, items.c.id == item)
    ).scalar()


def sweep(connection: Connection, thread: str | None) -> None:
    """Delete a thread that no response, conversation or fork needs any more, then its parents likewise."""
    while thread is not None:
        needed = connection.execute(
            select(
                exists().where(responses.c.thread == thread)
                | exists().where(conversations.c.id == thread)
                | exists().where(threads.c.parent == thread)
            )
        ).scalar_one()
        if needed:
            return
        parent = connection.execute(select(threads.c.parent).where(threads.c.id == thread)).scalar()
        connection.execute(delete(items).where(items.c.thread == thread))
        connection.execute(delete(threads).where(threads.c.id == thread))
        thread = parent
