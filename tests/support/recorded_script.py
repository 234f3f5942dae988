"""A scripted model that remembers its calls and how they ended: what the tests of clients talk to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from penstock.call import Call, Event
from penstock.simulate.scripted.script import parse_script
from penstock.simulate.scripted.service import ScriptedModelService

MODEL = "scripted"


class RecordedScript(ScriptedModelService):
    """`rules` as in a script's file. `begun`: calls with a first event; `cancelled`: calls left by their
    callers."""

    def __init__(self, *rules: dict[str, Any], **fields: Any) -> None:
        super().__init__(parse_script(json.dumps({"name": MODEL, "rules": rules, **fields})))
        self.calls: list[Call] = []
        self.begun = 0
        self.cancelled = 0
        self._changed = asyncio.Condition()

    async def stream(self, call: Call, request_id: str) -> AsyncIterator[Event]:
        self.calls.append(call)
        first = True
        try:
            async with aclosing(super().stream(call, request_id)) as events:
                async for event in events:
                    if first:
                        first, self.begun = False, self.begun + 1
                        await self._tell()
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            # Under its own task: this one may be being cancelled.
            asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def seen(self, **counts: int) -> None:
        """Wait until each named counter is at least its value: `await service.seen(cancelled=1)`."""
        async with self._changed:
            await self._changed.wait_for(lambda: all(getattr(self, k) >= v for k, v in counts.items()))

    async def idle(self) -> None:
        """Wait until no call is open."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.health().running == 0)
