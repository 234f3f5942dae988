"""The runner: one per server; it runs the batches that it could claim, line by line.

    claim (lease) → read the input file → lines, so many at once as there are places → results → finish

Every step of the way is in the store before the next one begins, so a server that dies leaves nothing but a
lease that runs out, and lines that wait: whoever claims the batch runs those. Lines in flight at that moment
are run again, their results written once (`penstock.store.batches`).
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from penstock.call import Failure
from penstock.errors import EngineUnavailable, Overloaded, PenstockError
from penstock.gateway.batches.answer import Answer, Answerer
from penstock.gateway.batches.formats import FORMATS
from penstock.gateway.batches.input_file import InputFile
from penstock.gateway.batches.places import Place, Places
from penstock.observe.metrics import Metrics
from penstock.store.opening import LazyBatches
from penstock.store.records import LineResult, LineState, NewLine, StoredBatch, WaitingLine

if TYPE_CHECKING:
    from penstock.store.batches import Batches

log = logging.getLogger("penstock.batches")

AT_ONCE = 8  # batches that a server runs side by side; further ones are left to other servers
READ = 64  # lines read from the store at once
INSERT = 500  # lines written at once
TRIES = 4  # of a line under which the engine died
RETRY_S = 1.0
SWEEP_S = 600.0  # between looks for expired files


class _Run(Struct):
    """A batch that runs here. `lines`: the part that a cancellation ends."""

    task: asyncio.Task[None]
    lines: asyncio.Task[None] | None = None


class BatchRunner:
    """`clock`: Unix seconds."""

    def __init__(
        self,
        store: LazyBatches,
        answer: Answerer,
        metrics: Metrics,
        *,
        in_flight: int,
        lease_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.owner = uuid.uuid4().hex
        self.lease_s = lease_s
        self._store = store
        self._answer = answer
        self._metrics = metrics
        self._clock = clock
        self._places = Places(in_flight, answer.service.health)
        self._runs: dict[str, _Run] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._swept_at = 0.0

    def start(self) -> None:
        """Look after batches from now on. Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._loop(), name="penstock-batches")
        self._wake.set()

    async def close(self) -> None:
        """Give up the lines in flight and leave the batches to whoever claims them next. Idempotent."""
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        tasks = [run.task for run in self._runs.values()]
        for running in tasks:
            running.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await (await self._store()).release(self.owner)
        except PenstockError as error:
            log.warning("batches stay leased for %g s: %s", self.lease_s, error.message)

    def models(self) -> list[str]:
        """Those of this server."""
        return [card.id for card in self._answer.service.models()]

    # ------------------------------------------------------------------ which batches

    async def _loop(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._look()
            except PenstockError as error:  # the database is away: leases may run out, nothing is written
                log.warning("batches wait: %s", error.message)
            try:
                async with asyncio.timeout(self.lease_s / 3):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        """Renew leases, notice what was cancelled or lost, claim what nobody runs."""
        store = await self._store()
        until = self._clock() + self.lease_s
        names = list(self._runs)
        mine = await store.renew(self.owner, names, until) if names else {}
        for name, run in [(name, self._runs[name]) for name in names if name in self._runs]:
            if name not in mine:
                run.task.cancel()
            elif mine[name] == "cancelling" and run.lines is not None:
                run.lines.cancel()
        room = AT_ONCE - len(self._runs)
        if room > 0:
            for batch in await store.claim(self.owner, self.models(), room, self._clock(), until):
                self._begin(batch)
        if self._clock() > self._swept_at + SWEEP_S:
            self._swept_at = self._clock()
            await store.files.sweep(self._clock())

    def _begin(self, batch: StoredBatch) -> None:
        if batch.id in self._runs:  # lost and claimed again before its end was seen
            return
        task = asyncio.create_task(self._run(batch), name=f"penstock-batch {batch.id}")
        self._runs[batch.id] = _Run(task)
        task.add_done_callback(lambda done: self._over(batch.id))

    def _over(self, name: str) -> None:
        del self._runs[name]
        self._metrics.batches_running(len(self._runs))
        self._wake.set()

    # ------------------------------------------------------------------ one batch

    async def _run(self, batch: StoredBatch) -> None:
        from penstock.store.batches import LeaseLost

        self._metrics.batches_running(len(self._runs))
        store = await self._store()
        try:
            begun: StoredBatch | None = batch
            if batch.status == "validating":
                begun = await self._read_input(store, batch)
            if begun is not None:
                await self._answer_and_finish(store, begun)
        except LeaseLost as error:
            log.warning("%s", error.message)
        except Exception:  # whatever it is, it ends this batch's run, not the others
            log.exception("batch %s broke; it is tried again when its lease runs out", batch.id)

    async def _read_input(self, store: Batches, batch: StoredBatch) -> StoredBatch | None:
        """The batch with the lines of its input file; None: it failed."""
        found = InputFile(batch.endpoint, self.models())
        file = await store.files.get(batch.tenant, batch.input_file or "", self._clock())
        await store.begin_lines(self.owner, batch.id)
        start, lines = 0, list[NewLine]()
        if file is not None:
            async for piece in store.files.read(file):
                lines += await asyncio.to_thread(found.feed, piece)
                while len(lines) >= INSERT and not found.errors:
                    await store.add_lines(self.owner, batch.id, start, lines[:INSERT])
                    start, lines = start + INSERT, lines[INSERT:]
        lines += found.end()
        if found.errors or found.model is None:
            await store.fail(self.owner, batch.id, found.problems(), self._clock())
            return None
        await store.add_lines(self.owner, batch.id, start, lines)
        return await store.begin(self.owner, batch.id, found.model, self._clock())

    async def _answer_and_finish(self, store: Batches, batch: StoredBatch) -> None:
        if batch.status != "cancelling":
            lines = asyncio.create_task(self._answer_lines(store, batch), name=f"penstock-lines {batch.id}")
            self._runs[batch.id].lines = lines
            try:
                await asyncio.wait([lines], timeout=max(0.0, batch.expires_at - self._clock()))
            finally:  # expired, or this server stops
                lines.cancel()
                await asyncio.wait([lines])
            if not lines.cancelled():
                lines.result()
        form = FORMATS[batch.api]

        def ended(state: LineState, custom_id: str) -> str:
            return form.ended(custom_id, uuid.uuid4().hex, state).decode()

        finished = await store.finish(self.owner, batch.id, self._clock(), ended)
        if finished is not None:
            log.info("batch %s %s: %s", batch.id, finished.status, finished.counts)
            for state in ("cancelled", "expired"):
                self._metrics.batch_lines_ended(state, finished.counts.get(state, 0))

    async def _answer_lines(self, store: Batches, batch: StoredBatch) -> None:
        results = _Results(store, self.owner, batch.id, self._metrics)
        after = -1
        try:
            async with asyncio.TaskGroup() as group:
                while lines := await store.waiting(batch.id, after, READ):
                    for line in lines:
                        place = await self._places.take()
                        task = group.create_task(self._answer_line(batch, line, results, place))
                        # A task that is cancelled before it begins gives nothing back by itself.
                        task.add_done_callback(lambda done, place=place: place.give_back())  # type: ignore[misc]
                    after = lines[-1].number
        except* PenstockError as errors:
            raise _first(errors) from None

    async def _answer_line(
        self, batch: StoredBatch, line: WaitingLine, results: _Results, place: Place
    ) -> None:
        self._metrics.batch_lines_running(self._places.taken)
        try:
            result = await self._result(batch, line)
        finally:
            place.give_back()
            self._metrics.batch_lines_running(self._places.taken)
        await results.keep(result)

    async def _result(self, batch: StoredBatch, line: WaitingLine) -> LineResult:
        request_id, form = uuid.uuid4().hex, FORMATS[batch.api]
        try:
            answer = await self._try(batch, line, request_id)
        except PenstockError as error:
            failure = Failure(error.kind, error.message, error.status, error.param, error.code)
        except Exception:  # a defect shows itself in the line, as it would in an answer
            log.exception("line %d of batch %s broke", line.number, batch.id)
            failure = Failure("internal_error", f"internal error; the server's log has it: {batch.id}", 500)
        else:
            usage, text = answer.usage, form.succeeded(line.custom_id, request_id, answer.body)
            return LineResult(
                line.number,
                "succeeded",
                text.decode(),
                usage.prompt_tokens,
                usage.cached_tokens,
                usage.completion_tokens,
                usage.reasoning_tokens,
            )
        return LineResult(line.number, "errored", form.errored(line.custom_id, request_id, failure).decode())

    async def _try(self, batch: StoredBatch, line: WaitingLine, request_id: str) -> Answer:
        """Again where the engine was away: that is not the line's fault, unless it dies each time."""
        attempt = 0
        while True:
            attempt += 1
            is_ready = self._answer.service.health().ready
            try:
                return await self._answer(
                    batch.endpoint,
                    line.request.encode(),
                    request_id=request_id,
                    tenant=batch.tenant,
                    deadline_s=max(1.0, batch.expires_at - self._clock()),
                )
            except Overloaded as error:
                attempt -= 1
                await asyncio.sleep(error.retry_after_s or RETRY_S)
            except EngineUnavailable as error:
                if attempt >= TRIES:
                    raise
                attempt -= not is_ready
                await asyncio.sleep(error.retry_after_s or RETRY_S)


class _Results:
    """Writes results together: those that come while a transaction runs are the next one."""

    def __init__(self, store: Batches, owner: str, batch: str, metrics: Metrics) -> None:
        self._store = store
        self._owner = owner
        self._batch = batch
        self._metrics = metrics
        self._new: list[LineResult] = []
        self._writing = asyncio.Lock()

    async def keep(self, result: LineResult) -> None:
        """Returns when it is stored. Raises LeaseLost."""
        self._new.append(result)
        async with self._writing:
            taken, self._new = self._new, []
            if taken:
                await self._store.answered(self._owner, self._batch, taken)
                for one in taken:
                    self._metrics.batch_lines_ended(one.state, 1)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
