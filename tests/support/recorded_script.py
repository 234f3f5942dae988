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
    """`rules` as in a script's file. `await seen(2)`: two calls have ended before their end."""

    def __init__(self, *rules: dict[str, Any], **fields: Any) -> None:
        super().__init__(parse_script(json.dumps({"name": MODEL, "rules": rules, **fields})))
        self.calls: list[Call] = []
        self.cancelled = 0
        self._changed = asyncio.Condition()

    async def stream(self, call: Call, request_id: str) -> AsyncIterator[Event]:
        self.calls.append(call)
        try:
            async with aclosing(super().stream(call, request_id)) as events:
                async for event in events:
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

    async def seen(self, cancelled: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.cancelled >= cancelled)

    async def idle(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.health().running == 0)
