"""Batches and their lines: who runs one, what was answered, how it ended.

A batch is run by the server whose name stands in it, as long as its lease is renewed; then it is anybody's. A
server may have lost a batch without knowing, so whatever it writes is written only if the batch is still its
own, in one transaction. A line's result is written once: only to a line that waits. So each line has exactly
one result, whoever dies when; what runs twice is at most the work.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select, update

from penstock.errors import PenstockError
from penstock.store.database import Database
from penstock.store.files import Files, add_file, new_file_id, results
from penstock.store.paging import Found, page
from penstock.store.records import (
    OPEN,
    BatchStatus,
    Cut,
    Json,
    LineResult,
    LineState,
    NewLine,
    StoredBatch,
    StoredFile,
    WaitingLine,
)
from penstock.store.tables import batch_lines, batches

ENDED = ("succeeded", "errored", "cancelled", "expired")
_JSON = ("times", "metadata", "errors")
_USAGE = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")


class LeaseLost(PenstockError):
    """Another server runs the batch, or it was deleted: nothing was written."""


class Batches:
    """Over one database; every method is one transaction, `results` one per piece. `files` lie beside it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.files = Files(database)

    # ------------------------------------------------------------------ for those who asked

    async def add(self, batch: StoredBatch, lines: Iterable[NewLine] = ()) -> None:
        """With the lines that are known already. It can be claimed."""

        def work(connection: Connection) -> None:
            row = {name: getattr(batch, name) for name in StoredBatch.__struct_fields__ if name != "counts"}
            row |= {name: json.dumps(row[name]) for name in _JSON} | {"owner": "", "lease_until": 0.0}
            connection.execute(insert(batches), row)
            _add_lines(connection, batch.id, 0, lines)

        await self._database.run(work)

    async def get(self, tenant: str, api: str, name: str) -> StoredBatch | None:
        return await self._database.run(lambda connection: _find(connection, tenant, api, name))

    async def page(self, tenant: str, api: str, cut: Cut) -> Found[StoredBatch] | None:
        """None: no batch `after`."""
        where = [batches.c.tenant == tenant, batches.c.api == api]
        return await self._database.run(
            lambda connection: page(connection, batches, where, cut, lambda row: _batch(connection, row))
        )

    async def cancel(self, tenant: str, api: str, name: str, now: float) -> tuple[StoredBatch | None, bool]:
        """(the batch, whether it was open); from now on it is cancelling. None: no such batch."""

        def work(connection: Connection) -> tuple[StoredBatch | None, bool]:
            found = _find(connection, tenant, api, name, lock=True)
            if found is None or not found.is_open:
                return found, False
            if found.status != "cancelling":
                _set_status(connection, found, "cancelling", now)
            return _find(connection, tenant, api, name), True

        return await self._database.run(work)

    async def delete(self, tenant: str, api: str, name: str) -> tuple[bool, bool]:
        """(whether there is such a batch, whether it was deleted): one that is open stays."""

        def work(connection: Connection) -> tuple[bool, bool]:
            found = _find(connection, tenant, api, name, lock=True)
            if found is None or found.is_open:
                return found is not None, False
            connection.execute(delete(batch_lines).where(batch_lines.c.batch == name))
            connection.execute(delete(batches).where(batches.c.id == name))
            return True, True

        return await self._database.run(work)

    async def results(self, name: str) -> AsyncGenerator[bytes, None]:
        """All lines of the output, in the order of the requests."""
        after = -1
        while lines := await self._database.run(partial(results, batch=name, states=ENDED, after=after)):
            after = lines[-1][0]
            yield b"".join(line for _, line in lines)

    # ------------------------------------------------------------------ for the server that runs it

    async def claim(
        self, owner: str, models: Sequence[str], limit: int, now: float, until: float
    ) -> list[StoredBatch]:
        """Oldest open batches that nobody runs, for one of `models` or not known yet: `owner`'s now."""

        def work(connection: Connection) -> list[StoredBatch]:
            query = select(batches).where(
                batches.c.status.in_(OPEN),
                batches.c.lease_until <= now,
                or_(batches.c.model.is_(None), batches.c.model.in_(models)),
            )
            rows = connection.execute(
                query.order_by(batches.c.number).limit(limit).with_for_update(skip_locked=True)
            ).all()
            taken = update(batches).where(batches.c.id.in_([row.id for row in rows]))
            if rows:
                connection.execute(taken.values(owner=owner, lease_until=until))
            return [_batch(connection, row) for row in rows]

        return await self._database.run(work)

    async def renew(self, owner: str, names: Sequence[str], until: float) -> dict[str, BatchStatus]:
        """Those batches of `names` that are still `owner`'s are so until then; id -> status."""

        def work(connection: Connection) -> dict[str, BatchStatus]:
            mine = (batches.c.owner == owner) & batches.c.id.in_(names)
            connection.execute(update(batches).where(mine).values(lease_until=until))
            rows = connection.execute(select(batches.c.id, batches.c.status).where(mine))
            return {row.id: row.status for row in rows}

        return await self._database.run(work)

    async def release(self, owner: str) -> None:
        """Nobody runs them any more."""
        freed = update(batches).where(batches.c.owner == owner).values(owner="", lease_until=0)
        await self._database.run(lambda connection: connection.execute(freed))

    async def begin_lines(self, owner: str, name: str) -> None:
        """Forget the lines that an earlier, unfinished reading of its file gave."""

        def work(connection: Connection) -> None:
            _own(connection, owner, name)
            connection.execute(delete(batch_lines).where(batch_lines.c.batch == name))

        await self._database.run(work)

    async def add_lines(self, owner: str, name: str, start: int, lines: Sequence[NewLine]) -> None:
        """Lines numbered from `start` on."""

        def work(connection: Connection) -> None:
            _own(connection, owner, name)
            _add_lines(connection, name, start, lines)

        await self._database.run(work)

    async def begin(self, owner: str, name: str, model: str, now: float) -> StoredBatch:
        """All lines are there: it is in progress, or cancelling as before."""

        def work(connection: Connection) -> StoredBatch:
            batch = _batch(connection, _own(connection, owner, name))
            connection.execute(update(batches).where(batches.c.id == name).values(model=model))
            if batch.status == "validating":
                _set_status(connection, batch, "in_progress", now)
            return _batch(connection, _own(connection, owner, name))

        return await self._database.run(work)

    async def fail(self, owner: str, name: str, errors: list[Json], now: float) -> None:
        """It can't be run."""

        def work(connection: Connection) -> None:
            batch = _batch(connection, _own(connection, owner, name))
            connection.execute(delete(batch_lines).where(batch_lines.c.batch == name))
            values = {"errors": json.dumps(errors), "owner": "", "lease_until": 0}
            connection.execute(update(batches).where(batches.c.id == name).values(**values))
            _set_status(connection, batch, "failed", now)

        await self._database.run(work)

    async def waiting(self, name: str, after: int, limit: int) -> list[WaitingLine]:
        """The next lines without a result behind number `after`."""

        def work(connection: Connection) -> list[WaitingLine]:
            line = batch_lines.c
            query = select(line.number, line.custom_id, line.request).where(
                line.batch == name, line.state == "waiting", line.number > after
            )
            rows = connection.execute(query.order_by(line.number).limit(limit)).all()
            return [WaitingLine(row.number, row.custom_id, row.request) for row in rows]

        return await self._database.run(work)

    async def answered(self, owner: str, name: str, found: Sequence[LineResult]) -> None:
        """Keep results. Raises LeaseLost."""

        def work(connection: Connection) -> None:
            _own(connection, owner, name)
            kept = [result for result in found if _keep(connection, name, result)]
            sums = {field: sum(getattr(result, field) for result in kept) for field in _USAGE}
            grown = {field: batches.c[field] + count for field, count in sums.items() if count}
            if grown:
                connection.execute(update(batches).where(batches.c.id == name).values(**grown))

        await self._database.run(work)

    async def finish(
        self, owner: str, name: str, now: float, ended: Callable[[LineState, str], str]
    ) -> StoredBatch | None:
        """End a batch whose lines all have a result, or that was cancelled or expired: then `ended(state,
        custom_id)` is the result of those that wait. Its files appear. None: there is more to do."""
        return await self._database.run(lambda connection: _finish(connection, owner, name, now, ended))


def _finish(
    connection: Connection, owner: str, name: str, now: float, ended: Callable[[LineState, str], str]
) -> StoredBatch | None:
    batch = _batch(connection, _own(connection, owner, name))
    status: BatchStatus = "completed"
    if batch.status == "cancelling":
        status = "cancelled"
    elif batch.counts.get("waiting"):
        if now < batch.expires_at:
            return None
        status = "expired"
    if status != "completed":
        _end_waiting(connection, name, "cancelled" if status == "cancelled" else "expired", ended)
    values: dict[str, Any] = {"owner": "", "lease_until": 0}
    if batch.input_file is not None:
        values["output_file"] = _add_results(connection, batch, now, holds_errors=False)
        values["error_file"] = _add_results(connection, batch, now, holds_errors=True)
    connection.execute(update(batches).where(batches.c.id == name).values(**values))
    _set_status(connection, batch, status, now)
    return _batch(connection, connection.execute(select(batches).where(batches.c.id == name)).one())


def _end_waiting(
    connection: Connection, name: str, state: LineState, ended: Callable[[LineState, str], str]
) -> None:
    line = batch_lines.c
    rows = connection.execute(
        select(line.number, line.custom_id).where(line.batch == name, line.state == "waiting")
    ).all()
    changes = []
    for row in rows:
        result = ended(state, row.custom_id)
        changes.append({"n": row.number, "r": result, "size": len(result.encode()) + 1})
    if changes:
        query = update(batch_lines).where(line.batch == name, line.number == bindparam("n"))
        values: dict[str, Any] = {
            "result": bindparam("r"),
            "bytes": bindparam("size"),
            "state": state,
            "request": None,
        }
        connection.execute(query.values(**values), changes)


def _add_results(connection: Connection, batch: StoredBatch, now: float, *, holds_errors: bool) -> str | None:
    """The id of the file of all answers, or of all other results; None if there are none."""
    is_answer = batch_lines.c.state == "succeeded"
    size = connection.execute(
        select(func.sum(batch_lines.c.bytes)).where(
            batch_lines.c.batch == batch.id, ~is_answer if holds_errors else is_answer
        )
    ).scalar()
    if not size:
        return None
    file = StoredFile(
        id=new_file_id(),
        tenant=batch.tenant,
        purpose="batch_output",
        filename=f"{batch.id}_{'error' if holds_errors else 'output'}.jsonl",
        bytes=int(size),
        created_at=int(now),
        expires_at=None if batch.output_ttl_s is None else int(now) + batch.output_ttl_s,
        batch=batch.id,
        holds_errors=holds_errors,
    )
    add_file(connection, file)
    return file.id


def _keep(connection: Connection, name: str, result: LineResult) -> bool:
    """False: the line had a result already."""
    line = batch_lines.c
    query = update(batch_lines).where(
        line.batch == name, line.number == result.number, line.state == "waiting"
    )
    size = len(result.result.encode()) + 1
    values = {"state": result.state, "result": result.result, "bytes": size, "request": None}
    return connection.execute(query.values(**values)).rowcount == 1


def _add_lines(connection: Connection, name: str, start: int, lines: Iterable[NewLine]) -> None:
    rows = [
        {"batch": name, "number": number, "custom_id": line.custom_id, "request": line.request}
        | {"state": "waiting", "bytes": 0}
        for number, line in enumerate(lines, start)
    ]
    if rows:
        connection.execute(insert(batch_lines), rows)


def _set_status(connection: Connection, batch: StoredBatch, status: BatchStatus, now: float) -> None:
    times = json.dumps(batch.times | {status: int(now)})
    query = update(batches).where(batches.c.id == batch.id)
    connection.execute(query.values(status=status, times=times))


def _own(connection: Connection, owner: str, name: str) -> Any:
    """The batch's row, locked. Raises LeaseLost if it is not `owner`'s."""
    query = select(batches).where(batches.c.id == name, batches.c.owner == owner).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        raise LeaseLost(f"batch {name}: another server runs it")
    return row


def _find(connection: Connection, tenant: str, api: str, name: str, lock: bool = False) -> StoredBatch | None:
    query = select(batches).where(batches.c.id == name, batches.c.tenant == tenant, batches.c.api == api)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else _batch(connection, row)


def _batch(connection: Connection, row: Any) -> StoredBatch:
    values = {name: getattr(row, name) for name in StoredBatch.__struct_fields__ if name != "counts"}
    values |= {name: json.loads(values[name]) for name in _JSON}
    state = batch_lines.c.state
    counted = select(state, func.count()).where(batch_lines.c.batch == row.id).group_by(state)
    counts = {found[0]: found[1] for found in connection.execute(counted)}
    return StoredBatch(**values, counts=counts)
