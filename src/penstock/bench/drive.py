"""The driver: sends a workload's items at their times, at most `concurrency` at once.

An item waits for its arrival time, then for a free place; its clock starts when it is sent.
`sent late` is therefore visible: with an open-loop workload (rate, trace) give no concurrency.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from penstock.bench.metrics import Record
from penstock.bench.workloads import Item

Send = Callable[[Item], Awaitable[Record]]


async def drive(
    items: list[Item],
    send: Send,
    *,
    concurrency: int | None = None,
    on_done: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Records in the items' order. `send` never raises for a failed request: it returns a record with
    `error`; what it raises is a fault of the benchmark and ends the run."""
    places = asyncio.Semaphore(concurrency or len(items))
    start = time.monotonic()

    async def one(item: Item) -> Record:
        delay = start + item.arrival_s - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        async with places:
            record = await send(item)
        on_done(record)
        return record

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(item)) for item in items]
    return [task.result() for task in tasks]
