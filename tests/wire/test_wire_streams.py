"""Answers of the OpenAI formats: the stream, its fold, the body, and the way back to events."""

from __future__ import annotations

import json
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from penstock.call import (
    Call,
    Done,
    Event,
    Failure,
    Finish,
    PromptEcho,
    ReasoningDelta,
    SamplingParams,
    SpeculationUsage,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from penstock.wire import openai_chat, openai_completions
from penstock.wire.fold import Fold
from support.wire_strategies import stream

CHAT = Call(kind="chat", model="m", stream=True, stream_usage=True, extra={"return_token_ids": True})
COMPLETION = Call(
    kind="completion", model="m", stream=True, stream_usage=True, echo=True, extra={"return_token_ids": True}
)
CODECS = {"chat": (openai_chat, CHAT), "completion": (openai_completions, COMPLETION)}


def encode(kind: str, events: list[Event], call: Call | None = None) -> bytes:
    codec, default = CODECS[kind]
    encoder = codec.Encoder(call or default, "id", 1, "m")
    return b"".join(map(encoder.feed, events)) + encoder.close()


def chunks(data: bytes) -> list[dict]:
    frames = data.decode().split("\n\n")
    assert frames.pop() == ""
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def sayable(kind: str, events: list[Event]) -> list[Event]:
    """The events as far as the format can say them (see the codecs' docstrings)."""
    said: list[Event] = []
    for event in events:
        if isinstance(event, PromptEcho):  # the echoed prompt is just text to a reader
            event = TextDelta(event.index, event.text)
        if isinstance(event, TextDelta) and kind == "completion" and event.logprobs is not None:
            event = msgspec.structs.replace(event, logprobs=tuple(map(as_dict_tops, event.logprobs)))
        if isinstance(event, TextDelta) and event.logprobs == () and not event.text and not event.token_ids:
            event = msgspec.structs.replace(event, logprobs=None)
        said.append(event)
    return said


def as_dict_tops(item: TokenLogprob) -> TokenLogprob:
    """Completions show alternatives as a dictionary that holds the chosen token too."""
    row: dict[str, float] = {}
    for top in item.top:
        row.setdefault(top.token, top.logprob)
    row.setdefault(item.token, item.logprob)
    return msgspec.structs.replace(item, top=tuple(TopLogprob(t, p, t.encode(), -1) for t, p in row.items()))


def answer(fold: Fold) -> list:
    return [
        (c.index, c.text, c.reasoning, tuple(c.token_ids), tuple(c.logprobs or ()), c.tool_calls, c.finish)
        for c in fold.choices()
    ] + [fold.usage, fold.failure]


@pytest.mark.parametrize("kind", CODECS)
@given(data=st.data())
def test_a_decoded_stream_folds_to_the_same_answer(kind, data):
    """Red if a chunk drops, repeats or renames something on the way to a client and back, at any split."""
    events = data.draw(stream(kind))
    encoded = encode(kind, events)
    cuts = data.draw(st.lists(st.integers(0, len(encoded))))
    decoder = CODECS[kind][0].Decoder()
    edges = sorted({0, len(encoded), *cuts})
    decoded = [e for a, b in pairwise(edges) for e in decoder.feed(encoded[a:b])]
    assert decoder.close() == []
    assert answer(Fold(decoded)) == answer(Fold(sayable(kind, events)))


def test_every_single_byte_split():
    """Red if some one cut of a stream with multi-byte characters changes its events."""
    events: list[Event] = [
        TextDelta(0, "é€😀", (1,)),
        TextDelta(0, "\u2028", (2,)),
        Finish(0, "stop"),
        Done(Usage(1, 2)),
    ]
    for kind, (codec, _) in CODECS.items():
        encoded = encode(kind, events)
        whole = codec.Decoder().feed(encoded)
        for cut in range(len(encoded)):
            decoder = codec.Decoder()
            assert decoder.feed(encoded[:cut]) + decoder.feed(encoded[cut:]) == whole


def summed_calls(parts: list[dict]) -> list[dict]:
    """The tool calls of one choice's chunks, with the ids that came first."""
    calls: dict[int, dict] = {}
    for delta in (delta for part in parts for delta in part["delta"].get("tool_calls") or ()):
        function = delta["function"]
        call = calls.setdefault(delta["index"], {"id": delta.get("id"), "name": function.get("name")})
        call["arguments"] = call.get("arguments", "") + (function.get("arguments") or "")
    return [call for _, call in sorted(calls.items())]


@pytest.mark.parametrize("kind", CODECS)
@given(data=st.data())
def test_the_body_is_the_fold_of_the_stream(kind, data):
    """Red if a non-streaming answer differs from its stream added up."""
    events = data.draw(stream(kind))
    codec, call = CODECS[kind]
    body = json.loads(codec.Encoder(call, "id", 1, "m").body(Fold(events)))
    streamed = chunks(encode(kind, events))
    assert body["id"] == streamed[0]["id"]
    assert body["usage"] == streamed[-1]["usage"]
    for choice in body["choices"]:
        parts = [c for chunk in streamed for c in chunk["choices"] if c["index"] == choice["index"]]
        assert choice["finish_reason"] == parts[-1]["finish_reason"]
        assert choice["token_ids"] == [i for part in parts for i in part.get("token_ids") or ()]
        if kind == "completion":
            assert choice["text"] == "".join(part["text"] for part in parts)
            shown = choice["logprobs"] or {"tokens": [], "text_offset": []}
            logs = [part["logprobs"] for part in parts if part["logprobs"]]
            for field in ("tokens", "text_offset"):
                assert shown[field] == [x for log in logs for x in log[field]]
        else:
            assert (choice["message"]["content"] or "") == "".join(
                p["delta"].get("content") or "" for p in parts
            )
            message = choice["message"]
            assert (message.get("reasoning_content") or "") == "".join(
                p["delta"].get("reasoning_content") or "" for p in parts
            )
            assert [
                {"id": call["id"], **call["function"]} for call in message.get("tool_calls") or ()
            ] == summed_calls(parts)
            shown = (choice["logprobs"] or {}).get("content", [])
            assert shown == [x for part in parts if part["logprobs"] for x in part["logprobs"]["content"]]


@given(stream("chat"))
def test_chat_stream_keeps_its_promises(events):
    """Red if role comes twice, the id changes, a finish carries content, or usage sits in the wrong chunk."""
    parsed = chunks(encode("chat", events))
    assert {c["id"] for c in parsed} == {"chatcmpl-id"}
    assert [bool(c["usage"]) for c in parsed] == [False] * (len(parsed) - 1) + [True]
    assert parsed[-1]["choices"] == []
    for index in {e.index for e in events if isinstance(e, Finish)}:
        mine = [c["choices"][0] for c in parsed if c["choices"] and c["choices"][0]["index"] == index]
        assert ["role" in choice["delta"] for choice in mine] == [True] + [False] * (len(mine) - 1)
        assert [c["finish_reason"] for c in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[0]["delta"].keys() == {"role", "content"}
        assert mine[-1]["delta"] == {}
        named = [
            c for choice in mine for c in choice["delta"].get("tool_calls", ()) if "name" in c["function"]
        ]
        assert len(named) == len({c["index"] for c in named}), "a tool's name is sent once"
    for chunk in parsed:
        ChatCompletionChunk.model_validate(chunk, strict=True)


@given(stream("chat"))
def test_chat_body_is_of_the_sdks_type(events):
    """Red if a body no longer validates strictly as the official SDK's ChatCompletion."""
    body = openai_chat.Encoder(CHAT, "id", 1, "m").body(Fold(events))
    ChatCompletion.model_validate_json(body, strict=True)


@given(stream("completion"))
def test_completion_body_and_chunks_are_of_the_sdks_type(events):
    """Red if a body or a chunk no longer validates strictly as the official SDK's Completion."""
    body = openai_completions.Encoder(COMPLETION, "id", 1, "m").body(Fold(events))
    if not any(choice["finish_reason"] == "tool_calls" for choice in json.loads(body)["choices"]):
        Completion.model_validate_json(body, strict=True)


def test_usage_only_if_asked():
    """Red if the usage chunk, with its empty choices, reaches clients that did not ask and index into it."""
    events: list[Event] = [TextDelta(0, "a"), Finish(0, "stop"), Done(Usage(1, 1))]
    for kind, (_, call) in CODECS.items():
        parsed = chunks(encode(kind, events, msgspec.structs.replace(call, stream_usage=False)))
        assert all(chunk["choices"] and "usage" not in chunk for chunk in parsed)


def test_usage_details():
    """Red if cached or reasoning tokens are not reported where the SDK looks for them."""
    usage = chunks(encode("chat", [Done(Usage(10, 5, cached_tokens=8, reasoning_tokens=2))]))[0]["usage"]
    assert usage == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {
            "reasoning_tokens": 2,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def test_speculation_in_usage():
    """Red if right and wrong drafts are not reported where the SDK looks for them, and in our own field; or
    if an answer that is not the model's does not say so."""
    done = Done(Usage(10, 9, speculation=SpeculationUsage(4, 8, 5, synthetic=True)))
    usage = chunks(encode("chat", [done]))[0]["usage"]
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] == 5
    assert usage["completion_tokens_details"]["rejected_prediction_tokens"] == 3
    assert usage["speculation"] == {
        "num_steps": 4,
        "num_draft_tokens": 8,
        "num_accepted_tokens": 5,
        "mean_acceptance_length": 2.25,
        "draft_acceptance_rate": 0.625,
        "synthetic": True,
    }


def test_empty_answer_still_opens_with_a_role():
    """Red if a choice that ends at once shows no message at all."""
    first, last, _ = chunks(encode("chat", [Finish(0, "length"), Done(Usage())]))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "length"


def test_tool_call_with_empty_arguments():
    """Red if a call without arguments loses them, its index, its type, or repeats its name."""
    events: list[Event] = [
        ToolCallDelta(0, 0, "call_1", "now", ""),
        ToolCallDelta(0, 0, arguments="{}"),
        Finish(0, "tool_calls"),
        Done(Usage()),
    ]
    calls = [
        c["choices"][0]["delta"].get("tool_calls") for c in chunks(encode("chat", events)) if c["choices"]
    ]
    assert calls == [
        None,
        [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "now", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": "{}"}}],
        None,
    ]
    message = json.loads(openai_chat.Encoder(CHAT, "i", 1, "m").body(Fold(events)))["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}


def test_reasoning_in_both_spellings():
    """Red if a client that knows only one of the two names for reasoning sees none."""
    events: list[Event] = [ReasoningDelta(0, "hm"), TextDelta(0, "yes"), Finish(0, "stop"), Done(Usage())]
    delta = chunks(encode("chat", events))[1]["choices"][0]["delta"]
    assert delta["reasoning"] == delta["reasoning_content"] == "hm"
    message = json.loads(openai_chat.Encoder(CHAT, "i", 1, "m").body(Fold(events)))["choices"][0]["message"]
    assert (message["reasoning"], message["reasoning_content"], message["content"]) == ("hm", "hm", "yes")


def test_held_back_text_sends_nothing_but_the_opening():
    """Red if an empty delta (half a character, a possible stop string) becomes a chunk each time."""
    plain = msgspec.structs.replace(CHAT, extra={}, stream_usage=False)
    events: list[Event] = [
        TextDelta(0, "", (1,)),
        TextDelta(0, "", (2,)),
        TextDelta(0, "é", (3,)),
        Finish(0, "stop"),
    ]
    assert [c["choices"][0]["delta"].get("content") for c in chunks(encode("chat", events, plain))] == [
        "",
        "é",
        None,
    ]
    completion = msgspec.structs.replace(COMPLETION, extra={}, stream_usage=False)
    assert [c["choices"][0]["text"] for c in chunks(encode("completion", events, completion))] == ["é", ""]


@pytest.mark.parametrize("kind", CODECS)
def test_an_error_after_the_start_is_well_formed(kind):
    """Red if a failing stream breaks off instead of saying what happened and ending."""
    failure = Failure("service_unavailable_error", "the engine died", 503, code="engine_died")
    encoded = encode(kind, [TextDelta(0, "a"), failure])
    assert chunks(encoded)[-1] == {
        "error": {
            "message": "the engine died",
            "type": "service_unavailable_error",
            "param": None,
            "code": "engine_died",
        }
    }
    decoder = CODECS[kind][0].Decoder()
    assert decoder.feed(encoded) == [TextDelta(0, "a"), failure]
    assert decoder.close() == []


def test_logprobs_are_finite_json():
    """Red if -inf, which JSON can't say, becomes null: clients do arithmetic with it."""
    item = TokenLogprob("a", float("-inf"), b"a", 1, (TopLogprob("b", float("-inf"), b"b", 2),))
    for kind in CODECS:
        logprobs = chunks(encode(kind, [TextDelta(0, "a", (), (item,))]))[-1]["choices"][0]["logprobs"]
        assert "-9999.0" in json.dumps(logprobs)
        assert "null" not in json.dumps(logprobs).replace('"refusal": null', "")


def test_echo_with_logprobs():
    """Red if the echoed prompt's first token has a logprob, or offsets don't run on into the answer."""
    call = Call(
        kind="completion",
        model="m",
        echo=True,
        sampling=SamplingParams(logprobs=1, prompt_logprobs=1),
        stream=True,
    )
    tops = (TopLogprob("é", -0.5, "é".encode(), 2), TopLogprob("x", -1.0, b"x", 3))
    events: list[Event] = [
        PromptEcho(
            0,
            "aé",
            (1, 2),
            (TokenLogprob("a", None, b"a", 1), TokenLogprob("é", -0.5, "é".encode(), 2, tops)),
        ),
        TextDelta(0, "bc", (4,), (TokenLogprob("bc", -0.25, b"bc", 4),)),
        TextDelta(0, "d", (5,), (TokenLogprob("d", -0.75, b"d", 5),)),
        Finish(0, "length"),
        Done(Usage(2, 2)),
    ]
    encoder = openai_completions.Encoder(call, "i", 1, "m")
    choice = json.loads(encoder.body(Fold(events)))["choices"][0]
    assert choice["text"] == "aébcd"
    assert choice["logprobs"] == {
        "tokens": ["a", "é", "bc", "d"],
        "token_logprobs": [None, -0.5, -0.25, -0.75],
        "top_logprobs": [None, {"é": -0.5, "x": -1.0}, {"bc": -0.25}, {"d": -0.75}],
        "text_offset": [0, 1, 2, 4],
    }
    assert "prompt_logprobs" not in choice
    streamed = [
        c["choices"][0]["logprobs"] for c in chunks(encode("completion", events, call)) if c["choices"]
    ]
    assert [log["text_offset"] for log in streamed if log] == [[0, 1], [2], [4]]


def test_offset_of_a_token_inside_a_character():
    """Red if a token that continues a character points beyond it."""
    call = Call(kind="completion", model="m", sampling=SamplingParams(logprobs=0))
    halves = (
        TokenLogprob("?", -1.0, b"\xc3", 1),
        TokenLogprob("?", -1.0, b"\xa9", 2),
        TokenLogprob("b", -1.0, b"b", 3),
    )
    fold = Fold([TextDelta(0, "éb", (1, 2, 3), halves), Finish(0, "stop"), Done(Usage())])
    body = json.loads(openai_completions.Encoder(call, "i", 1, "m").body(fold))
    assert body["choices"][0]["logprobs"]["text_offset"] == [0, 0, 1]


def test_prompt_logprobs():
    """Red if prompt log-probabilities asked for by name are missing, repeated, or ranked wrongly."""
    sampling = SamplingParams(prompt_logprobs=1)
    top = (TopLogprob("x", -0.1, b"x", 7),)
    echo = PromptEcho(
        0, "ab", (1, 2), (TokenLogprob("a", None, b"a", 1), TokenLogprob("b", -3.0, b"b", 2, top))
    )
    events: list[Event] = [echo, TextDelta(0, "c"), TextDelta(0, "d"), Finish(0, "stop"), Done(Usage())]
    expected = [
        None,
        {
            "2": {"logprob": -3.0, "rank": None, "decoded_token": "b"},
            "7": {"logprob": -0.1, "rank": 1, "decoded_token": "x"},
        },
    ]
    chat = Call(kind="chat", model="m", sampling=sampling)
    assert [c.get("prompt_logprobs") for c in chunks(encode("chat", events, chat))] == [
        None,
        expected,
        None,
        None,
    ]
    assert (
        json.loads(openai_chat.Encoder(chat, "i", 1, "m").body(Fold(events)))["prompt_logprobs"] == expected
    )
    completion = Call(kind="completion", model="m", sampling=sampling)
    shown = [c["choices"][0].get("prompt_logprobs") for c in chunks(encode("completion", events, completion))]
    assert shown == [expected, None, None, None]
    body = json.loads(openai_completions.Encoder(completion, "i", 1, "m").body(Fold(events)))
    assert body["choices"][0]["prompt_logprobs"] == expected


# --------------------------------------------------------------------------- upstreams

FRAME = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"eos"}]}\n\n'


def decode(*parts: bytes) -> list[Event]:
    decoder = openai_chat.Decoder()
    return [event for part in parts for event in decoder.feed(part)] + decoder.close()


def test_a_cut_upstream_never_passes_for_a_whole_answer():
    """Red if a stream that breaks off without a finish ends in Done."""
    *_, last = decode(FRAME)
    assert isinstance(last, Failure)
    assert isinstance(decode()[-1], Failure)
    two = b'data: {"choices":[{"index":1,"delta":{"content":"b"}}]}\n\n'
    assert isinstance(decode(two, FINISH)[-1], Failure), "choice 1 never finished"


def test_an_upstream_without_done_is_whole_if_its_choices_finished():
    """Red if servers that leave [DONE] out can't be used; an unknown finish reason reads as stop."""
    assert decode(FRAME, FINISH) == [TextDelta(0, "a"), Finish(0, "stop"), Done(Usage())]


def test_nothing_counts_after_the_end():
    """Red if bytes after [DONE] or after an error still make events."""
    assert decode(FRAME, FINISH, b"data: [DONE]\n\n" + FRAME, FRAME)[-1] == Done(Usage())
    error = b'data: {"error":{"message":"m","type":"t","code":429}}\n\n'
    assert decode(error, FRAME) == [Failure("t", "m", 503, None, "429")]


@pytest.mark.parametrize(
    "junk", [b"data: {\n\n", b"data: []\n\n", b"data: \xff\n\n", b'data: {"choices":5}\n\n']
)
def test_junk_from_an_upstream_is_a_failure(junk):
    """Red if a chunk that is not of the format raises instead of ending the stream well-formed."""
    events = decode(FRAME, junk)
    assert isinstance(events[-1], Failure)
    assert "not of this format" in events[-1].message


def test_an_endless_upstream_event_is_a_failure():
    """Red if an upstream that never ends a line takes all memory or raises."""
    decoder = openai_chat.Decoder()
    events: list[Event] = []
    while not events:
        events = decoder.feed(b"x" * 2**22)
    assert isinstance(events[0], Failure)
    assert decoder.feed(FRAME) == decoder.close() == []


def test_other_servers_chunks():
    """Red if variations that other servers send (nulls, missing fields, `refusal`) are not understood."""
    frames = (
        b'data: {"id":null,"choices":[]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}],"usage":null}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"refusal":"no"},"logprobs":{"content":null}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":['
        b'{"index":0,"id":"1","function":{"name":"f"}}]}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":null,"tool_calls":[{"index":0}]},'
        b'"finish_reason":"tool_calls"}]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n',
    )
    events = decode(*frames, b"data: [DONE]\n\n")
    assert events == [
        TextDelta(0, "no"),
        ToolCallDelta(0, 0, "1", "f", ""),
        ToolCallDelta(0, 0, None, None, ""),
        Finish(0, "tool_calls"),
        Done(Usage(3, 2)),
    ]


def test_completion_without_alternatives():
    """Red if logprobs of a server that leaves top_logprobs out are not understood."""
    frame = (
        b'data: {"choices":[{"index":0,"text":"a","logprobs":{"tokens":["a"],"token_logprobs":[-1.0]}}]}\n\n'
    )
    events = openai_completions.Decoder().feed(frame)
    assert events == [TextDelta(0, "a", (), (TokenLogprob("a", -1.0, b"a", -1),))]
