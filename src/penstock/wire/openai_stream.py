"""The upstream side of both OpenAI formats: SSE bytes → Events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from penstock.call import Done, Event, Finish, Usage
from penstock.wire.openai_common import ErrorDetail, UsageBody, failure_event, usage_event
from penstock.wire.upstream_events import UpstreamEvents


class ChunkChoice(Protocol):
    index: int
    finish_reason: str | None
    stop_reason: Any


class Chunk(Protocol):
    choices: Any
    usage: Any  # UsageBody, null or absent
    error: Any  # ErrorDetail, null or absent


_REASONS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}


class ChunkStream(UpstreamEvents):
    """See UpstreamEvents; the end is `[DONE]`, or the finish of every choice."""

    def __init__(
        self, decode: Callable[[bytes], Any], choice_events: Callable[[Any], Sequence[Event]]
    ) -> None:
        super().__init__()
        self._decode = decode
        self._choice_events = choice_events
        self._usage = Usage()
        self._open: set[int] = set()
        self._finished = False

    def close(self) -> list[Event]:
        """[] after `[DONE]` or an error; Done if every choice had finished; else a Failure."""
        if self._over:
            return []
        if self._finished and not self._open:
            self._over = True
            return [Done(self._usage)]
        return super().close()

    def _frame(self, payload: bytes) -> list[Event]:
        if payload == b"[DONE]":
            return self.close()
        try:
            chunk = self._decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return [self._fail(f"the upstream sent a chunk that is not of this format: {error}")]
        return self._chunk(chunk)

    def _chunk(self, chunk: Chunk) -> list[Event]:
        if isinstance(chunk.error, ErrorDetail):
            self._over = True
            return [failure_event(chunk.error)]
        if isinstance(chunk.usage, UsageBody):
            self._usage = usage_event(chunk.usage)
        events: list[Event] = []
        for choice in chunk.choices:
            self._open.add(choice.index)
            events.extend(self._choice_events(choice))
            if choice.finish_reason:
                self._finished = True
                self._open.discard(choice.index)
                events.append(_finish(choice))
        return events


def _finish(choice: ChunkChoice) -> Finish:
    """Unknown reasons (other servers have some) read as "stop": the choice did end by itself."""
    reason: Any = _REASONS.get(choice.finish_reason or "", "stop")
    stop = choice.stop_reason
    return Finish(choice.index, reason, stop if isinstance(stop, str | int) else None)
