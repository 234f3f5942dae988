"""WorkerProcess: a worker as the gateway sees it: started, asked, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys

import numpy as np

from penstock.engine.child_log import ChildLog
from penstock.engine.embedding.messages import (
    LENGTH,
    Batch,
    Done,
    Failed,
    Loaded,
    Task,
    ToGateway,
    frame,
    read_answer,
)
from penstock.errors import EngineUnavailable, from_kind
from penstock.kernels.encoder import TextBatch

TERM_GRACE_S = 2.0

log = logging.getLogger("penstock.engine.embedding")


class WorkerProcess:
    """One life. `begin` makes it; after an EngineUnavailable it is of no more use and must be ended."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()
        self._log = ChildLog(process, "embedding", log)

    @classmethod
    async def begin(cls, model: str, backend: str, threads: int | None) -> tuple[WorkerProcess, Loaded]:
        """Start a worker and wait until it has loaded. Raises what it refuses the model with."""
        options = ["--model", model, "--backend", backend]
        options += [] if threads is None else ["--threads", str(threads)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "penstock.engine.embedding.worker", *options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        worker = cls(process)
        try:
            answer = await worker._read()
            if isinstance(answer, Failed):
                raise from_kind(answer.kind, answer.message, code=answer.code)
            assert isinstance(answer, Loaded)
        except BaseException:
            await worker.end()
            raise
        return worker, answer

    async def run(self, task: Task, batch: TextBatch) -> np.ndarray:
        """float32[texts, width]. Raises EngineUnavailable if the worker dies over it."""
        async with self._turn:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(frame(Batch.of(task, batch)))
                await self._process.stdin.drain()
            except (BrokenPipeError, ConnectionResetError):
                raise await self._death() from None
            answer = await self._read()
        if isinstance(answer, Failed):
            raise from_kind(answer.kind, answer.message)
        assert isinstance(answer, Done)
        return np.frombuffer(answer.vectors, np.float32).reshape(len(batch.offsets) - 1, -1)

    async def end(self) -> None:
        """Close its input, then SIGTERM, then SIGKILL; returns when the process is gone."""
        process = self._process
        if process.stdin is not None:
            process.stdin.close()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), TERM_GRACE_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        await self._log.end()

    async def _read(self) -> ToGateway:
        assert self._process.stdout is not None
        try:
            (size,) = LENGTH.unpack(await self._process.stdout.readexactly(LENGTH.size))
            return read_answer(await self._process.stdout.readexactly(size))
        except asyncio.IncompleteReadError:
            raise await self._death() from None

    async def _death(self) -> EngineUnavailable:
        code = await self._process.wait()
        await self._log.end()
        return EngineUnavailable(
            f"the embedding process ended with status {code}{self._log.last_words}; send the request again",
            retry_after_s=1.0,
        )
