"""The store, opened when it is first needed: a server that nobody asks to remember anything does not
load SQL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.store.folder import FILE, data_folder

if TYPE_CHECKING:
    from penstock.store.batches import Batches
    from penstock.store.database import Database
    from penstock.store.turns import Turns


class LazyDatabase:
    """`await database()` gives the one `Database` at `url` (None: a file in the data folder)."""

    def __init__(self, url: str | None = None) -> None:
        self._url = url
        self._database: Database | None = None

    async def __call__(self) -> Database:
        if self._database is None:
            made = await asyncio.to_thread(_open, self._url)
            self._database = self._database or made
        return self._database

    def may_hold_something(self) -> bool:
        """Whether an earlier server, or another one, may have left something there."""
        if self._url is None:
            return (data_folder() / FILE).exists()
        scheme, _, path = self._url.partition(":///")
        return scheme != "sqlite" or Path(path).exists()

    async def close(self) -> None:
        if self._database is not None:
            await self._database.close()


class LazyTurns:
    """`await turns()` gives the one `Turns` over a database."""

    def __init__(self, database: LazyDatabase) -> None:
        self._database = database
        self._turns: Turns | None = None

    async def __call__(self) -> Turns:
        if self._turns is None:
            database = await self._database()  # with it SQL is loaded, in a thread
            from penstock.store.turns import Turns

            self._turns = Turns(database)
        return self._turns


class LazyBatches:
    """`await batches()` gives the one `Batches` over a database."""

    def __init__(self, database: LazyDatabase) -> None:
        self._database = database
        self._batches: Batches | None = None

    async def __call__(self) -> Batches:
        if self._batches is None:
            database = await self._database()  # with it SQL is loaded, in a thread
            from penstock.store.batches import Batches

            self._batches = Batches(database)
        return self._batches

    def may_hold_something(self) -> bool:
        """As LazyDatabase's."""
        return self._database.may_hold_something()


def _open(url: str | None) -> Database:
    from penstock.store.database import Database

    return Database(url)
