"""Residence: the worker process of one model, there while the model is used and for a while after.

The first request starts it; one that finds it dead starts another. When no request is open, a clock runs for
`keep_alive_s`, then the process ends and its memory is free. A request that comes meanwhile stops the clock.
A model for which there is no room makes others, which no request uses, give theirs back first.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.embedding.messages import NO_ROOM, Loaded, Task
from penstock.engine.embedding.process import WorkerProcess
from penstock.errors import EngineUnavailable, ModelRefused, PenstockError
from penstock.kernels.encoder import TextBatch
from penstock.text.text_tokenizer import TextTokenizer

log = logging.getLogger("penstock.engine.embedding")


class Residence:
    """keep_alive_s: inf for ever; what a request asks for instead counts from its end, until the next one's.

    make_room: ends what can be spared and tells whether there was something. loaded: what the model is, from
    its first start on. expires: Unix seconds, while the clock runs. used: when a request last ended.
    """

    def __init__(
        self,
        model: str,
        backend: str,
        threads: int | None,
        keep_alive_s: float,
        make_room: Callable[[], Awaitable[bool]],
    ) -> None:
        self._model, self._backend, self._threads = model, backend, threads
        self._keep_alive_s = keep_alive_s
        self._make_room = make_room
        self.used = 0.0
        self.loaded: Loaded | None = None
        self.expires: float | None = None
        self.worker: WorkerProcess | None = None
        self._tokenizer: TextTokenizer | None = None
        self._starting: asyncio.Task[None] | None = None
        self._endings: set[asyncio.Task[None]] = set()
        self._clock: asyncio.TimerHandle | None = None
        self._open = 0  # requests
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="penstock-embedding")
        self._closed = False

    @asynccontextmanager
    async def use(self, keep_alive_s: float | None = None) -> AsyncIterator[tuple[Loaded, TextTokenizer]]:
        """What the model is, and its tokenizer; loaded, and staying so, while inside.

        Raises EngineUnavailable, and what the worker refuses the model with.
        """
        self._open += 1
        self._stop_clock()
        try:
            yield await self._ready()
        finally:
            self._open -= 1
            self.used = time.monotonic()
            if not self._open:
                self._start_clock(self._keep_alive_s if keep_alive_s is None else keep_alive_s)

    async def run(self, task: Task, batch: TextBatch) -> np.ndarray:
        """float32[texts, width]."""
        await self._ready()
        worker = self.worker
        assert worker is not None
        try:
            return await worker.run(task, batch)
        except EngineUnavailable:
            await self._drop(worker)
            raise

    @property
    def is_idle(self) -> bool:
        """Whether it takes memory that no request needs."""
        return self.worker is not None and not self._open

    async def evict(self) -> None:
        """Give back the memory of an idle model; returns when it is free."""
        if self.is_idle:
            self._expire()
            await asyncio.wait(self._endings)

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def close(self) -> None:
        """End the process, also one that is loading. Returns when it is gone."""
        self._closed = True
        self._stop_clock()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self.worker is not None:
            await self._drop(self.worker)
        if self._endings:
            await asyncio.wait(self._endings)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------ the clock

    def _start_clock(self, seconds: float) -> None:
        if self.worker is None or self._closed or math.isinf(seconds):
            return
        if seconds <= 0:
            self._expire()
            return
        self.expires = time.time() + seconds
        self._clock = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _stop_clock(self) -> None:
        self.expires = None
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _expire(self) -> None:
        self._stop_clock()
        assert self.worker is not None
        log.info("%s is not used; its memory is given back", self._model)
        ending = asyncio.create_task(self._drop(self.worker), name="penstock-embedding-end")
        self.worker = None  # at once: who comes now gets another
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    # ------------------------------------------------------------------ the process

    async def _ready(self) -> tuple[Loaded, TextTokenizer]:
        """Starts the worker if there is none. A caller that leaves meanwhile ends its own waiting, not the
        start."""
        if self._closed:
            raise EngineUnavailable("the server is shutting down", retry_after_s=5.0)
        if self.worker is None:
            if self._starting is None:
                self._starting = asyncio.create_task(self._start(), name="penstock-embedding-start")
                self._starting.add_done_callback(lambda done: done.cancelled() or done.exception())
            try:
                await asyncio.shield(self._starting)
            except asyncio.CancelledError:
                if self._closed:
                    raise EngineUnavailable("the server is shutting down", retry_after_s=5.0) from None
                raise
        assert self.loaded is not None and self._tokenizer is not None
        return self.loaded, self._tokenizer

    async def _start(self) -> None:
        try:
            worker, self.loaded = await self._begin()
            self.worker = worker
            if self._tokenizer is None:
                try:
                    self._tokenizer = await self.in_thread(TextTokenizer.load, Path(self.loaded.path))
                except PenstockError:
                    await self._drop(worker)
                    raise
            if not self._open:  # all who waited have left
                self._start_clock(self._keep_alive_s)
        finally:
            self._starting = None

    async def _begin(self) -> tuple[WorkerProcess, Loaded]:
        while True:
            try:
                return await WorkerProcess.begin(self._model, self._backend, self._threads)
            except ModelRefused as refused:
                if refused.code != NO_ROOM or not await self._make_room():
                    raise

    async def _drop(self, worker: WorkerProcess) -> None:
        if worker is self.worker:
            self.worker = None
            self._stop_clock()
        await worker.end()
