"""From a choice's text to its reasoning, its answer and its tool calls, as events.

Sits between the assembler of a choice and whoever reads its events. Invariants: cutting the text into other
deltas changes how events are cut, never what they add up to; token ids and log-probabilities all come out,
with the first event that their delta gives; a call is given when it is complete, so nobody holds one that
turns out to be none; a choice that made calls and stopped by itself finishes with "tool_calls".
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence

import msgspec

from penstock.call import Event, Finish, ReasoningDelta, TextDelta, ToolCallDelta, ToolSpec
from penstock.text.output.events import (
    CallArguments,
    CallEnd,
    CallStart,
    Malformed,
    ParsedEvent,
    Reasoning,
    Text,
)
from penstock.text.output.format import OutputFormat

log = logging.getLogger("penstock.text")


class AnswerParser:
    """`prompt`: the end of the rendered prompt, which may have opened a reasoning section."""

    def __init__(self, form: OutputFormat, tools: Sequence[ToolSpec], prompt: str) -> None:
        self._parser = form.parser(tools, prompt)
        self._started: dict[int, tuple[str, list[str]]] = {}  # calls that are being written: name, arguments
        self._calls = 0

    def convert(self, events: Sequence[Event]) -> list[Event]:
        """Events of the assembler, of this choice, to those that a reader gets."""
        found: list[Event] = []
        for event in events:
            if isinstance(event, TextDelta):
                found.extend(self._text(event))
            elif isinstance(event, Finish):
                found.extend(self._events(event.index, self._parser.close()))
                called = self._calls and event.reason == "stop" and event.stop is None
                found.append(msgspec.structs.replace(event, reason="tool_calls") if called else event)
            else:
                found.append(event)
        return found

    def _text(self, delta: TextDelta) -> list[Event]:
        events = self._events(delta.index, self._parser.feed(delta.text))
        if not delta.token_ids:
            return events
        first = events[0] if events else None
        if isinstance(first, TextDelta):
            head: Event = TextDelta(delta.index, first.text, delta.token_ids, delta.logprobs)
        elif isinstance(first, ReasoningDelta) and delta.logprobs is None:
            head = ReasoningDelta(delta.index, first.text, delta.token_ids)
        else:
            return [TextDelta(delta.index, "", delta.token_ids, delta.logprobs), *events]
        return [head, *events[1:]]

    def _events(self, index: int, parsed: Sequence[ParsedEvent]) -> list[Event]:
        found: list[Event] = []
        for event in parsed:
            match event:
                case Text(text):
                    found.append(TextDelta(index, text))
                case Reasoning(text):
                    found.append(ReasoningDelta(index, text))
                case CallStart(number, name):
                    self._started[number] = (name, [])
                case CallArguments(number, text):
                    self._started[number][1].append(text)
                case CallEnd(number, repaired):
                    name, arguments = self._started.pop(number)
                    found.append(
                        ToolCallDelta(index, self._calls, _new_id(), name, "".join(arguments) or "{}")
                    )
                    self._calls += 1
                    if repaired:
                        log.info("a call of %s was repaired: %s", name, repaired)
                case Malformed(_, reason, taken_back):
                    log.info("what looks like a tool call is given as text: %s", reason)
                    self._started.pop(-1 if taken_back is None else taken_back, None)
        return found


def _new_id() -> str:
    return f"call_{secrets.token_hex(12)}"
