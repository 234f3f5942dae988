"""An engine in a thread of this process, for `LLM` and for tests: same messages, no sockets."""

from __future__ import annotations

import asyncio
import logging
import threading

from penstock.config import EngineSettings
from penstock.engine.drive import BuildEngine, Inbox, drive
from penstock.engine.messages import Abort, Delta, Loading, Progress, Ready, Shutdown, Submit, Unpin
from penstock.engine.transport import Listener, State, Status
from penstock.errors import EngineUnavailable, ModelRefused, PenstockError

_CLIENT = "local"

log = logging.getLogger("penstock.engine")


class InProcessTransport:
    """The core's thread is a daemon: a script that forgets `close` still ends.

    Deltas go to the loop in batches: one wake-up carries what several steps made meanwhile.
    """

    def __init__(self, settings: EngineSettings, *, build: BuildEngine | None = None) -> None:
        self._settings = settings
        self._build = build
        self._inbox = Inbox()
        self._state = State.STARTING
        self._detail = "loading"
        self._lock = threading.Lock()
        self._pending: list[Delta] = []
        self._progress: Progress | None = None
        self._woken = False
        self._thread: threading.Thread | None = None

    async def start(self, listener: Listener) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._thread = threading.Thread(target=self._run, name="penstock-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Submit) -> None:
        if self._state is not State.READY:
            raise EngineUnavailable(f"the engine is not ready: {self._detail}", retry_after_s=1.0)
        self._inbox.put((_CLIENT, request))

    def abort(self, request_id: str, keep: int | None = None) -> None:
        if self._state is State.READY:
            self._inbox.put((_CLIENT, Abort(id=request_id, keep=keep)))

    def unpin(self, name: str) -> None:
        if self._state is State.READY:
            self._inbox.put((_CLIENT, Unpin(name=name)))

    def status(self) -> Status:
        return Status(state=self._state, detail=self._detail)

    async def close(self) -> None:
        """Waits for the step that is running, off the loop."""
        if self._state is State.CLOSED:
            return
        self._state, self._detail = State.CLOSED, "closed"
        self._inbox.put((_CLIENT, Shutdown()))
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    # ------------------------------------------------------------------ the core's thread

    def _run(self) -> None:
        try:
            build = self._build
            if build is None:
                from penstock.engine.build import build_engine

                build = build_engine
            core, ready = build(self._settings, self._sink, self._on_loading)
        except PenstockError as error:
            self._call(self._on_dead, State.REFUSED, error)
            return
        except Exception as error:
            log.exception("the engine could not be built")
            self._call(self._on_dead, State.REFUSED, ModelRefused(f"the engine could not start: {error!r}"))
            return
        self._call(self._on_ready, ready)
        try:
            drive(core, self._inbox, self._publish)
        except Exception as error:
            log.exception("the engine failed")
            self._call(self._on_dead, State.REFUSED, EngineUnavailable(f"the engine failed: {error!r}"))
        finally:
            core.close()

    def _sink(self, client: str, deltas: list[Delta]) -> None:
        with self._lock:
            self._pending.extend(deltas)
            self._wake()

    def _publish(self, progress: Progress) -> None:
        with self._lock:
            self._progress = progress
            self._wake()

    def _on_loading(self, loading: Loading) -> None:
        self._detail = f"loading: {loading.phase} {loading.share:.0%}"

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._call(self._deliver)

    def _call(self, function, *arguments) -> None:  # type: ignore[no-untyped-def]
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("the caller's loop is closed; nobody is left to hear this")

    # ------------------------------------------------------------------ the caller's loop

    def _deliver(self) -> None:
        with self._lock:
            deltas, self._pending = self._pending, []
            progress, self._progress = self._progress, None
            self._woken = False
        if self._state is not State.READY:
            return
        if deltas:
            self._listener.on_deltas(deltas)
        if progress is not None:
            self._listener.on_progress(progress)

    def _on_ready(self, ready: Ready) -> None:
        if self._state is State.STARTING:
            self._state, self._detail = State.READY, "ready"
            self._listener.on_ready(ready)

    def _on_dead(self, state: State, error: PenstockError) -> None:
        if self._state is not State.CLOSED:
            self._state, self._detail = state, error.message
            self._listener.on_lost(error)
