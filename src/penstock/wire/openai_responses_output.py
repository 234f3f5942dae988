"""Output: the items of one answer as they grow, and the stream's events about them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET

from penstock.call import Finish, ReasoningDelta, TextDelta, ToolCallDelta, ToolSpec
from penstock.wire.openai_responses_body import (
    CustomToolCall,
    FunctionCall,
    IncompleteDetails,
    Logprob,
    OutputItem,
    OutputMessage,
    OutputText,
    ReasoningOutput,
    ReasoningText,
    Status,
    SummaryText,
    logprobs_body,
)
from penstock.wire.openai_responses_items import seal
from penstock.wire.openai_responses_tools import InputReader, local_name

StreamEvent = tuple[str, dict[str, Any]]  # (type, fields without type and sequence_number)

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class Output:
    """`add` deltas in order, then `end`; each returns the events to send. `items` are the items so far.

    `as_summary`: reasoning is shown as a summary. `sealed`: it is also given as `encrypted_content`.
    Ids are made of `key` and the item's index.
    """

    def __init__(self, key: str, tools: Iterable[ToolSpec], *, as_summary: bool, sealed: bool) -> None:
        self.items: list[OutputItem] = []
        self._key = key
        self._specs = {spec.name: spec for spec in tools}
        self._as_summary = as_summary
        self._sealed = sealed
        self._pieces: list[str] = []  # of the open item's text
        self._logprobs: list[Logprob] = []
        self._call_index: int | None = None  # of the open item, if it is a call
        self._input = InputReader()
        self._open = False

    def add(self, event: TextDelta | ReasoningDelta | ToolCallDelta) -> list[StreamEvent]:
        """Events of one delta; none for one without text, unless it begins a call."""
        if isinstance(event, ToolCallDelta):
            return self._add_call(event)
        if isinstance(event, ReasoningDelta):
            return self._add_reasoning(event) if event.text else []
        if not event.text and not event.logprobs:
            return []
        return self._add_text(event)

    def end(self, finish: Finish | None) -> list[StreamEvent]:
        """The open item ends as the answer does: whole, or cut by a limit or a failure (None)."""
        return self._close("incomplete" if finish is None or finish.reason in _INCOMPLETE else "completed")

    def status(self, finish: Finish | None) -> Status:
        return "incomplete" if finish is not None and finish.reason in _INCOMPLETE else "completed"

    def incomplete_details(self, finish: Finish | None) -> IncompleteDetails | None:
        reason = _INCOMPLETE.get(finish.reason) if finish is not None else None
        return None if reason is None else IncompleteDetails(reason)

    # ------------------------------------------------------------------ items

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._key}_{len(self.items)}"

    def _begin(self, item: OutputItem) -> list[StreamEvent]:
        self.items.append(item)
        self._open = True
        self._pieces, self._logprobs, self._input = [], [], InputReader()
        return [
            ("response.output_item.added", {"output_index": self._index, "item": msgspec.to_builtins(item)})
        ]

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    def _at(self, **fields: Any) -> dict[str, Any]:
        return {"item_id": self.items[-1].id, "output_index": self._index} | fields

    def _is_open(self, cls: type[Any]) -> bool:
        return self._open and isinstance(self.items[-1], cls)

    def _add_text(self, event: TextDelta) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        if not self._is_open(OutputMessage):
            events = self._close("completed")
            events += self._begin(OutputMessage(self._id("msg"), "in_progress", []))
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            events.append(("response.content_part.added", self._at(content_index=0, part=part)))
        logprobs = logprobs_body(event.logprobs)
        self._pieces.append(event.text)
        self._logprobs += logprobs
        delta = self._at(content_index=0, delta=event.text, logprobs=logprobs)
        events.append(("response.output_text.delta", delta))
        return events

    def _add_reasoning(self, event: ReasoningDelta) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        if not self._is_open(ReasoningOutput):
            events = self._close("completed")
            events += self._begin(ReasoningOutput(self._id("rs"), "in_progress"))
            events.append((f"response.{self._reasoning_part}.added", self._reasoning_at(part=self._part(""))))
        self._pieces.append(event.text)
        events.append((f"response.{self._reasoning_text}.delta", self._reasoning_at(delta=event.text)))
        return events

    @property
    def _reasoning_part(self) -> str:
        return "reasoning_summary_part" if self._as_summary else "content_part"

    @property
    def _reasoning_text(self) -> str:
        return "reasoning_summary_text" if self._as_summary else "reasoning_text"

    def _reasoning_at(self, **fields: Any) -> dict[str, Any]:
        return self._at(**{"summary_index" if self._as_summary else "content_index": 0}, **fields)

    def _part(self, text: str) -> SummaryText | ReasoningText:
        return SummaryText(text) if self._as_summary else ReasoningText(text)

    def _add_call(self, event: ToolCallDelta) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        if not self._open or self._call_index != event.call_index:
            events = self._close("completed")
            if event.id is None or event.name is None:
                raise ValueError(f"a delta of call {event.call_index}, which has not begun or is over")
            events += self._begin(self._new_call(event.id, event.name))
            self._call_index = event.call_index
        if not event.arguments:
            return events
        self._pieces.append(event.arguments)
        if isinstance(self.items[-1], CustomToolCall):
            text = self._input.feed(event.arguments)
            return [*events, *self._input_delta(text)]
        delta = self._at(delta=event.arguments)
        return [*events, ("response.function_call_arguments.delta", delta)]

    def _new_call(self, call_id: str, name: str) -> FunctionCall | CustomToolCall:
        spec = self._specs.get(name)
        namespace: Any = spec.namespace.name if spec and spec.namespace else UNSET
        shown = local_name(spec) if spec else name
        if spec is not None and spec.custom is not None:
            return CustomToolCall(self._id("ctc"), "in_progress", call_id, shown, "", namespace)
        return FunctionCall(self._id("fc"), "in_progress", call_id, shown, "", namespace)

    def _input_delta(self, text: str) -> list[StreamEvent]:
        item = self.items[-1]
        assert isinstance(item, CustomToolCall)
        item.input += text
        return [("response.custom_tool_call_input.delta", self._at(delta=text))] if text else []

    # ------------------------------------------------------------------ ends

    def _close(self, status: Status) -> list[StreamEvent]:
        """End the open item, if there is one."""
        if not self._open:
            return []
        item, text = self.items[-1], "".join(self._pieces)
        if isinstance(item, OutputMessage):
            events = self._close_message(item, text)
        elif isinstance(item, ReasoningOutput):
            events = self._close_reasoning(item, text)
        elif isinstance(item, CustomToolCall):
            events = self._input_delta(self._input.close())
            events.append(("response.custom_tool_call_input.done", self._at(input=item.input)))
        else:
            item.arguments = text
            done = self._at(name=item.name, arguments=text)
            events = [("response.function_call_arguments.done", done)]
        item.status = status
        self._open, self._call_index = False, None
        events.append(("response.output_item.done", {"output_index": self._index, "item": item}))
        return events

    def _close_message(self, item: OutputMessage, text: str) -> list[StreamEvent]:
        part = OutputText(text, [], self._logprobs)
        item.content = [part]
        done = self._at(content_index=0, text=text, logprobs=self._logprobs)
        return [
            ("response.output_text.done", done),
            ("response.content_part.done", self._at(content_index=0, part=part)),
        ]

    def _close_reasoning(self, item: ReasoningOutput, text: str) -> list[StreamEvent]:
        if self._as_summary:
            item.summary = [SummaryText(text)]
        else:
            item.content = [ReasoningText(text)]
        if self._sealed:
            item.encrypted_content = seal(text)
        return [
            (f"response.{self._reasoning_text}.done", self._reasoning_at(text=text)),
            (f"response.{self._reasoning_part}.done", self._reasoning_at(part=self._part(text))),
        ]
