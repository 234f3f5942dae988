"""Answers of the Anthropic format: the order of a stream, its sum, the body, the way back, and errors.

The sum of a stream is made by the official SDK's own accumulator, and everything is checked by its types.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.call import (
    Call,
    Done,
    Event,
    Failure,
    Finish,
    Message,
    ReasoningDelta,
    ReasoningPart,
    SamplingParams,
    TextDelta,
    TextPart,
    ToolCallDelta,
    Usage,
)
from penstock.wire import anthropic_messages
from penstock.wire.anthropic_dialect import ANTHROPIC
from penstock.wire.anthropic_signature import SIGNER
from penstock.wire.fold import Fold
from penstock.wire.sse import SseParser
from support.anthropic_strategies import stream

pytest.importorskip("anthropic", reason="needs the official SDK, the oracle of its format")
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message as SdkMessage
from anthropic.types import RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from pydantic import TypeAdapter

CALL = Call(kind="chat", model="m", stream=True, sampling=SamplingParams(max_tokens=100))
SDK_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def encode(events: list[Event], call: Call = CALL) -> bytes:
    encoder = anthropic_messages.Encoder(call, "id", 1, "m")
    return b"".join(map(encoder.feed, events)) + encoder.close()


def frames(data: bytes) -> list[dict]:
    """The events' data; each under the name that it has inside."""
    found = [(name, json.loads(payload)) for name, payload in SseParser().feed(data)]
    assert [name for name, _ in found] == [event["type"] for _, event in found]
    return [event for _, event in found]


def body(events: list[Event], call: Call = CALL) -> dict:
    answer: dict = json.loads(anthropic_messages.Encoder(call, "id", 1, "m").body(Fold(events)))
    return answer


def accumulate(parsed: list[dict]) -> dict:
    """What the official SDK makes of a stream, as its strict types see it."""
    snapshot = None
    buffers: dict[int, bytes] = {}
    for event in parsed:
        snapshot = accumulate_event(
            event=SDK_EVENT.validate_python(event, strict=True), current_snapshot=snapshot, json_bufs=buffers
        )
    assert snapshot is not None
    return snapshot.to_dict()


@given(stream())
def test_the_sdks_sum_of_a_stream_is_the_body(events):
    """Red if a stream adds up, in the official SDK, to another answer than the same call without one."""
    whole = SdkMessage.model_validate(body(events), strict=True).to_dict()
    assert accumulate(frames(encode(events))) == whole


@given(stream())
def test_a_stream_keeps_its_order(events):
    """Red if a block starts twice, has a delta of another type, or is not closed, or the ends are missing."""
    first, *inner, last, stop = frames(encode(events))
    assert (first["type"], last["type"], stop["type"]) == ("message_start", "message_delta", "message_stop")
    assert first["message"]["content"] == [] and first["message"]["stop_reason"] is None
    deltas = {
        "text": {"text_delta"},
        "thinking": {"thinking_delta", "signature_delta"},
        "tool_use": {"input_json_delta"},
        "redacted_thinking": set(),
    }
    index, block = -1, None
    for event in inner:
        if event["type"] == "content_block_start":
            assert block is None and event["index"] == index + 1
            index, block = event["index"], event["content_block"]
            before = ""
            continue
        assert block is not None and event["index"] == index
        if event["type"] == "content_block_delta":
            assert event["delta"]["type"] in deltas[block["type"]]
            assert before != "signature_delta", "a signature is the last of its block"
            before = event["delta"]["type"]
        else:
            assert event["type"] == "content_block_stop"
            assert (block["type"] == "thinking") == (before == "signature_delta")
            block = None
    assert block is None


@given(stream())
def test_usage_adds_up_to_the_prompt(events):
    """Red if cached tokens count twice or not at all: clients compact a conversation by this sum."""
    done = events[-1]
    assert isinstance(done, Done)
    usage = frames(encode(events))[-2]["usage"]
    assert usage["cache_read_input_tokens"] == done.usage.cached_tokens
    inputs = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    assert sum(usage[name] for name in inputs) == done.usage.prompt_tokens
    assert usage["output_tokens"] == done.usage.completion_tokens
    assert usage["output_tokens_details"] == {"thinking_tokens": done.usage.reasoning_tokens}
    assert usage == body(events)["usage"]


@given(stream(), st.data())
def test_a_decoded_stream_folds_to_the_same_answer(events, data):
    """Red if an event is dropped, repeated or changed on the way to a client and back, at any split."""
    encoded = encode(events)
    edges = sorted({0, len(encoded), *data.draw(st.lists(st.integers(0, len(encoded))))})
    decoder = anthropic_messages.Decoder()
    decoded = [e for a, b in pairwise(edges) for e in decoder.feed(encoded[a:b])]
    assert decoder.close() == []
    again = body(decoded)
    reason = events[-2].reason
    if reason == "length":  # the format tells the two kinds of it apart by numbers that only the server has
        again["stop_reason"] = body(events)["stop_reason"]
    assert again == body(events)


@given(stream())
def test_thinking_of_a_stream_is_taken_back(events):
    """Red if a thinking block of an answer, sent back, is not known as this server's own."""
    content = body(events)["content"]
    if not content:
        return
    request = {"model": "m", "max_tokens": 1, "messages": [{"role": "assistant", "content": content}]}
    read = anthropic_messages.read_request(json.dumps(request).encode()).messages[0]
    ours = [part.text for part in read.parts if isinstance(part, ReasoningPart) and part.signature is None]
    theirs = [part.signature for part in read.parts if isinstance(part, ReasoningPart) and part.signature]
    assert all(signature.startswith("theirs-") for signature in theirs)
    assert ours == [b["thinking"] for b in content if b["type"] == "thinking" and b["signature"][:3] == "pn1"]


def test_the_exact_frames_of_a_small_stream():
    """Red if the bytes of a stream change: names, order and spacing are what clients were written against."""
    events: list[Event] = [
        ReasoningDelta(0, "hm"),
        TextDelta(0, "é"),
        ToolCallDelta(0, 0, "call_1", "now"),
        ToolCallDelta(0, 0, arguments="{}"),
        Finish(0, "tool_calls"),
        Done(Usage(5, 3, 2)),
    ]
    expected = [
        '{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}',
        '{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}',
        '{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"SIGNED"}}',
        '{"type":"content_block_stop","index":0}',
        '{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}',
        '{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"é"}}',
        '{"type":"content_block_stop","index":1}',
        '{"type":"content_block_start","index":2,"content_block":'
        '{"type":"tool_use","id":"call_1","name":"now","input":{}}}',
        '{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}',
        '{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{}"}}',
        '{"type":"content_block_stop","index":2}',
    ]
    expected = [line.replace("SIGNED", SIGNER.sign("m", "hm")) for line in expected]
    shown = [f"event: {json.loads(line)['type']}\ndata: {line}\n\n" for line in expected]
    text = encode(events).decode()
    start, end = text.index("event: content_block_start"), text.index("event: message_delta")
    assert text[start:end] == "".join(shown)
    assert text[:start].startswith("event: message_start\ndata: {")
    assert '"delta":{"stop_reason":"tool_use","stop_sequence":null,"stop_details":null}' in text[end:]
    assert text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')


@pytest.mark.parametrize(
    "finish,generated,expected",
    [
        (Finish(0, "stop"), 3, ("end_turn", None)),
        (Finish(0, "stop", "END"), 3, ("stop_sequence", "END")),
        (Finish(0, "stop", 7), 3, ("end_turn", None)),
        (Finish(0, "length"), 100, ("max_tokens", None)),
        (Finish(0, "length"), 99, ("model_context_window_exceeded", None)),
        (Finish(0, "content_filter"), 3, ("refusal", None)),
    ],
)
def test_stop_reasons(finish, generated, expected):
    """Red if a client is told another reason: agents go on, retry or compact by it."""
    events: list[Event] = [TextDelta(0, "a"), finish, Done(Usage(1, generated))]
    for shown in (body(events), frames(encode(events))[-2]["delta"]):
        assert (shown["stop_reason"], shown["stop_sequence"]) == expected


def test_a_call_that_was_forced_ends_in_tool_use():
    """Red if a call that an upstream ended with "stop" does not make an agent run its tool."""
    events: list[Event] = [ToolCallDelta(0, 0, "a", "f", "{}"), Finish(0, "stop"), Done(Usage(1, 1))]
    assert body(events)["stop_reason"] == frames(encode(events))[-2]["delta"]["stop_reason"] == "tool_use"


def test_arguments_that_are_no_json_do_not_break_the_body():
    """Red if a model's slip in a tool's arguments is a 500, or passes for another input."""
    events: list[Event] = [
        ToolCallDelta(0, 0, "a", "f", '{"a":'),
        ToolCallDelta(0, 1, "b", "f", "[1]"),
        Finish(0, "tool_calls"),
        Done(Usage(1, 1)),
    ]
    assert [b["input"] for b in body(events)["content"]] == [
        {"INVALID_JSON": '{"a":'},
        {"INVALID_JSON": "[1]"},
    ]


def test_omitted_thinking_is_not_shown_and_still_taken_back():
    """Red if thinking that the caller did not want to see is sent, or its block breaks the next turn."""
    call = msgspec.structs.replace(CALL, extra={"thinking": {"type": "adaptive", "display": "omitted"}})
    events: list[Event] = [
        ReasoningDelta(0, "secret"),
        TextDelta(0, "a"),
        Finish(0, "stop"),
        Done(Usage(1, 2)),
    ]
    assert "secret" not in encode(events, call).decode()
    content = body(events, call)["content"]
    assert accumulate(frames(encode(events, call)))["content"] == content
    assert [block["type"] for block in content] == ["thinking", "text"]
    request = {"model": "m", "max_tokens": 1, "messages": [{"role": "assistant", "content": content}]}
    read = anthropic_messages.read_request(json.dumps(request).encode())
    assert read.messages == (Message("assistant", (TextPart("a"),)),)


def test_a_call_that_goes_on_after_the_next_began_is_an_error():
    """Red if pieces of two calls end up in one block."""
    encoder = anthropic_messages.Encoder(CALL, "id", 1, "m")
    encoder.feed(ToolCallDelta(0, 0, "a", "f"))
    encoder.feed(ToolCallDelta(0, 1, "b", "f"))
    with pytest.raises(ValueError, match="tool call 0"):
        encoder.feed(ToolCallDelta(0, 0, arguments="{}"))


# --------------------------------------------------------------------------- errors

FAILURES = [
    (Failure("invalid_request_error", "m", 400), 400, "invalid_request_error"),
    (Failure("authentication_error", "m", 401), 401, "authentication_error"),
    (Failure("permission_error", "m", 403), 403, "permission_error"),
    (Failure("not_found_error", "m", 404), 404, "not_found_error"),
    (Failure("invalid_request_error", "m", 405), 405, "invalid_request_error"),
    (Failure("invalid_request_error", "m", 413), 413, "request_too_large"),
    (Failure("rate_limit_error", "m", 429), 529, "overloaded_error"),
    (Failure("internal_error", "m", 500), 500, "api_error"),
    (Failure("service_unavailable_error", "m", 503), 529, "overloaded_error"),
    (Failure("model_refused", "m", 503), 503, "api_error"),
    (Failure("timeout_error", "m", 504), 504, "timeout_error"),
]


@pytest.mark.parametrize(
    "failure,status,kind", FAILURES, ids=[f"{f.kind}-{f.status}" for f, _, _ in FAILURES]
)
def test_errors_have_anthropics_status_and_type(failure, status, kind):
    """Red if a failure shows as another of Anthropic's errors, in a body or in a stream."""
    assert ANTHROPIC.status(failure) == status
    shown = json.loads(ANTHROPIC.error_body(failure, "req"))
    assert shown == {"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "req"}
    if kind != "request_too_large":  # documented, but not among the SDK's types
        ErrorResponse.model_validate(shown, strict=True)
    (event,) = frames(encode([failure]))
    assert event["error"] == shown["error"]


@pytest.mark.parametrize(
    "message",
    [
        "the prompt has 5000 tokens, the context of this model is 2048 and must hold at least one more",
        "the prompt has at least 5000 tokens, the context of this model is 2048",
    ],
)
def test_a_prompt_that_is_too_long_is_told_in_anthropics_words(message):
    """Red if clients that compact a conversation on "prompt is too long: N tokens > M" no longer do."""
    failure = Failure("invalid_request_error", message, 400, "messages", "context_length_exceeded")
    shown = json.loads(ANTHROPIC.error_body(failure, "r"))["error"]["message"]
    assert shown.startswith("prompt is too long: 5000 tokens > 2048 maximum")


# --------------------------------------------------------------------------- upstream side


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n',
        b"event: message_stop\ndata: not json\n\n",
    ],
)
def test_a_cut_stream_is_a_failure(data):
    """Red if half an answer of an upstream passes for a whole one."""
    decoder = anthropic_messages.Decoder()
    last = [*decoder.feed(data), *decoder.close()][-1]
    assert isinstance(last, Failure) and last.status == 503


def test_an_error_event_ends_the_answer_under_its_own_kind():
    """Red if an upstream's error becomes another, or events come after it."""
    error = b'event: error\ndata: {"type":"error","error":{"type":"%s","message":"no"}}\n\n'
    for kind, expected in ((b"overloaded_error", 503), (b"rate_limit_error", 429), (b"api_error", 503)):
        decoder = anthropic_messages.Decoder()
        (failure,) = decoder.feed(error % kind)
        assert isinstance(failure, Failure) and (failure.status, failure.message) == (expected, "no")
        assert decoder.feed(encode([Done(Usage())])) == decoder.close() == []


def test_what_an_upstream_may_send_beyond_our_own_frames():
    """Red if a ping, a block of a server-side tool or an input without deltas breaks the answer."""
    lines = [
        {"type": "message_start", "message": {"usage": {"input_tokens": 5, "cache_read_input_tokens": 3}}},
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "server_tool_use", "id": "s"}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": "{}"},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
        },
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    data = "".join(f"event: {line['type']}\ndata: {json.dumps(line)}\n\n" for line in lines)
    fold = Fold(anthropic_messages.Decoder().feed(data.encode()))
    (choice,) = fold.choices()
    assert [(c.id, c.name, c.arguments) for c in choice.tool_calls] == [("a", "f", '{"x":1}')]
    assert fold.usage == Usage(8, 9, 3)
