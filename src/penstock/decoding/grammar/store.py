"""GrammarStore: compiled grammars by their spec, made off the step loop by a few threads.

Invariants: one compilation per spec, whoever asks for it meanwhile; at most `entries` compiled ones are kept,
the least recently used goes first; at most `pending` wait, beyond it a request is told to come back. What a
request holds stays known while it lives, whatever was forgotten meanwhile: no step compiles it again.
What took too long is not remembered. What counts is the processor's time, where the system tells it: on a
busy machine a simple schema waits longer, and is not refused for it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from weakref import WeakValueDictionary

from penstock.decoding.grammar.backend import CompiledGrammar, GrammarBackend, Vocabulary
from penstock.decoding.grammar.spec import GrammarSpec
from penstock.errors import EngineUnavailable, InvalidRequest, Overloaded

ENTRIES = 256
PENDING = 128
WORKERS = 2
COMPILE_S = 10.0  # of a processor, for one grammar
RECHECK_S = 0.25  # between two looks at a compilation that was kept from running
WAIT_S = 60.0  # by the clock: a request waits no longer for its grammar


class _Making:
    """The processor's time that one compilation has taken, as seen from any thread."""

    def __init__(self) -> None:
        self.asked_s = time.monotonic()
        self._clock: int | None = None
        self._began_s = 0.0

    def begin(self) -> None:
        """In the thread that compiles."""
        if hasattr(time, "pthread_getcpuclockid"):
            clock = time.pthread_getcpuclockid(threading.get_ident())
            self._began_s = time.clock_gettime(clock)
            self._clock = clock

    def left_s(self, compile_s: float, wait_s: float) -> float:
        """Until it has had its time at the earliest; 0.0 if that is over. Before its end only."""
        waited = time.monotonic() - self.asked_s
        if self._clock is None:
            return max(0.0, wait_s - waited)
        used = time.clock_gettime(self._clock) - self._began_s
        return max(0.0, min(compile_s - used, wait_s - waited))


class GrammarStore:
    def __init__(
        self,
        backend: GrammarBackend,
        vocabulary: Callable[[], Vocabulary],
        entries: int = ENTRIES,
        pending: int = PENDING,
        compile_s: float = COMPILE_S,
        wait_s: float = WAIT_S,
    ) -> None:
        self._backend = backend
        self.vocabulary = vocabulary
        self._entries = entries
        self._pending = pending
        self._compile_s = compile_s
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._found: OrderedDict[GrammarSpec, Future[CompiledGrammar]] = OrderedDict()
        self._held: WeakValueDictionary[GrammarSpec, CompiledGrammar] = WeakValueDictionary()
        self._open = 0
        self._workers: ThreadPoolExecutor | None = None

    @property
    def fallbacks(self) -> int:
        """Grammars that a second backend compiled."""
        return self._backend.fallbacks

    def compile(self, spec: GrammarSpec) -> Future[CompiledGrammar]:
        """Done at once if it is known. Its error is the InvalidRequest that says why it can't be honoured.

        Raises Overloaded if too many wait.
        """
        with self._lock:
            future = self._found.get(spec)
            if future is not None:
                self._found.move_to_end(spec)
                return future
            if (held := self._held.get(spec)) is not None:
                future = Future()
                future.set_result(held)
                return future
            if self._open >= self._pending:
                raise Overloaded(f"{self._open} grammars wait to be compiled; retry later", retry_after_s=1.0)
            if self._workers is None:
                self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="penstock-grammar")
            self._open += 1
            making = _Making()
            made = self._workers.submit(self._make, spec, making)
            future = self._found[spec] = Future()
            while len(self._found) > self._entries:
                self._found.popitem(last=False)
        self._watch(spec, made, future, making)
        made.add_done_callback(lambda done: self._deliver(done, spec, future))
        return future

    def _make(self, spec: GrammarSpec, making: _Making) -> CompiledGrammar:
        making.begin()
        return self._backend.compile(spec)

    def _watch(
        self,
        spec: GrammarSpec,
        made: Future[CompiledGrammar],
        future: Future[CompiledGrammar],
        making: _Making,
    ) -> None:
        """Give it up when its time is over."""
        if made.done():
            return
        left_s = making.left_s(self._compile_s, self._wait_s)
        if left_s <= 0.0:
            self._give_up(spec, future)
            return
        timer = threading.Timer(max(left_s, RECHECK_S), self._watch, (spec, made, future, making))
        timer.daemon = True
        timer.start()
        made.add_done_callback(lambda _: timer.cancel())

    def compiled(self, spec: GrammarSpec) -> CompiledGrammar:
        """Waits for it where it must."""
        return self.compile(spec).result()

    def close(self) -> None:
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)

    def _deliver(
        self, made: Future[CompiledGrammar], spec: GrammarSpec, future: Future[CompiledGrammar]
    ) -> None:
        with self._lock:
            self._open -= 1
            if not made.cancelled() and made.exception() is None:
                self._held[spec] = made.result()
        with contextlib.suppress(InvalidStateError):  # it was given up
            if made.cancelled():
                future.set_exception(EngineUnavailable("the engine is shutting down"))
            elif (error := made.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(made.result())

    def _give_up(self, spec: GrammarSpec, future: Future[CompiledGrammar]) -> None:
        with self._lock:
            if self._found.get(spec) is future:
                del self._found[spec]
        with contextlib.suppress(InvalidStateError):  # it came at this very moment
            future.set_exception(
                InvalidRequest(
                    f"grammar: it takes longer than {self._compile_s:g} s of a processor, or "
                    f"{self._wait_s:g} s by the clock, to compile; make it simpler"
                )
            )
