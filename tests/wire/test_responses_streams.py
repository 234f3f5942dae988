"""Answers of the Responses format: the stream, its body, and the way back to events."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from penstock.call import (
    Call,
    CustomFormat,
    Done,
    Event,
    Failure,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolNamespace,
    ToolSpec,
    Usage,
)
from penstock.wire import openai_responses
from penstock.wire.fold import Fold
from penstock.wire.openai_responses_tools import InputReader, read_input, write_input
from support.wire_strategies import name, stream, text

CALL = Call(kind="chat", model="m", stream=True)
PATCH = ToolSpec("patch", None, None, False, CustomFormat())
NESTED = ToolSpec("crm__find", namespace=ToolNamespace("crm", "customers"))
STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def encode(events: list[Event], call: Call = CALL) -> bytes:
    encoder = openai_responses.Encoder(call, "id", 1, "m")
    return b"".join(map(encoder.feed, events)) + encoder.close()


def frames(data: bytes) -> list[dict[str, Any]]:
    """The payloads; each frame's `event:` line is its payload's type."""
    parsed = []
    *given, done, rest = data.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    for frame in given:
        head, _, payload = frame.partition("\n")
        parsed.append(json.loads(payload.removeprefix("data: ")))
        assert head == f"event: {parsed[-1]['type']}"
    return parsed


@st.composite
def one_answer(draw: st.DrawFn) -> list[Event]:
    """Events of the one choice that this format has; calls have ids of their own, as engines give them."""
    number = 0
    events: list[Event] = []
    for event in draw(stream("chat")):
        if getattr(event, "index", 0) != 0:
            continue
        if isinstance(event, ToolCallDelta) and event.id is not None:
            event = msgspec.structs.replace(event, id=f"call_{number}")
            number += 1
        events.append(event)
    return events


@st.composite
def any_order(draw: st.DrawFn) -> list[Event]:
    """Text, reasoning and calls in any order, as models with interleaved thinking write them."""
    events: list[Event] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from("trfcn"), max_size=8)):
        if kind == "t":
            events.append(TextDelta(0, draw(text)))
        elif kind == "r":
            events.append(ReasoningDelta(0, draw(text)))
        else:
            tool = {"f": "plain", "c": "patch", "n": "crm__find"}[kind]
            events.append(ToolCallDelta(0, calls, f"call_{calls}", tool))
            arguments = write_input(draw(text)) if draw(st.booleans()) else draw(text)
            cut = draw(st.integers(0, len(arguments)))
            events += [ToolCallDelta(0, calls, arguments=a) for a in (arguments[:cut], arguments[cut:])]
            calls += 1
    reason = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
    return [*events, Finish(0, reason), Done(Usage(5, 3, 2, 1))]


OPTIONS = st.builds(
    lambda summary, sealed: msgspec.structs.replace(
        CALL,
        tools=(PATCH, NESTED),
        extra=({"reasoning": {"summary": "auto"}} if summary else {})
        | ({"include": ["reasoning.encrypted_content"]} if sealed else {}),
    ),
    st.booleans(),
    st.booleans(),
)


def accumulate(parsed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output items as a client that trusts deltas alone adds them up."""
    items: dict[int, dict[str, Any]] = {}
    for event in parsed:
        kind, index = event["type"].removeprefix("response."), event.get("output_index")
        if kind == "output_item.added":
            assert index == len(items), "an item's index was used before or left out"
            items[index] = json.loads(json.dumps(event["item"]))
            continue
        if index is None:
            continue
        item = items[index]
        if kind == "output_item.done":
            assert item["status"] == "in_progress", "an item ended twice"
            assert {**event["item"], "status": ""} == {
                **item,
                "status": "",
                **{k: v for k, v in event["item"].items() if k == "encrypted_content"},
            }
            items[index] = event["item"]
            continue
        assert (event["item_id"], item["status"]) == (item["id"], "in_progress")
        if kind == "content_part.added":
            item["content"].append(event["part"])
        elif kind == "reasoning_summary_part.added":
            item["summary"].append(event["part"])
        elif kind in ("output_text.delta", "reasoning_text.delta"):
            item["content"][event["content_index"]]["text"] += event["delta"]
            item["content"][0].get("logprobs", []).extend(event.get("logprobs", ()))
        elif kind == "reasoning_summary_text.delta":
            item["summary"][event["summary_index"]]["text"] += event["delta"]
        elif kind == "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind == "custom_tool_call_input.delta":
            item["input"] += event["delta"]
        elif kind in ("content_part.done", "reasoning_summary_part.done"):
            assert event["part"] in (*item.get("content", ()), *item.get("summary", ()))
    return [items[i] for i in sorted(items)]


@given(events=one_answer() | any_order(), call=OPTIONS)
def test_the_stream_adds_up_to_its_own_last_object(events, call):
    """Red if a delta, an id, an index or a status in the stream differs from the object that ends it."""
    parsed = frames(encode(events, call))
    final = parsed[-1]["response"]
    assert accumulate(parsed) == final["output"]
    assert [event["sequence_number"] for event in parsed] == list(range(len(parsed)))
    assert [event["type"] for event in parsed[:2]] == ["response.created", "response.in_progress"]
    assert parsed[-1]["type"] == f"response.{final['status']}"
    assert {event["response"]["id"] for event in parsed if "response" in event} == {"resp_id"}


@given(events=one_answer() | any_order(), call=OPTIONS)
def test_the_body_is_the_last_object_of_the_stream(events, call):
    """Red if asking without a stream gives another answer, other ids or another usage."""
    body = openai_responses.Encoder(call, "id", 1, "m").body(Fold(events))
    assert json.loads(body) == frames(encode(events, call))[-1]["response"]


@given(events=one_answer() | any_order(), call=OPTIONS)
def test_bodies_and_events_are_of_the_sdks_types(events, call):
    """Red if an event or a body no longer validates strictly as the official SDK's own type."""
    parsed = frames(encode(events, call))
    for event in parsed:
        STREAM_EVENT.validate_json(json.dumps(event), strict=True)
    Response.model_validate_json(json.dumps(parsed[-1]["response"]), strict=True)


def said(events: list[Event]) -> list[Any]:
    """What an answer says, in this format's words."""
    fold = Fold(events)
    shown: list[Any] = [fold.usage, fold.failure]
    for choice in fold.choices():
        assert choice.finish is not None
        runs = [(run.kind, run.text, tuple(run.logprobs)) for run in choice.runs]
        calls = [
            (c.id, c.name, write_input(read_input(c.arguments)) if c.name == "patch" else c.arguments)
            for c in choice.tool_calls
        ]
        reason = choice.finish.reason
        if reason in ("stop", "tool_calls"):
            reason = "tool_calls" if calls else "stop"
        shown += [runs, calls, reason]
    return shown


@given(events=one_answer() | any_order(), call=OPTIONS, data=st.data())
def test_a_decoded_stream_says_the_same(events, call, data):
    """Red if something is lost on the way to an upstream's client and back, at any split of the bytes."""
    encoded = encode(events, call)
    cuts = data.draw(st.lists(st.integers(0, len(encoded)), max_size=8))
    decoder = openai_responses.Decoder()
    edges = sorted({0, len(encoded), *cuts})
    decoded = [event for a, b in pairwise(edges) for event in decoder.feed(encoded[a:b])]
    assert decoder.close() == []
    assert said(decoded) == said(events)


@given(st.lists(text | name).map("".join), st.data())
def test_custom_input_is_the_same_at_any_split(written, data):
    """Red if an escape that is cut by a chunk reaches the client as something else."""
    arguments = json.dumps({"input": written}, ensure_ascii=data.draw(st.booleans()))
    reader = InputReader()
    pieces, rest = [], arguments
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        pieces.append(reader.feed(rest[:size]))
        rest = rest[size:]
    assert "".join(pieces) + reader.close() == written
    assert read_input(write_input(written)) == written


@pytest.mark.parametrize(
    "arguments, shown",
    [
        ("plain text", "plain text"),
        ('{"patch": "x"}', '{"patch": "x"}'),
        ('{ "input" : "a\\q"}', "a\\q"),
        ('{"input":"\\ud83d\\ude00 \\ud83d"}', "😀 \ufffd"),
        ('{"input":"cut', "cut"),
        ("", ""),
    ],
)
def test_custom_input_that_a_model_wrote_badly_still_arrives(arguments, shown):
    """Red if a model's slip in the wrapping loses the input or breaks the stream."""
    assert read_input(arguments) == shown


def test_finish_reasons():
    """Red if a cut answer passes for a whole one, or a whole one for cut."""
    for reason, status, why in (
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", "incomplete", {"reason": "content_filter"}),
    ):
        final = frames(encode([TextDelta(0, "a"), Finish(0, reason), Done(Usage(1, 1))]))[-1]["response"]
        assert (final["status"], final["incomplete_details"]) == (status, why)
        assert final["output"][0]["status"] == status
        assert (final["completed_at"] is None) == (status != "completed")


def test_a_failure_closes_the_open_item_then_says_so_twice():
    """Red if a failure leaves an item open, hides the code that Codex reads, or loses SDKs' `error`."""
    broken = Failure("rate_limit_error", "too many", 429, retry_after_s=2.5)
    parsed = frames(encode([TextDelta(0, "a"), broken]))
    assert [event["type"] for event in parsed[-3:]] == [
        "response.output_item.done",
        "response.failed",
        "error",
    ]
    failed = parsed[-2]["response"]
    assert failed["error"] == {"code": "rate_limit_exceeded", "message": "too many; try again in 2.5s"}
    assert (failed["status"], failed["output"][0]["status"]) == ("failed", "incomplete")
    assert parsed[-1]["error"]["message"] == parsed[-1]["message"]
    decoded = openai_responses.Decoder().feed(encode([TextDelta(0, "a"), broken]))
    assert isinstance(decoded[-1], Failure)
    assert decoded[-1].kind == "rate_limit_error"


def test_a_cut_upstream_is_a_failure():
    """Red if an upstream's stream that ends too early passes for a whole answer."""
    encoded = encode([TextDelta(0, "a"), Finish(0, "stop"), Done(Usage(1, 1))])
    decoder = openai_responses.Decoder()
    decoder.feed(encoded[: encoded.index(b"event: response.completed")])
    assert isinstance(decoder.close()[0], Failure)
    assert isinstance(openai_responses.Decoder().feed(b"data: [1]\n\n")[0], Failure)


def test_reasoning_is_a_summary_where_one_was_asked_for():
    """Red if clients that show summaries only (Codex) show nothing, or sealed reasoning is lost."""
    events: list[Event] = [ReasoningDelta(0, "hm"), TextDelta(0, "a"), Finish(0, "stop"), Done(Usage(1, 1))]
    extra = {"reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"]}
    final = frames(encode(events, msgspec.structs.replace(CALL, extra=extra)))[-1]["response"]
    item = final["output"][0]
    assert (item["summary"], item["content"]) == ([{"type": "summary_text", "text": "hm"}], [])
    back = {
        "type": "reasoning",
        "id": item["id"],
        "summary": [],
        "encrypted_content": item["encrypted_content"],
    }
    request = {"model": "m", "store": False, "input": [back, {"role": "user", "content": "go on"}]}
    (reasoning,) = openai_responses.read_request(json.dumps(request).encode()).messages[0].parts
    assert (reasoning.text, reasoning.signature) == ("hm", None)
