"""The store, opened when it is first needed: a server that nobody asks to remember anything does not
load SQL."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.store.turns import Turns


class LazyTurns:
    """`await turns()` gives the one `Turns` over the database at `url` (None: a file in the data folder)."""

    def __init__(self, url: str | None = None) -> None:
        self._url = url
        self._turns: Turns | None = None

    async def __call__(self) -> Turns:
        if self._turns is None:
            made = await asyncio.to_thread(_open, self._url)
            self._turns = self._turns or made
        return self._turns

    async def close(self) -> None:
        if self._turns is not None:
            await self._turns.close()


def _open(url: str | None) -> Turns:
    from penstock.store.database import Database
    from penstock.store.turns import Turns

    return Turns(Database(url))
