"""Answers of the Anthropic format: Events → frames or a body (`Encoder`), frames → Events (`Decoder`).

Invariants of a stream: `message_start` first; blocks one after the other, each with one start, deltas of its
own type and one stop, numbered from 0; then `message_delta` with the stop reason and the whole usage, and
`message_stop`. An `error` event ends a stream that failed. `ping` keeps it alive.
The prompt is counted when the answer is over, so `message_start` says 0 tokens and `message_delta` the sums.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from penstock.call import (
    Call,
    Done,
    Event,
    Failure,
    Finish,
    PromptEcho,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from penstock.wire import sse
from penstock.wire.anthropic_content import input_of
from penstock.wire.anthropic_dialect import ANTHROPIC
from penstock.wire.anthropic_signature import SIGNER, Signing
from penstock.wire.fold import ChoiceFold, Fold, Run
from penstock.wire.openai_common import encode
from penstock.wire.upstream_events import UpstreamEvents

ID_PREFIX = "msg_"
PING = sse.named_frame(b"ping", b'{"type":"ping"}')
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class OutputDetails(Struct):
    thinking_tokens: int = 0


class UsageBody(Struct):
    """Counts of tokens. The prompt is the sum of the three input counts; none is in two of them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens_details: OutputDetails | None = None


class MessageBody(Struct):
    """Body of a message: of a whole answer, or with empty `content` at the start of a stream."""

    id: str
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: UsageBody
    stop_details: None = None
    type: str = "message"
    role: str = "assistant"


def usage_body(usage: Usage) -> UsageBody:
    return UsageBody(
        usage.prompt_tokens - usage.cached_tokens,
        usage.completion_tokens,
        0,
        usage.cached_tokens,
        OutputDetails(usage.reasoning_tokens),
    )


# --------------------------------------------------------------------------- serving side


class Encoder:
    """Events of one answer → SSE bytes (`feed`, `close`) or the whole body (`body`).

    Made per request. `created` is not shown by this format; `model` is the name that the answer shows.
    """

    media_type = sse.MEDIA_TYPE
    keep_alive = PING

    def __init__(self, call: Call, request_id: str, created: int, model: str) -> None:
        self.id = ID_PREFIX + request_id
        self._model = model
        self._max_tokens = call.sampling.max_tokens
        self._omits_thinking = (call.extra.get("thinking") or {}).get("display") == "omitted"
        self._started = False
        self._blocks = 0  # begun so far
        self._open: type[Event] | None = None  # what the open block is made of
        self._call_index = -1  # of the open block, or of the last that was a call
        self._calls = 0
        self._signing: Signing | None = None  # of the open thinking block
        self._finish: Finish | None = None

    def feed(self, event: Event) -> bytes:
        """SSE frames of one event; b"" where there is nothing to say yet."""
        if isinstance(event, Failure):
            return sse.named_frame(b"error", ANTHROPIC.error_body(event, None))
        opening = b"" if self._started else self._message_start()
        if isinstance(event, TextDelta):
            return opening + (self._text(event.text) if event.text else b"")
        if isinstance(event, ReasoningDelta):
            return opening + self._reasoning(event)
        if isinstance(event, ToolCallDelta):
            return opening + self._tool_call(event)
        if isinstance(event, Finish):
            self._finish = event
            return opening + self._stop_block()
        return opening if isinstance(event, PromptEcho) else opening + self._end(event)

    def close(self) -> bytes:
        return b""

    def body(self, fold: Fold) -> bytes:
        """The non-streaming body. The one choice of `fold` must be finished."""
        (choice,) = fold.choices()
        assert choice.finish is not None, "the choice has no Finish"
        content = [block for run in _merged(choice.runs) if (block := self._block(run, choice)) is not None]
        reason, sequence = self._stop_reason(choice.finish, bool(choice.calls), fold.usage)
        return encode(MessageBody(self.id, self._model, content, reason, sequence, usage_body(fold.usage)))

    # ---- blocks of a stream

    def _text(self, text: str) -> bytes:
        start = b"" if self._open is TextDelta else self._start(TextDelta, {"type": "text", "text": ""})
        return start + self._delta(b'"text_delta","text":', text)

    def _reasoning(self, event: ReasoningDelta) -> bytes:
        if event.redacted:
            block = {"type": "redacted_thinking", "data": event.signature or ""}
            return self._start(ReasoningDelta, block) + self._stop_block()
        if not event.text and event.signature is None:
            return b""
        frames = b""
        if self._open is not ReasoningDelta:
            frames = self._start(ReasoningDelta, {"type": "thinking", "thinking": "", "signature": ""})
            self._signing = SIGNER.begin(self._model)
        if event.text and not self._omits_thinking:
            assert self._signing is not None
            self._signing.add(event.text)
            frames += self._delta(b'"thinking_delta","thinking":', event.text)
        if event.signature is not None:
            frames += self._stop_block(event.signature)
        return frames

    def _tool_call(self, event: ToolCallDelta) -> bytes:
        frames = b""
        if self._open is not ToolCallDelta or event.call_index != self._call_index:
            if event.call_index < self._calls:
                raise ValueError(
                    f"tool call {event.call_index} goes on after another block began; this format has one "
                    "block after the other"
                )
            block = {"type": "tool_use", "id": event.id or "", "name": event.name or "", "input": {}}
            frames = self._start(ToolCallDelta, block)
            self._call_index, self._calls = event.call_index, event.call_index + 1
        return frames + (self._delta(b'"input_json_delta","partial_json":', event.arguments))

    def _start(self, kind: type[Event], block: dict[str, Any]) -> bytes:
        frames = self._stop_block()
        self._open = kind
        self._blocks += 1
        start = {"type": "content_block_start", "index": self._blocks - 1, "content_block": block}
        return frames + _frame(start)

    def _delta(self, kind: bytes, text: str) -> bytes:
        head = b'{"type":"content_block_delta","index":%d,"delta":{"type":' % (self._blocks - 1)
        return sse.named_frame(b"content_block_delta", head + kind + encode(text) + b"}}")

    def _stop_block(self, signature: str | None = None) -> bytes:
        """The end of the open block, if one is; thinking that nobody signed gets our signature."""
        if self._open is None:
            return b""
        frames = b""
        if self._signing is not None:
            frames = self._delta(b'"signature_delta","signature":', signature or self._signing.end())
        self._open = self._signing = None
        return frames + _frame({"type": "content_block_stop", "index": self._blocks - 1})

    def _message_start(self) -> bytes:
        self._started = True
        message = MessageBody(self.id, self._model, [], None, None, UsageBody())
        return _frame({"type": "message_start", "message": message})

    def _end(self, done: Done) -> bytes:
        frames = self._stop_block()
        finish = self._finish or Finish(0, "stop")
        reason, sequence = self._stop_reason(finish, self._calls > 0, done.usage)
        delta = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None},
            "usage": usage_body(done.usage),
        }
        return frames + _frame(delta) + _frame({"type": "message_stop"})

    # ---- both ways

    def _stop_reason(self, finish: Finish, called: bool, usage: Usage) -> tuple[str, str | None]:
        """(stop_reason, stop_sequence). Some servers end a call that was forced with "stop"."""
        if finish.reason == "stop":
            if isinstance(finish.stop, str):
                return "stop_sequence", finish.stop
            return ("tool_use" if called else "end_turn"), None
        if finish.reason == "length" and usage.completion_tokens < (self._max_tokens or 0):
            return "model_context_window_exceeded", None
        return _STOP_REASONS.get(finish.reason, "refusal"), None

    def _block(self, run: Run, choice: ChoiceFold) -> dict[str, Any] | None:
        if run.kind is ToolCallDelta:
            call = choice.calls[run.call_index or 0]
            arguments = "".join(call.pieces)
            return {"type": "tool_use", "id": call.id, "name": call.name, "input": input_of(arguments)}
        if run.kind is TextDelta:
            return {"type": "text", "text": run.text} if run.text else None
        if run.redacted:
            return {"type": "redacted_thinking", "data": run.signature or ""}
        text = "" if self._omits_thinking else run.text
        signature = run.signature or SIGNER.sign(self._model, text)
        return {"type": "thinking", "thinking": text, "signature": signature}


def _merged(runs: list[Run]) -> list[Run]:
    """Runs without those that show nothing; their neighbours then belong together, as in a stream."""
    found: list[Run] = []
    for run in runs:
        if run.kind is TextDelta and not run.text:
            continue
        last = found[-1] if found else None
        open_ended = last is not None and last.signature is None and run.kind is not ToolCallDelta
        if last is not None and open_ended and last.kind is run.kind and not run.redacted:
            found[-1] = Run(run.kind, None, [*last.pieces, *run.pieces], [], run.signature)
        else:
            found.append(run)
    return found


def _frame(event: dict[str, Any]) -> bytes:
    return sse.named_frame(event["type"].encode(), encode(event))


# --------------------------------------------------------------------------- upstream side

_FINISH_REASONS: dict[str, Any] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_KINDS = {  # an error's type: (kind, status) as in penstock.errors
    "invalid_request_error": ("invalid_request_error", 400),
    "request_too_large": ("invalid_request_error", 413),
    "authentication_error": ("authentication_error", 401),
    "permission_error": ("permission_error", 403),
    "not_found_error": ("not_found_error", 404),
    "rate_limit_error": ("rate_limit_error", 429),
    "timeout_error": ("timeout_error", 504),
}


class UpstreamUsage(Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens_details: OutputDetails | None = None


class UpstreamMessage(Struct):
    usage: UpstreamUsage | None = None


class UpstreamBlock(Struct):
    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: Any = None
    data: str = ""
    signature: str | None = None


class UpstreamDelta(Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None


class UpstreamError(Struct):
    message: str = ""
    type: str = "api_error"


class UpstreamEvent(Struct):
    """What is read of any event; each has some of it."""

    type: str
    message: UpstreamMessage | None = None
    content_block: UpstreamBlock | None = None
    delta: UpstreamDelta | None = None
    usage: UpstreamUsage | None = None
    error: UpstreamError | None = None


_decode_event = msgspec.json.Decoder(UpstreamEvent).decode


class Decoder(UpstreamEvents):
    """See UpstreamEvents; the end is `message_stop`. Blocks that no call of ours asks for (server-side tools)
    are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts = UpstreamUsage()
        self._calls = 0
        self._input: Any = None  # of the open tool_use block, as long as no delta said it
        self._finish: Finish | None = None

    def _frame(self, payload: bytes) -> list[Event]:
        try:
            event = _decode_event(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return [self._fail(f"the upstream sent an event that is not of this format: {error}")]
        if event.type == "content_block_start" and event.content_block is not None:
            return self._block_start(event.content_block)
        if event.type == "content_block_delta" and event.delta is not None:
            return self._delta(event.delta)
        if event.type == "content_block_stop":
            return self._block_stop()
        if event.type == "message_start" and event.message is not None:
            self._count(event.message.usage or UpstreamUsage())
        elif event.type == "message_delta" and event.delta is not None:
            self._count(event.usage or UpstreamUsage())
            reason = _FINISH_REASONS.get(event.delta.stop_reason or "", "stop")
            self._finish = Finish(0, reason, event.delta.stop_sequence)
        elif event.type == "message_stop":
            self._over = True
            return [self._finish or Finish(0, "stop"), Done(self._usage())]
        elif event.type == "error":
            return [self._error(event.error or UpstreamError("the upstream failed"))]
        return []

    def _block_start(self, block: UpstreamBlock) -> list[Event]:
        if block.type == "tool_use":
            self._calls += 1
            self._input = block.input or {}
            return [ToolCallDelta(0, self._calls - 1, block.id, block.name)]
        if block.type == "redacted_thinking":
            return [ReasoningDelta(0, "", signature=block.data, redacted=True)]
        return [TextDelta(0, block.text)] if block.type == "text" and block.text else []

    def _delta(self, delta: UpstreamDelta) -> list[Event]:
        if delta.type == "text_delta":
            return [TextDelta(0, delta.text)]
        if delta.type == "thinking_delta":
            return [ReasoningDelta(0, delta.thinking)]
        if delta.type == "signature_delta":
            return [ReasoningDelta(0, "", signature=delta.signature)]
        if delta.type == "input_json_delta" and delta.partial_json and self._input is not None:
            self._input = False
            return [ToolCallDelta(0, self._calls - 1, arguments=delta.partial_json)]
        return []

    def _block_stop(self) -> list[Event]:
        """A call without arguments ends as one with an empty object, which other formats insist on."""
        value, self._input = self._input, None
        if not isinstance(value, dict):
            return []
        return [ToolCallDelta(0, self._calls - 1, arguments=encode(value).decode())]

    def _count(self, usage: UpstreamUsage) -> None:
        """Counts are sums up to here; one that is left out stays as it was."""
        for name in UpstreamUsage.__struct_fields__:
            value = getattr(usage, name)
            if value is not None:
                setattr(self._counts, name, value)

    def _usage(self) -> Usage:
        counts = self._counts
        read = counts.cache_read_input_tokens or 0
        prompt = (counts.input_tokens or 0) + (counts.cache_creation_input_tokens or 0) + read
        details = counts.output_tokens_details
        return Usage(prompt, counts.output_tokens or 0, read, details.thinking_tokens if details else 0)

    def _error(self, error: UpstreamError) -> Failure:
        self._over = True
        kind, status = _KINDS.get(error.type, ("service_unavailable_error", 503))
        return Failure(kind, error.message, status)
