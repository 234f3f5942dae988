"""Backlog: between the service's events and a client that may read slower than tokens come.

A pump task takes events from the service as they come; while the client's socket is full they pile
up here, deltas of one choice merging into one, so a slow reader costs its text and little more.

Invariants: order within a choice is kept, and merging never crosses another kind of event; beyond
`MAX_EVENTS` or `MAX_BYTES` the pump waits, or ends the call if the client is what it waits for;
leaving the context closes the service's iterator at once, whatever it was doing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType

from penstock.api.errors import SlowReader
from penstock.call import Event, PromptEcho, ReasoningDelta, TextDelta, TokenLogprob, ToolCallDelta

MAX_EVENTS = 4096
MAX_BYTES = 4 * 2**20


class _Run:
    """Deltas of one choice that will be one event."""

    __slots__ = ("first", "ids", "logprobs", "pieces")

    def __init__(self, first: TextDelta | ReasoningDelta | ToolCallDelta) -> None:
        self.first = first
        self.pieces: list[str] = []
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] | None = None
        self.add(first)

    def takes(self, event: Event) -> bool:
        first = self.first
        if type(event) is not type(first):
            return False
        if isinstance(event, ToolCallDelta):
            return (
                isinstance(first, ToolCallDelta) and event.call_index == first.call_index and event.id is None
            )
        return True

    def add(self, event: TextDelta | ReasoningDelta | ToolCallDelta) -> None:
        if isinstance(event, ToolCallDelta):
            self.pieces.append(event.arguments)
            return
        self.pieces.append(event.text)
        self.ids.extend(event.token_ids)
        if isinstance(event, TextDelta) and event.logprobs is not None:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs.extend(event.logprobs)

    def event(self) -> Event:
        first, text = self.first, "".join(self.pieces)
        if isinstance(first, ToolCallDelta):
            return ToolCallDelta(first.index, first.call_index, first.id, first.name, text)
        if isinstance(first, ReasoningDelta):
            return ReasoningDelta(first.index, text, tuple(self.ids))
        logprobs = None if self.logprobs is None else tuple(self.logprobs)
        return TextDelta(first.index, text, tuple(self.ids), logprobs)


class Backlog:
    """`async with Backlog(events) as backlog: while (batch := await backlog.take()) is not None: …`

    `on_event` sees each event as it comes from the service, before any merging. `on_slow` is called
    when a client that does not read ends the call: it must make the pending write return.
    """

    def __init__(
        self,
        events: AsyncIterator[Event],
        on_event: Callable[[Event], None],
        on_slow: Callable[[], None],
        *,
        max_events: int = MAX_EVENTS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._events = events
        self._on_event = on_event
        self._on_slow = on_slow
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._items: list[Event | _Run] = []
        self._open_runs: dict[int, _Run] = {}  # choice -> the run that its next delta may join
        self._bytes = 0
        self._over = False
        self._error: BaseException | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self.sending = False  # set by the consumer while it waits for the client's socket

    async def __aenter__(self) -> Backlog:
        self._task = asyncio.create_task(self._pump(), name="penstock-pump")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))

    def fail(self, error: Exception) -> None:
        """End the call now: what is held is dropped, the service's iterator closed; `take` raises `error`,
        also where the service has ended but its last events have not been taken. The first error stands."""
        self._items.clear()
        self._over = True
        self._error = self._error or error
        self._wake.set()
        if asyncio.current_task() is not self._task:
            self._task.cancel()

    async def take(self, timeout_s: float | None = None) -> list[Event] | None:
        """All that has come since the last take, merged. [] after `timeout_s` without anything;
        None after the service's last event. Raises what the service raised, or what `fail` got."""
        if not self._wake.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return []
        if self._items:
            batch = [item.event() if isinstance(item, _Run) else item for item in self._items]
            self._items.clear()
            self._open_runs.clear()
            self._bytes = 0
            self._room.set()
            if not self._over:
                self._wake.clear()
            return batch
        if self._error is not None:
            raise self._error
        return None

    async def _pump(self) -> None:
        try:
            async for event in self._events:
                self._on_event(event)
                self._push(event)
                while self._full() and not self._over:
                    if self.sending:
                        raise SlowReader(f"{len(self._items)} events, about {self._bytes} bytes behind")
                    self._room.clear()
                    await self._room.wait()
        except SlowReader as error:
            self.fail(error)
            self._on_slow()
        except Exception as error:  # noqa: BLE001  the consumer gets it, through take()
            self._end(error)
        finally:
            self._end(None)
            close = getattr(self._events, "aclose", None)
            if close is not None:
                await close()

    def _end(self, error: Exception | None) -> None:
        if not self._over:
            self._over = True
            self._error = error
        self._wake.set()

    def _full(self) -> bool:
        return len(self._items) > self._max_events or self._bytes > self._max_bytes

    def _push(self, event: Event) -> None:
        self._bytes += _size(event)
        signed = isinstance(event, ReasoningDelta) and event.signature is not None  # the end of a section
        if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta) and not signed:
            run = self._open_runs.get(event.index)
            if run is not None and run.takes(event):
                run.add(event)
            else:
                run = self._open_runs[event.index] = _Run(event)
                self._items.append(run)
        else:
            index = getattr(event, "index", None)
            if index is not None:
                self._open_runs.pop(index, None)
            self._items.append(event)
        self._wake.set()


def _size(event: Event) -> int:
    """About how many bytes an event holds; the constants are CPython's object sizes, rounded."""
    if isinstance(event, TextDelta):
        return 100 + len(event.text) + 36 * len(event.token_ids) + _logprob_size(event.logprobs)
    if isinstance(event, ReasoningDelta):
        return 100 + len(event.text) + 36 * len(event.token_ids)
    if isinstance(event, ToolCallDelta):
        return 150 + len(event.arguments)
    if isinstance(event, PromptEcho):
        return 200 + len(event.text) + 36 * len(event.token_ids) + _logprob_size(event.logprobs)
    return 200


def _logprob_size(logprobs: tuple[TokenLogprob, ...] | None) -> int:
    return sum(250 + 220 * len(item.top) for item in logprobs or ())
