"""Events of one answer → the Responses format's stream, or its whole body.

Invariants: `sequence_number` counts from 0 without a gap; an item's id, index and content in the stream are
those of the final object, since one class (`Output`) makes both; an item ends before the next begins; each
delta belongs to a part that was added and is not done. The stream ends in `response.completed`,
`response.incomplete` or `response.failed`, the last followed by `error`, which SDKs raise; then `[DONE]`.

Reasoning is `reasoning_text`. Where the caller asked for a summary it is the summary: nothing here makes a
shorter one, and clients that ask show nothing else.
"""

from __future__ import annotations

from typing import Any

from penstock.call import (
    Call,
    Done,
    Event,
    Failure,
    Finish,
    PromptEcho,
    ReasoningDelta,
    TextDelta,
    Timings,
    ToolCallDelta,
    Usage,
)
from penstock.wire import sse
from penstock.wire.fold import Fold
from penstock.wire.openai_responses_body import (
    ResponseBody,
    encode_body,
    error_body,
    response_body,
    usage_body,
)
from penstock.wire.openai_responses_output import Output

ID_PREFIX = "resp_"
LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"


class Encoder:
    """Events of one answer → SSE bytes (`feed`, `close`) or the whole body (`body`).

    Made per request. `created` is Unix seconds; `model` is the name that the answer shows.
    """

    media_type = sse.MEDIA_TYPE
    keep_alive = sse.KEEP_ALIVE

    def __init__(self, call: Call, request_id: str, created: int, model: str) -> None:
        self.id = ID_PREFIX + request_id
        self._request_id = request_id
        self._call = call
        self._created = created
        self._model = model
        self._number = 0
        self._started = False
        self._output = self._new_output()
        self._finish: Finish | None = None

    def feed(self, event: Event) -> bytes:
        """SSE frames of one event; b"" where there is nothing to say yet."""
        frames = b"" if self._started else self._start()
        if isinstance(event, Finish):
            self._finish = event
            return frames
        if isinstance(event, Done):
            return frames + self._frames(self._output.end(self._finish)) + self._last(event)
        if isinstance(event, Failure):
            return frames + self._failed(event)
        if isinstance(event, PromptEcho):
            return frames
        return frames + self._frames(self._output.add(event))

    def close(self) -> bytes:
        return sse.DONE

    def body(self, fold: Fold) -> bytes:
        """The non-streaming body. The one choice of `fold` must be finished."""
        output, finish = self._new_output(), None
        for choice in fold.choices():
            finish = choice.finish
            calls = choice.calls
            for run in choice.runs:
                if run.kind is TextDelta:
                    output.add(TextDelta(choice.index, run.text, (), tuple(run.logprobs) or None))
                elif run.kind is ReasoningDelta:
                    output.add(ReasoningDelta(choice.index, run.text))
                else:
                    assert run.call_index is not None
                    call = calls[run.call_index]
                    text = "".join(call.pieces)
                    output.add(ToolCallDelta(choice.index, run.call_index, call.id, call.name, text))
        output.end(finish)
        return encode_body(self._final(output, finish, fold.usage, fold.timings))

    def cancelled(self) -> bytes:
        """The object of an answer that is ended before its end."""
        self._output.end(None)
        body = self._object()
        body.status, body.output = "cancelled", self._output.items
        return encode_body(body)

    def _new_output(self) -> Output:
        extra = self._call.extra
        return Output(
            self._request_id,
            self._call.tools,
            as_summary=bool(extra.get("reasoning", {}).get("summary")),
            sealed=ENCRYPTED in extra.get("include", ()),
        )

    def _object(self) -> ResponseBody:
        return response_body(self._call, self.id, self._created, self._model)

    def _final(self, output: Output, finish: Finish | None, usage: Usage, timings: Timings) -> ResponseBody:
        body = self._object()
        body.output = output.items
        body.usage = usage_body(usage)
        body.status = output.status(finish)
        if body.status == "completed":
            body.completed_at = self._created + round(timings.total_s)
        else:
            body.incomplete_details = output.incomplete_details(finish)
        return body

    def _last(self, event: Done) -> bytes:
        body = self._final(self._output, self._finish, event.usage, event.timings)
        return self._frame(f"response.{body.status}", {"response": body})

    def _failed(self, failure: Failure) -> bytes:
        closing = self._frames(self._output.end(None))
        body = self._object()
        body.status, body.output, body.error = "failed", self._output.items, error_body(failure)
        detail = {"message": body.error.message, "code": body.error.code, "param": failure.param}
        error = detail | {"error": detail | {"type": failure.kind}}
        return closing + self._frame("response.failed", {"response": body}) + self._frame("error", error)

    def _start(self) -> bytes:
        self._started = True
        body = self._object()
        return self._frame("response.created", {"response": body}) + self._frame(
            "response.in_progress", {"response": body}
        )

    def _frames(self, events: list[tuple[str, dict[str, Any]]]) -> bytes:
        return b"".join([self._frame(kind, fields) for kind, fields in events])

    def _frame(self, kind: str, fields: dict[str, Any]) -> bytes:
        payload = {"type": kind, "sequence_number": self._number} | fields
        self._number += 1
        return sse.named_frame(kind.encode(), encode_body(payload))
