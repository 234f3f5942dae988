"""Batches as the routes ask for them, in any API: made, shown, cancelled, deleted."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from penstock.errors import InvalidRequest, NotFound, PenstockError
from penstock.gateway.batches.input_file import first_model
from penstock.gateway.batches.runner import BatchRunner
from penstock.store.opening import LazyBatches
from penstock.store.records import Cut, NewLine, StoredBatch, StoredFile
from penstock.wire import anthropic_batches, openai_batches
from penstock.wire.openai_batches import NewBatch


class Conflict(PenstockError):
    """What was asked for can't be done to a batch in this state."""

    kind = "invalid_request_error"
    status = 409


class BatchService:
    """The store of batches and the runner that answers them. `endpoints`: paths that OpenAI's may be for."""

    def __init__(self, store: LazyBatches, runner: BatchRunner, endpoints: Sequence[str]) -> None:
        self.store = store
        self._runner = runner
        self._endpoints = endpoints

    def start(self) -> None:
        """Go on with what an earlier server left."""
        if self.store.may_hold_something():
            self._runner.start()

    async def close(self) -> None:
        await self._runner.close()

    # ------------------------------------------------------------------ made

    async def create_from_file(self, tenant: str, new: NewBatch) -> StoredBatch:
        """Raises InvalidRequest. What is wrong inside the file shows when it was read."""
        if new.endpoint not in self._endpoints:
            raise InvalidRequest(
                f"endpoint: {new.endpoint!r}; batches are for {', '.join(self._endpoints)}", param="endpoint"
            )
        file = await self._check_input(tenant, new.input_file_id)
        now = int(time.time())
        batch = StoredBatch(
            id=f"batch_{uuid.uuid4().hex}",
            tenant=tenant,
            api=openai_batches.API,
            endpoint=new.endpoint,
            status="validating",
            times={},
            created_at=now,
            expires_at=now + openai_batches.WINDOW_S,
            metadata=new.metadata or {},
            model=await self._served_model(file),
            input_file=new.input_file_id,
            output_ttl_s=new.output_expires_after.seconds if new.output_expires_after else None,
        )
        await (await self.store()).add(batch)
        self._runner.start()
        return batch

    async def create(
        self, tenant: str, endpoint: str, model: str | None, lines: Sequence[NewLine]
    ) -> StoredBatch:
        """Of Anthropic's: all lines are there. model: that of the first."""
        now = int(time.time())
        batch = StoredBatch(
            id=f"msgbatch_{uuid.uuid4().hex}",
            tenant=tenant,
            api=anthropic_batches.API,
            endpoint=endpoint,
            status="in_progress",
            times={"in_progress": now},
            created_at=now,
            expires_at=now + anthropic_batches.WINDOW_S,
            model=self._served(model),
            counts={"waiting": len(lines)},
        )
        await (await self.store()).add(batch, lines)
        self._runner.start()
        return batch

    async def _served_model(self, file: StoredFile) -> str | None:
        """The model of its first line, so that only a server of that model takes the batch; None if it is not
        one of this server: then any server finds that out."""
        async with aclosing((await self.store()).files.read(file)) as pieces:
            async for piece in pieces:
                return self._served(first_model(piece))
        return None

    def _served(self, model: str | None) -> str | None:
        return model if model in self._runner.models() else None

    async def _check_input(self, tenant: str, name: str) -> StoredFile:
        file = await (await self.store()).files.get(tenant, name, time.time())
        if file is None:
            raise InvalidRequest(
                f"input_file_id: no file {name[:100]!r} is stored here", param="input_file_id"
            )
        if file.purpose != "batch":
            raise InvalidRequest(
                f"input_file_id: {name} has the purpose {file.purpose!r}; upload it with purpose 'batch'",
                param="input_file_id",
            )
        return file

    # ------------------------------------------------------------------ shown and ended

    async def get(self, tenant: str, api: str, name: str) -> StoredBatch:
        """Raises NotFound."""
        return await (await self.store()).get(tenant, api, name) or _unknown(name)

    async def page(self, tenant: str, api: str, cut: Cut) -> tuple[list[StoredBatch], bool]:
        """(batches, whether there are more). Raises InvalidRequest for an unknown `cut.after`."""
        found = await (await self.store()).page(tenant, api, cut)
        if found is None:
            raise InvalidRequest(f"after: no batch {(cut.after or '')[:100]!r} is stored here", param="after")
        return found.items, found.has_more

    async def cancel(self, tenant: str, api: str, name: str) -> StoredBatch:
        """Lines in flight are given up. Raises NotFound, Conflict for a batch that has ended."""
        batch, was_open = await (await self.store()).cancel(tenant, api, name, time.time())
        if batch is None:
            return _unknown(name)
        if not was_open:
            raise Conflict(f"batch_id: {name} is {batch.status}; only a batch that runs can be cancelled")
        self._runner.start()
        return batch

    async def delete(self, tenant: str, api: str, name: str) -> None:
        """With its results. Raises NotFound, Conflict for a batch that runs."""
        exists, deleted = await (await self.store()).delete(tenant, api, name)
        if not exists:
            _unknown(name)
        if not deleted:
            raise Conflict(f"batch_id: {name} still runs; cancel it and wait for its end before deleting it")

    async def results(self, name: str) -> AsyncIterator[bytes]:
        """All result lines, in pieces."""
        async for piece in (await self.store()).results(name):
            yield piece


def _unknown(name: str) -> StoredBatch:
    """Raises NotFound."""
    raise NotFound(f"batch_id: {name[:100]!r} is not stored here", param="batch_id")
