"""Places: how many lines of batches are in flight at once.

Enough to fill the rows that run, not more: what waits in the engine's queue keeps it from planning several
steps at once, and is lost work when the server dies. How many rows there are depends on the KV that each line
takes, so it is found: one more place for every line that ends while hardly anything waits in the engine, one
less for every line that ends while much does, whoever waits there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from penstock.call import Health

LEAST = 16  # short prompts that fill a step, also where every answer is one token
CROWD = 1 / 16  # of the running requests, and one: so many wait that came since the last step


class Place:
    """Of one line. Given back once, however often that is said."""

    def __init__(self, places: Places) -> None:
        self._places: Places | None = places

    def give_back(self) -> None:
        if self._places is not None:
            places, self._places = self._places, None
            places.give_back()


class Places:
    """`most`: at any time. `health`: of the engine."""

    def __init__(self, most: int, health: Callable[[], Health]) -> None:
        self._most = most
        self._least = min(LEAST, most)
        self._health = health
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.limit = self._least
        self.taken = 0

    async def take(self) -> Place:
        """Wait for a place; those who wait get theirs in turn, so batches side by side share them alike."""
        if not self._waiting and self.taken < self.limit:
            self.taken += 1
            return Place(self)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:  # it had come
                self.give_back()
            raise
        return Place(self)

    def give_back(self) -> None:
        self.taken -= 1
        health = self._health()
        if health.waiting > 1 + CROWD * health.running:
            self.limit = max(self._least, self.limit - 1)
        else:
            self.limit = min(self._most, self.limit + 1)
        self._call()

    def _call(self) -> None:
        while self._waiting and self.taken < self.limit:
            turn = self._waiting.popleft()
            self.taken += 1
            if turn.cancelled():  # its taker gives the place back
                continue
            turn.set_result(None)
