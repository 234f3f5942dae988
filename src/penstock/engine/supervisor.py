"""The supervisor: starts the engine process of `serve`, watches it, restarts it, cleans up after it.

    STARTING ── Ready ──► READY ── death ──► STARTING (a new process, after a pause) …
       └── Refused, or MAX_FAILED_STARTS starts in a row without Ready ──► REFUSED

Invariants
- At most one engine process at a time; it is its own session, so a terminal's Ctrl-C reaches only
  the gateway, and it holds the read end of a pipe (its stdin) that ends when this process does.
- A death is reported once per life, at once: by the socket or by the process, whichever is first.
- After `close`: no process, no socket, no directory.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import sys
import time

import msgspec

from penstock.config import EngineSettings
from penstock.engine.child_log import ChildLog
from penstock.engine.client import ZmqTransport
from penstock.engine.messages import Delta, Progress, Ready, Submit
from penstock.engine.sockets import SocketDir
from penstock.engine.transport import Listener, State, Status
from penstock.errors import EngineUnavailable, ModelRefused, PenstockError
from penstock.observe.machine import cpu_count

MAX_FAILED_STARTS = 5
MAX_PAUSE_S = 30.0  # between restarts; doubles from FIRST_PAUSE_S, the first restart comes at once
FIRST_PAUSE_S = 1.0
STABLE_S = 60.0  # an engine that lived this long starts the pauses from zero again
TERM_GRACE_S = 3.0  # SIGTERM until SIGKILL: a step of a large model may have to end first

log = logging.getLogger("penstock.engine.supervisor")


class SupervisedTransport:
    """A Transport whose engine this process owns. `command` starts it (for tests)."""

    def __init__(
        self,
        settings: EngineSettings,
        *,
        command: tuple[str, ...] | None = None,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        # -P: a file called queue.py in the user's folder must not replace a module of the engine.
        self._command = command or (sys.executable, "-P", "-m", "penstock.engine.process")
        self._settings = settings
        self._first_pause_s = first_pause_s
        self._state = State.STARTING
        self._detail = "starting the engine"
        self._restarts = 0
        self._failed_starts = 0
        self._start_s = 5.0  # how long a start takes, for Retry-After; corrected by the first one
        self._life: _Life | None = None
        self._task: asyncio.Task[None] | None = None
        self._dir: SocketDir | None = None
        self._ready: Ready | None = None

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._dir = SocketDir()
        self._task = asyncio.create_task(self._supervise(), name="engine-supervisor")

    def submit(self, request: Submit) -> None:
        if self._state is not State.READY or self._life is None:
            raise self._unavailable(f"the engine is not ready: {self.status().detail}")
        self._life.client.submit(request)

    def abort(self, request_id: str, keep: int | None = None) -> None:
        if self._life is not None:
            self._life.client.abort(request_id, keep)

    def unpin(self, name: str) -> None:
        if self._life is not None and self._life.client is not None:
            self._life.client.unpin(name)

    def status(self) -> Status:
        detail, heard_s = self._detail, 0.0
        if self._life is not None:
            inner = self._life.client.status()
            heard_s = inner.heard_s
            if self._state is State.STARTING and inner.detail.startswith("loading"):
                detail = inner.detail
        retry_after_s = float(math.ceil(self._start_s))
        return Status(self._state, detail, self._restarts, heard_s, retry_after_s)

    @property
    def pid(self) -> int | None:
        """Of the running engine process."""
        return None if self._life is None else self._life.process.pid

    def memory_bytes(self) -> int:
        """What the engine's memory plan takes of this machine; 0 before the first Ready."""
        if self._ready is None:
            return 0
        return sum(self._ready.plan.get(part, 0) for part in ("weights", "workspace", "kv"))

    async def close(self) -> None:
        if self._state is State.CLOSED:
            return
        self._state, self._detail = State.CLOSED, "closed"
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._dir is not None:
            self._dir.remove()

    # ------------------------------------------------------------------ lives of the engine

    async def _supervise(self) -> None:
        try:
            while True:
                started = time.monotonic()
                reason = await self._run_once()
                if self._state is State.REFUSED:
                    return
                lived_s = time.monotonic() - started
                if lived_s > STABLE_S:
                    self._failed_starts = 0
                self._failed_starts += 1
                if self._failed_starts >= MAX_FAILED_STARTS:
                    deaths = f"the engine died {self._failed_starts} times in a row"
                    self._refuse(ModelRefused(f"{deaths}, the last time: {reason}"))
                    return
                self._restarts += 1
                pause_s = self._pause_s()
                self._detail = f"restarting the engine in {pause_s:.0f} s: {reason}"
                log.warning("%s; restart %d in %.1f s", reason, self._restarts, pause_s)
                await asyncio.sleep(pause_s)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("the supervisor failed")
            command = " ".join(self._command)
            self._refuse(ModelRefused(f"the engine could not be started with `{command}`: {error}"))

    def _pause_s(self) -> float:
        if self._failed_starts <= 1:
            return 0.0
        return min(MAX_PAUSE_S, self._first_pause_s * 2.0 ** (self._failed_starts - 2))

    async def _run_once(self) -> str:
        """One life, from start to death. Returns why it ended."""
        assert self._dir is not None
        beginning = asyncio.ensure_future(_Life.begin(self._command, self._settings, self._dir.address, self))
        try:
            life = await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # A process that is half started has to be known before it can be ended.
            await (await beginning).end()
            raise
        self._life = life
        try:
            return await life.ended()
        finally:
            self._life = None
            await life.end()
            if self._state is State.READY:
                self._lose(life.reason())

    def life_ready(self, life: _Life, ready: Ready) -> None:
        if life is self._life and self._state is State.STARTING:
            self._state, self._detail = State.READY, "ready"
            self._start_s = life.age_s()
            self._ready = ready
            log.info("engine process %d ready after %.1f s", life.process.pid, self._start_s)
            self._listener.on_ready(ready)

    def life_lost(self, life: _Life, error: PenstockError) -> None:
        if life is not self._life:
            return
        if isinstance(error, ModelRefused):
            self._refuse(error)
        elif self._state is State.READY:
            self._lose(error.message)
        life.kill()

    def life_deltas(self, life: _Life, deltas: list[Delta]) -> None:
        if life is self._life and self._state is State.READY:
            self._listener.on_deltas(deltas)

    def life_progress(self, progress: Progress) -> None:
        if progress.finished:
            self._failed_starts = 0  # it served: what kills it now is not the start
        if self._state is State.READY:
            self._listener.on_progress(progress)

    def _lose(self, reason: str) -> None:
        self._state, self._detail = State.STARTING, reason
        self._listener.on_lost(self._unavailable(f"{reason}; it is being restarted, send the request again"))

    def _refuse(self, error: ModelRefused) -> None:
        self._state, self._detail = State.REFUSED, error.message
        log.error("%s", error.message)
        self._listener.on_lost(error)

    def _unavailable(self, message: str) -> EngineUnavailable:
        return EngineUnavailable(message, retry_after_s=self.status().retry_after_s)


class _Life:
    """One engine process with its connection."""

    def __init__(
        self, process: asyncio.subprocess.Process, client: ZmqTransport, owner: SupervisedTransport
    ) -> None:
        self.process = process
        self.client = client
        self._owner = owner
        self._born = time.monotonic()
        self._log = ChildLog(process, "engine", log)

    @classmethod
    async def begin(
        cls, command: tuple[str, ...], settings: EngineSettings, address: str, owner: SupervisedTransport
    ) -> _Life:
        process = await asyncio.create_subprocess_exec(
            *command,
            *("--address", address, "--parent-fd", "0", "--model", settings.model),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=_environment(),
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(settings) + b"\n")
        life = cls(process, ZmqTransport(address, reconnect=False), owner)
        await life.client.start(life)
        return life

    async def ended(self) -> str:
        await self.process.wait()
        await self._log.end()
        return self.reason()

    def reason(self) -> str:
        code = self.process.returncode
        if code is None:
            return "the engine process broke its connection"
        if code < 0:
            hint = " (what the kernel sends when memory runs out)" if -code == signal.SIGKILL else ""
            return f"the engine process died of {signal.Signals(-code).name}{hint}"
        return f"the engine process exited with status {code}{self._log.last_words}"

    def age_s(self) -> float:
        return time.monotonic() - self._born

    def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()

    async def end(self) -> None:
        """Disconnect, then SIGTERM, then SIGKILL; returns when the process is gone. Survives cancellation."""
        await self.client.close()
        if self.process.returncode is None:
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), TERM_GRACE_S)
            except TimeoutError:
                log.warning("engine process %d outlived SIGTERM: killed", self.process.pid)
            finally:
                self.kill()
                await self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        await self._log.end()

    # ------------------------------------------------------------------ Listener of the connection

    def on_ready(self, ready: Ready) -> None:
        self._owner.life_ready(self, ready)

    def on_deltas(self, deltas: list[Delta]) -> None:
        self._owner.life_deltas(self, deltas)

    def on_progress(self, progress: Progress) -> None:
        self._owner.life_progress(progress)

    def on_lost(self, error: PenstockError) -> None:
        self._owner.life_lost(self, error)


def _environment() -> dict[str, str]:
    """BLAS counts the machine's processors; in a container fewer may be ours, and the extra threads
    fight for them. What the user set stays."""
    env = dict(os.environ)
    threads = str(cpu_count())
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        env.setdefault(name, threads)
    return env
