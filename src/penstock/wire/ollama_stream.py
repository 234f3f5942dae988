"""Answers of Ollama's two generating routes: Events → lines of JSON or one body, and lines → Events.

Invariants: every line is one JSON object with `done`; exactly the last has `done: true`, the reason, the
counts and the durations (whole nanoseconds), or it is `{"error": …}`; the fields of the lines added up are
those of the body. Calls are shown whole, before the last line. Answers have one choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from penstock.call import (
    Call,
    Done,
    Event,
    Failure,
    Finish,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from penstock.wire.fold import Fold
from penstock.wire.ollama_common import KEEP_ALIVE, MEDIA_TYPE, ErrorLine, is_load, is_unload, line, rfc3339
from penstock.wire.ollama_messages import AnswerToolCall, answer_calls
from penstock.wire.openai_common import encode, finite
from penstock.wire.sse import MAX_EVENT_BYTES


class TopBody(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class LogprobBody(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopBody] | UnsetType = UNSET


class AnswerFields(Struct, kw_only=True):
    """Of every line and body. Durations in nanoseconds; `load_duration`: the wait until the engine began."""

    model: str = ""
    created_at: str = ""
    done: bool = False
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    logprobs: list[LogprobBody] | UnsetType = UNSET


class Content(Struct):
    """What a line or body says."""

    text: str = ""
    thinking: str = ""
    calls: list[AnswerToolCall] = []
    logprobs: tuple[TokenLogprob, ...] | list[TokenLogprob] | None = None


class MakeAnswer(Protocol):
    """Content in the fields of one route, beside those that are common."""

    def __call__(self, content: Content, **common: Any) -> AnswerFields: ...


class LineEncoder:
    """Events of one answer → lines (`feed`, `close`) or the whole body (`body`).

    Made per request. `created` is Unix seconds; `model` is the name that the answer shows.
    """

    media_type = MEDIA_TYPE
    keep_alive = KEEP_ALIVE

    def __init__(self, call: Call, created: int, model: str, answer: MakeAnswer) -> None:
        self._answer = answer
        self._head: dict[str, Any] = {"model": model, "created_at": rfc3339(created)}
        self._reason = "unload" if is_unload(call) else "load" if is_load(call) else ""
        self._finish: Finish | None = None
        self._calls = Fold()

    def feed(self, event: Event) -> bytes:
        """Lines of one event; b"" where there is nothing to say yet."""
        if isinstance(event, TextDelta):
            if not event.text and not event.logprobs:
                return b""
            return self._line(Content(event.text, logprobs=event.logprobs or None))
        if isinstance(event, ReasoningDelta):
            return self._line(Content(thinking=event.text)) if event.text else b""
        if isinstance(event, ToolCallDelta):
            self._calls.add(event)
            return b""
        if isinstance(event, Finish):
            self._finish = event
            return self._called()
        if isinstance(event, Done):
            return line(self._last(Content(), event.usage, event.timings))
        if isinstance(event, Failure):
            return line(ErrorLine(event.message))
        return b""

    def close(self) -> bytes:
        return b""

    def body(self, fold: Fold) -> bytes:
        """The non-streaming body. The choice of `fold` must be finished."""
        choice = fold.choices()[0]
        self._finish = choice.finish
        calls, rest = answer_calls(choice.tool_calls)
        content = Content(choice.text + rest, choice.reasoning, calls, choice.logprobs or None)
        return encode(self._last(content, fold.usage, fold.timings))

    def _line(self, content: Content) -> bytes:
        return line(self._fields(content))

    def _fields(self, content: Content, **last: Any) -> AnswerFields:
        answer = self._answer(content, **self._head, **last)
        if content.logprobs is not None:
            answer.logprobs = [_logprob_body(item) for item in content.logprobs]
        return answer

    def _called(self) -> bytes:
        choices = self._calls.choices()
        if not choices:
            return b""
        calls, rest = answer_calls(choices[0].tool_calls)
        return self._line(Content(rest, calls=calls))

    def _last(self, content: Content, usage: Usage, timings: Timings) -> AnswerFields:
        assert self._finish is not None, "an answer without Finish"
        reason = self._reason or ("length" if self._finish.reason == "length" else "stop")
        if self._reason:
            return self._fields(content, done=True, done_reason=reason)
        return self._fields(
            content,
            done=True,
            done_reason=reason,
            total_duration=_nanoseconds(timings.total_s),
            load_duration=_nanoseconds(timings.queue_s),
            prompt_eval_count=usage.prompt_tokens,
            prompt_eval_duration=_nanoseconds(timings.ttft_s - timings.queue_s),
            eval_count=usage.completion_tokens,
            eval_duration=_nanoseconds(timings.total_s - timings.ttft_s),
        )


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


def _logprob_body(item: TokenLogprob) -> LogprobBody:
    body = LogprobBody(item.token, finite(item.logprob or 0.0), list(item.bytes))
    if item.top:
        body.top_logprobs = [TopBody(top.token, finite(top.logprob), list(top.bytes)) for top in item.top]
    return body


# --------------------------------------------------------------------------- upstream side


class UpstreamCall(Struct):
    """A call as upstreams write it: some without an id."""

    class Function(Struct):
        name: str
        arguments: Raw = Raw(b"{}")

    function: Function
    id: str = ""


class UpstreamLine(AnswerFields, kw_only=True):
    """What is read of an upstream's line; `error` stands alone."""

    error: str | UnsetType = UNSET


# (text, thinking, calls) of a decoded line
ReadLine = Callable[[Any], tuple[str, str, list[UpstreamCall]]]


class LineStream:
    """Lines of an upstream → Events: `feed` takes any split of the bytes, `close` their end.

    The last event is Done or Failure, exactly once; a cut answer never passes for a whole one.
    """

    def __init__(self, decode: Callable[[bytes], Any], read: ReadLine) -> None:
        self._decode = decode
        self._read = read
        self._tail = bytearray()
        self._num_calls = 0
        self._over = False

    def feed(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        *lines, tail = data.split(b"\n")
        for part in lines:
            self._tail += part
            whole = bytes(self._tail)
            self._tail.clear()
            if not self._over and whole.strip():
                events.extend(self._line(whole))
        self._tail += tail
        if len(self._tail) > MAX_EVENT_BYTES and not self._over:
            events.append(self._fail(f"the upstream sent a line of over {MAX_EVENT_BYTES} bytes"))
        return events

    def close(self) -> list[Event]:
        """[] after the last line; else what an unended line says, and a Failure unless that is `done`."""
        events = self.feed(b"\n") if self._tail.strip() else []
        if not self._over:
            events.append(self._fail("the upstream closed the stream before its end"))
        return events

    def _line(self, whole: bytes) -> list[Event]:
        try:
            found: UpstreamLine = self._decode(whole)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return [self._fail(f"the upstream sent a line that is not of this format: {error}")]
        if isinstance(found.error, str):
            return [self._fail(found.error)]
        events = self._content(found)
        if found.done:
            self._over = True
            reason: FinishReason = "tool_calls" if self._num_calls else "stop"
            if found.done_reason == "length":
                reason = "length"
            events += [Finish(0, reason), Done(_usage(found), _timings(found))]
        return events

    def _content(self, found: UpstreamLine) -> list[Event]:
        events: list[Event] = []
        text, thinking, calls = self._read(found)
        if thinking:
            events.append(ReasoningDelta(0, thinking))
        logprobs = tuple(map(_logprob_event, found.logprobs)) if isinstance(found.logprobs, list) else None
        if text or logprobs:
            events.append(TextDelta(0, text, (), logprobs))
        for call in calls:
            index, self._num_calls = self._num_calls, self._num_calls + 1
            arguments = bytes(call.function.arguments).decode()
            events.append(ToolCallDelta(0, index, call.id or f"call_{index}", call.function.name, arguments))
        return events

    def _fail(self, message: str) -> Failure:
        self._over = True
        return Failure("service_unavailable_error", message, 503)


def _usage(found: UpstreamLine) -> Usage:
    return Usage(found.prompt_eval_count or 0, found.eval_count or 0)


def _timings(found: UpstreamLine) -> Timings:
    load, prompt = found.load_duration or 0, found.prompt_eval_duration or 0
    return Timings(load / 1e9, (load + prompt) / 1e9, (found.total_duration or 0) / 1e9)


def _logprob_event(item: LogprobBody) -> TokenLogprob:
    """token_id is -1: the format does not carry it."""
    tops = item.top_logprobs or []
    return TokenLogprob(
        item.token,
        item.logprob,
        _bytes(item.token, item.bytes),
        -1,
        tuple(TopLogprob(top.token, top.logprob, _bytes(top.token, top.bytes), -1) for top in tops),
    )


def _bytes(token: str, given: list[int] | None) -> bytes:
    return token.encode("utf-8", "replace") if given is None else bytes(given)
