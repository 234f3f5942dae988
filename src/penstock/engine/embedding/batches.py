"""Batches: texts of many requests in one forward pass, a bounded queue before it.

Requests take turns, a text each, until a batch has its tokens: a request of two thousand texts delays one of
a single text by at most the batch that runs. No clock: while a batch runs the next one gathers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from penstock.engine.embedding.messages import Task
from penstock.errors import EngineUnavailable, Overloaded, PenstockError, from_kind
from penstock.kernels.encoder import TextBatch
from penstock.text.text_tokenizer import TokenizedText

# Tokens of one forward pass: enough that weights are read for many, about a quarter of a second of MiniLM on
# two cores, which is what a newly arrived request waits at most.
BATCH_TOKENS = 2048

log = logging.getLogger("penstock.engine.embedding")

Run = Callable[[Task, TextBatch], Awaitable[np.ndarray]]


class _Job:
    def __init__(self, task: Task, texts: Sequence[TokenizedText]) -> None:
        self.task: Task = task
        self.texts = texts
        self.taken = 0  # texts in batches so far
        self.rows: list[np.ndarray] = []
        self.done: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()


class Batches:
    """`run` computes one batch; `max_waiting` texts wait at most, beyond them Overloaded."""

    def __init__(self, run: Run, max_waiting: int, batch_tokens: int = BATCH_TOKENS) -> None:
        self._run = run
        self._max_waiting = max_waiting
        self._batch_tokens = batch_tokens
        self._jobs: deque[_Job] = deque()  # those with texts in no batch yet
        self._waiting = 0  # their texts
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def submit(self, task: Task, texts: Sequence[TokenizedText]) -> np.ndarray:
        """float32[texts, width], in order. Cancelling it takes out what has not begun."""
        if self._closed:
            raise EngineUnavailable("the server is shutting down", retry_after_s=5.0)
        if self._waiting + len(texts) > self._max_waiting:
            raise Overloaded(
                f"{self._waiting} texts wait already and {len(texts)} more would be over {self._max_waiting} "
                "(embedding_queue); retry later",
                retry_after_s=1.0,
            )
        job = _Job(task, texts)
        self._jobs.append(job)
        self._waiting += len(texts)
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="penstock-embedding-batches")
        try:
            return await job.done
        finally:
            self._forget(job)

    async def close(self) -> None:
        """Fail what waits; return when nothing runs."""
        self._closed = True
        for job in list(self._jobs):
            _fail(job, EngineUnavailable("the server is shutting down", retry_after_s=5.0))
            self._forget(job)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _forget(self, job: _Job) -> None:
        if job in self._jobs:
            self._jobs.remove(job)
            self._waiting -= len(job.texts) - job.taken
            job.taken = len(job.texts)

    async def _work(self) -> None:
        """Until nobody waits."""
        try:
            while self._jobs:
                await self._step()
        finally:
            self._task = None

    async def _step(self) -> None:
        chosen = self._choose()
        try:
            vectors = await self._run(chosen[0][0].task, _joined([text for _, text in chosen]))
        except asyncio.CancelledError:
            for job, _ in chosen:
                _fail(job, EngineUnavailable("the server is shutting down", retry_after_s=5.0))
            raise
        except PenstockError as error:
            for job in {job for job, _ in chosen}:
                _fail(job, error)
                self._forget(job)
            return
        except Exception:
            log.exception("a batch of %d texts broke", len(chosen))
            for job in {job for job, _ in chosen}:
                _fail(job, PenstockError("internal error while embedding; the server's log has it"))
                self._forget(job)
            return
        for (job, _), row in zip(chosen, vectors, strict=True):
            job.rows.append(row)
            if len(job.rows) == len(job.texts) and not job.done.done():
                job.done.set_result(np.stack(job.rows))

    def _choose(self) -> list[tuple[_Job, TokenizedText]]:
        """The next batch: one task, at least one text."""
        task = self._jobs[0].task
        chosen: list[tuple[_Job, TokenizedText]] = []
        tokens = 0
        skipped = 0
        while self._jobs and skipped < len(self._jobs):
            job = self._jobs[0]
            if job.task != task:
                self._jobs.rotate(-1)
                skipped += 1
                continue
            text = job.texts[job.taken]
            if chosen and tokens + len(text.ids) > self._batch_tokens:
                break
            skipped = 0
            chosen.append((job, text))
            tokens += len(text.ids)
            job.taken += 1
            self._waiting -= 1
            self._jobs.rotate(-1)
            if job.taken == len(job.texts):
                self._jobs.remove(job)
        return chosen


def _joined(texts: list[TokenizedText]) -> TextBatch:
    counts = [len(text.ids) for text in texts]
    kinds = None
    if any(text.kinds is not None for text in texts):
        kinds = np.concatenate([np.zeros_like(t.ids) if t.kinds is None else t.kinds for t in texts])
    return TextBatch(
        tokens=np.concatenate([text.ids for text in texts]),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        kinds=kinds,
    )


def _fail(job: _Job, error: PenstockError) -> None:
    if not job.done.done():
        # A copy each: a raised exception carries the traceback of the one who raised it.
        job.done.set_exception(from_kind(error.kind, error.message, retry_after_s=error.retry_after_s))
