"""Pages of tables whose rows have an `id` and a `number` in the order of creation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from msgspec import Struct
from sqlalchemy import Connection, Table, select

from penstock.store.records import Cut

T = TypeVar("T")


class Found(Struct, Generic[T], frozen=True):
    items: list[T]
    has_more: bool


def page(
    connection: Connection, table: Table, where: Sequence[Any], cut: Cut, make: Callable[[Any], T]
) -> Found[T] | None:
    """None: no row with the id `cut.after`."""
    query = select(table).where(*where)
    if cut.after is not None:
        place = select(table.c.number).where(*where, table.c.id == cut.after)
        number = connection.execute(place).scalar_one_or_none()
        if number is None:
            return None
        query = query.where(table.c.number < number if cut.descending else table.c.number > number)
    order = table.c.number.desc() if cut.descending else table.c.number
    rows = connection.execute(query.order_by(order).limit(cut.limit + 1)).all()
    return Found([make(row) for row in rows[: cut.limit]], len(rows) > cut.limit)
