"""What decoders of event streams share: SSE bytes → Events, whatever a format's frames mean.

Invariants: any split of the bytes gives the same events; the last event is Done or Failure, exactly once;
after it everything else is ignored. A stream without its format's end is a Failure: a cut answer never
passes for a whole one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from penstock.call import Event, Failure
from penstock.wire import sse


class UpstreamEvents(ABC):
    """`feed(bytes)` returns the events that they complete; `close()` says what their end means."""

    def __init__(self) -> None:
        self._parser = sse.SseParser()
        self._over = False  # Done or Failure was given

    def feed(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        if self._over:
            return events
        try:
            frames = self._parser.feed(data)
        except ValueError as error:
            return [self._fail(f"the upstream sent {error}")]
        for _, payload in frames:
            events.extend(self._frame(payload))
            if self._over:
                break
        return events

    def close(self) -> list[Event]:
        """[] after the format's own end or an error, else a Failure."""
        return [] if self._over else [self._fail("the upstream closed the stream before its end")]

    @abstractmethod
    def _frame(self, payload: bytes) -> list[Event]:
        """What the data of one event says. Sets `_over` at the end."""

    def _fail(self, message: str) -> Failure:
        self._over = True
        return Failure("service_unavailable_error", message, 503)
