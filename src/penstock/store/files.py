"""Files of one tenant each: chunks that come in, or the results of a batch's lines.

A file is there once it is complete, and gone when it has expired; what another tenant has does not exist. An
upload that was never completed is swept away.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, delete, insert, or_, select, update

from penstock.store.database import Database
from penstock.store.paging import Found, page
from penstock.store.records import Cut, StoredFile
from penstock.store.tables import batch_lines, file_chunks, files

ABANDONED_S = 3600  # an upload that is not complete by then never will be
LINES = 128  # results read at once


class Files:
    """Over one database; every method is one transaction, `read` one per piece."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, tenant: str, filename: str, now: float) -> str:
        """The id of a file that is not complete yet."""
        name = new_file_id()
        row = StoredFile(id=name, tenant=tenant, purpose="", filename=filename, bytes=0, created_at=int(now))
        await self._database.run(lambda connection: add_file(connection, row, is_complete=False))
        return name

    async def append(self, name: str, position: int, data: bytes) -> None:
        """The chunk with the number `position`, from 0."""
        row = {"file": name, "position": position, "data": data}
        await self._database.run(lambda connection: connection.execute(insert(file_chunks), row))

    async def complete(self, name: str, purpose: str, num_bytes: int, expires_at: int | None) -> StoredFile:
        values = {"purpose": purpose, "bytes": num_bytes, "expires_at": expires_at, "is_complete": True}

        def work(connection: Connection) -> StoredFile:
            connection.execute(update(files).where(files.c.id == name).values(**values))
            return _file(connection.execute(select(files).where(files.c.id == name)).one())

        return await self._database.run(work)

    async def discard(self, name: str) -> None:
        """An upload that broke off."""
        await self._database.run(lambda connection: _delete(connection, name))

    async def get(self, tenant: str, name: str, now: float) -> StoredFile | None:
        def work(connection: Connection) -> StoredFile | None:
            query = select(files).where(*_visible(tenant, now), files.c.id == name)
            row = connection.execute(query).one_or_none()
            return None if row is None else _file(row)

        return await self._database.run(work)

    async def page(self, tenant: str, cut: Cut, purpose: str | None, now: float) -> Found[StoredFile] | None:
        """None: no file `after`."""
        where = [*_visible(tenant, now), *([] if purpose is None else [files.c.purpose == purpose])]
        return await self._database.run(lambda connection: page(connection, files, where, cut, _file))

    async def delete(self, tenant: str, name: str, now: float) -> bool:
        def work(connection: Connection) -> bool:
            query = select(files.c.id).where(*_visible(tenant, now), files.c.id == name)
            if connection.execute(query).one_or_none() is None:
                return False
            _delete(connection, name)
            return True

        return await self._database.run(work)

    async def read(self, file: StoredFile) -> AsyncGenerator[bytes, None]:
        """Its content in pieces. Ends early if it is deleted meanwhile."""
        after = -1
        while piece := await self._database.run(partial(_piece, file=file, after=after)):
            after = piece.last
            yield piece.data

    async def sweep(self, now: float) -> None:
        """Delete what has expired, and uploads that broke off."""

        def work(connection: Connection) -> None:
            gone = or_(
                files.c.expires_at <= int(now),
                ~files.c.is_complete & (files.c.created_at < int(now) - ABANDONED_S),
            )
            for name in connection.execute(select(files.c.id).where(gone)).scalars().all():
                _delete(connection, name)

        await self._database.run(work)


def new_file_id() -> str:
    return f"file-{uuid.uuid4().hex}"


def add_file(connection: Connection, file: StoredFile, is_complete: bool = True) -> None:
    row = {name: getattr(file, name) for name in StoredFile.__struct_fields__}
    connection.execute(insert(files), row | {"is_complete": is_complete})


class _Piece(Struct, frozen=True):
    """`last`: number of the last chunk or line in it."""

    data: bytes
    last: int


def _piece(connection: Connection, file: StoredFile, after: int) -> _Piece | None:
    """What comes behind chunk or line number `after`; None at the end."""
    if file.batch is None:
        query = select(file_chunks).where(file_chunks.c.file == file.id, file_chunks.c.position > after)
        row = connection.execute(query.order_by(file_chunks.c.position).limit(1)).one_or_none()
        return None if row is None else _Piece(bytes(row.data), row.position)
    states = ("errored", "cancelled", "expired") if file.holds_errors else ("succeeded",)
    lines = results(connection, file.batch, states, after)
    return _Piece(b"".join(line for _, line in lines), lines[-1][0]) if lines else None


def results(
    connection: Connection, batch: str, states: tuple[str, ...], after: int
) -> list[tuple[int, bytes]]:
    """(number, line with its newline) of the next lines of a batch behind number `after`."""
    query = select(batch_lines.c.number, batch_lines.c.result).where(
        batch_lines.c.batch == batch, batch_lines.c.number > after, batch_lines.c.state.in_(states)
    )
    rows = connection.execute(query.order_by(batch_lines.c.number).limit(LINES)).all()
    return [(row.number, row.result.encode() + b"\n") for row in rows]


def _visible(tenant: str, now: float) -> list[Any]:
    return [
        files.c.tenant == tenant,
        files.c.is_complete,
        or_(files.c.expires_at.is_(None), files.c.expires_at > int(now)),
    ]


def _delete(connection: Connection, name: str) -> None:
    connection.execute(delete(file_chunks).where(file_chunks.c.file == name))
    connection.execute(delete(files).where(files.c.id == name))


def _file(row: Any) -> StoredFile:
    return StoredFile(**{name: getattr(row, name) for name in StoredFile.__struct_fields__})
