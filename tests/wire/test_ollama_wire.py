"""Ollama's format: nothing lost between bytes and Call, lines that add up to the body, the way back."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.call import (
    CachePolicy,
    Call,
    Done,
    Event,
    Failure,
    Finish,
    ImagePart,
    Message,
    ReasoningPart,
    ResponseFormat,
    SamplingParams,
    TextDelta,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
    Usage,
)
from penstock.errors import InvalidRequest, PenstockError
from penstock.wire import ollama_chat, ollama_generate
from penstock.wire.fold import Fold
from penstock.wire.ollama_common import is_load, is_unload, keep_alive_s
from support.ollama_strategies import answer, chat_call, generate_call

HELLO = [{"role": "user", "content": "hello"}]
CODECS = {"chat": ollama_chat, "generate": ollama_generate}
CALLS = {
    "chat": Call(kind="chat", model="m", messages=(Message("user", (TextPart("x"),)),)),
    "generate": Call(kind="completion", model="m", prompts=("x",)),
}
END = [Finish(0, "stop"), Done(Usage(1, 2))]


def read_chat(**fields: Any) -> Call:
    return ollama_chat.read_request(json.dumps({"model": "m", "messages": HELLO} | fields).encode())


def read_generate(**fields: Any) -> Call:
    return ollama_generate.read_request(json.dumps({"model": "m", "prompt": "p"} | fields).encode())


# ---------------------------------------------------------------- requests


@given(chat_call())
def test_chat_call_survives_the_wire(original):
    """Red if a field of Call is written but not read, or read with another meaning."""
    assert ollama_chat.read_request(ollama_chat.write_request(original)) == original


@given(generate_call())
def test_generate_call_survives_the_wire(original):
    """Red if a field of Call is written but not read, or read with another meaning."""
    assert ollama_generate.read_request(ollama_generate.write_request(original)) == original


def test_streaming_is_the_default():
    """Red if a request without `stream` is answered in one body: this API streams unless told not to."""
    assert read_chat().stream and read_generate(stream=None).stream
    assert not read_chat(stream=False).stream


def test_every_field_may_be_null():
    """Red if null stops meaning "left alone" for some field: SDKs in typed languages send it."""
    for codec, request, required in (
        (ollama_chat, ollama_chat.ChatRequest, {"model": "m", "messages": HELLO}),
        (ollama_generate, ollama_generate.GenerateRequest, {"model": "m", "prompt": "p"}),
    ):
        nulls = dict.fromkeys(request.__struct_fields__)
        full = codec.read_request(json.dumps(nulls | required).encode())
        assert full == codec.read_request(json.dumps(required).encode())
        assert full.sampling == SamplingParams()


def test_messages_in_every_spelling():
    """Red if a tool's answer is given to another call, or arguments are read as something else."""
    call = {"function": {"name": "f", "arguments": {"a": [1, 2.50]}}}
    parsed = read_chat(
        messages=[
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u", "images": ["AAE="]},
            {"role": "assistant", "content": "", "thinking": "t", "tool_calls": [call, call]},
            {"role": "tool", "content": "1", "tool_name": "f"},
            {"role": "tool", "content": "2"},
            {
                "role": "assistant",
                "tool_calls": [{"id": "own", "function": {"name": "g", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "3", "tool_call_id": "own"},
        ]
    )
    assert parsed.messages == (
        Message("system", (TextPart("s"),)),
        Message("user", (TextPart("u"), ImagePart(data=b"\x00\x01"))),
        Message(
            "assistant",
            (
                ReasoningPart("t"),
                ToolCallPart("call_0", "f", '{"a": [1, 2.5]}'),
                ToolCallPart("call_1", "f", '{"a": [1, 2.5]}'),
            ),
        ),
        Message("tool", (ToolResultPart("call_0", (TextPart("1"),)),), "f"),
        Message("tool", (ToolResultPart("call_1", (TextPart("2"),)),)),
        Message("assistant", (ToolCallPart("own", "g", "{}"),)),
        Message("tool", (ToolResultPart("own", (TextPart("3"),)),)),
    )


@pytest.mark.parametrize("name", [None, "f"])
def test_an_answer_whose_call_lost_its_id_finds_it(name):
    """Red if a client (litellm) that drops the ids of calls, but sends them with answers, mixes tools up."""
    named = {} if name is None else {"tool_name": name}
    calls = [{"function": {"name": n, "arguments": {}}} for n in ("f", "f")]
    kept = {"id": "mine", "function": {"name": "f", "arguments": {}}}
    answers = [{"role": "tool", "content": t, "tool_call_id": f"lost_{t}", **named} for t in "ab"]
    answers.append({"role": "tool", "content": "c", "tool_call_id": "mine"})
    body = {"model": "m", "messages": [{"role": "assistant", "tool_calls": [kept, *calls]}, *answers]}
    messages = ollama_chat.read_request(json.dumps(body).encode()).messages
    made = [part.id for part in messages[0].parts]
    assert [message.parts[0].id for message in messages[1:]] == [made[1], made[2], "mine"]


def test_generate_is_a_turn_or_raw_text():
    """Red if system text is lost, or a raw prompt meets the chat template."""
    parsed = read_generate(system="s")
    assert parsed.messages == (Message("system", (TextPart("s"),)), Message("user", (TextPart("p"),)))
    raw = read_generate(raw=True)
    assert (raw.kind, raw.prompts, raw.messages) == ("completion", ("p",), ())
    for field, value in (("system", "s"), ("think", True), ("images", ["AAE="])):
        with pytest.raises(InvalidRequest, match=f"{field}: a raw prompt"):
            read_generate(raw=True, **{field: value})


def test_what_asks_to_load_and_to_unload():
    """Red if an empty request is answered with text, or a question taken for a load."""
    for parsed in (read_chat(messages=[]), read_chat(messages=None), read_generate(prompt="", system="s")):
        assert is_load(parsed) and not is_unload(parsed)
    assert is_unload(read_chat(messages=[], keep_alive=0)) and is_unload(
        read_chat(messages=[], keep_alive="0s")
    )
    assert not is_load(read_chat(keep_alive=0)) and not is_load(read_generate(prompt="", images=["AAE="]))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("300ms", 0.3),
        ("0", 0.0),
        (0, 0.0),
        (30, 30.0),
        (2.5, 2.5),
        (-1, None),
        ("-1", None),
        ("-1m", None),
        ("+24h", 86400.0),
    ],
)
def test_keep_alive_in_every_spelling(value, seconds):
    """Red if a duration is read as another, or a negative one is not "for ever"."""
    assert keep_alive_s(value) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("value", ["soon", "5 m", "m", "", "1h 5m", True, [5], {"m": 5}, "1.5"])
def test_a_keep_alive_that_is_none(value):
    """Red if nonsense is taken for some duration."""
    with pytest.raises(InvalidRequest, match="keep_alive"):
        read_chat(keep_alive=value)


def test_think_and_format():
    """Red if a level or form of this API is read as another."""
    assert read_chat(think=False).template_args == {"enable_thinking": False}
    assert read_chat(think="max").template_args == {"reasoning_effort": "xhigh"}
    assert read_chat(format="").response_format is None
    assert read_chat(format={"type": "object"}).response_format == ResponseFormat(
        "json_schema", {"type": "object"}
    )
    with pytest.raises(InvalidRequest, match="format: 'yaml'"):
        read_chat(format="yaml")


@pytest.mark.parametrize("num_predict", [-2, -1, 0])
def test_num_predict_without_a_limit(num_predict):
    """Red if one of the values that mean "no limit" becomes one."""
    assert read_chat(options={"num_predict": num_predict}).sampling.max_tokens is None
    with pytest.raises(InvalidRequest, match=r"options\.num_predict: -3"):
        read_chat(options={"num_predict": -3})


def test_an_upstream_is_told_every_option():
    """Red if an option is left to an upstream's default, which is another than ours."""
    options = json.loads(ollama_chat.write_request(read_chat()))["options"]
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0}
    penalties = {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert options == neutral | penalties | {"stop": [], "num_predict": -1}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sampling": SamplingParams(n=2)}, "n"),
        ({"sampling": SamplingParams(logit_bias={1: 1.0})}, "logit_bias"),
        ({"sampling": SamplingParams(thinking_budget=5)}, "thinking_budget"),
        ({"sampling": SamplingParams(regex="a")}, "regex"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"cache": CachePolicy(salt="s")}, "cache_salt"),
        ({"template_args": {"custom": 1}}, "template_args.custom"),
        ({"tools": (ToolSpec("f", strict=True),)}, "tools[0].strict"),
        ({"messages": (Message("user", (TextPart("x"),), "bob"),)}, "messages[0].name"),
        ({"messages": (Message("user", (ImagePart(url="http://x/y"),)),)}, "messages[0].image_url"),
        ({"messages": (Message("tool", (ToolResultPart("1", is_error=True),)),)}, "messages[0].is_error"),
        (
            {"messages": (Message("assistant", (ToolCallPart("1", "f", "[1]"),)),)},
            "messages[0].tool_calls",
        ),
    ],
)
def test_what_the_format_cannot_say_is_refused_by_name(change, field):
    """Red if something that decides about the answer gets lost on the way to an upstream."""
    with pytest.raises(InvalidRequest) as caught:
        ollama_chat.write_request(msgspec.structs.replace(CALLS["chat"], **change))
    assert caught.value.param == field


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize("kind", CODECS)
@given(data=st.data())
def test_any_json_in_any_field_is_read_or_refused(kind, data):
    """Red if a field with an unexpected JSON value raises something else than a 400."""
    codec = CODECS[kind]
    request = codec.ChatRequest if kind == "chat" else codec.GenerateRequest
    field = data.draw(st.sampled_from(request.__struct_fields__))
    base = {"model": "m", "messages": HELLO} if kind == "chat" else {"model": "m", "prompt": "p"}
    body = json.dumps(base | {field: data.draw(_json)}).encode("utf-8", "surrogatepass")
    try:
        parsed = codec.read_request(body)
    except PenstockError as error:
        assert error.status == 400
    else:
        parsed.sampling.validate()


# ---------------------------------------------------------------- answers


def encode(kind: str, events: list[Event], call: Call | None = None) -> bytes:
    encoder = CODECS[kind].Encoder(call or CALLS[kind], "id", 1_700_000_000, "m")
    return b"".join(map(encoder.feed, events)) + encoder.close()


def whole(kind: str, events: list[Event]) -> dict:
    return json.loads(CODECS[kind].Encoder(CALLS[kind], "id", 1_700_000_000, "m").body(Fold(events)))


def lines(data: bytes) -> list[dict]:
    """As the official client reads them: Python's idea of lines, none of them empty."""
    return [json.loads(line) for line in data.decode().splitlines()]


def added_up(found: list[dict]) -> dict:
    """The body that a client makes of lines."""
    *parts, last = found
    total = dict(last)
    fields = [part.get("message", part) for part in found]
    text = "content" if "message" in last else "response"
    said: dict[str, Any] = {**last.get("message", {}), text: "".join(f[text] for f in fields)}
    thinking = "".join(f.get("thinking", "") for f in fields)
    calls = [call for f in fields for call in f.get("tool_calls", [])]
    if thinking:
        said["thinking"] = thinking
    if calls:
        said["tool_calls"] = calls
    if logprobs := [item for part in parts for item in part.get("logprobs", [])]:
        total["logprobs"] = logprobs
    return total | ({"message": said} if "message" in last else said)


@pytest.mark.parametrize("kind", CODECS)
@given(data=st.data())
def test_a_stream_adds_up_to_the_body(kind, data):
    """Red if streaming shows another answer than one body does, or a line is cut in two for Python."""
    events = data.draw(answer(calls=kind == "chat"))
    found = lines(encode(kind, events))
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    assert added_up(found) == whole(kind, events)


def seen(fold: Fold) -> list:
    choice = fold.choices()[0]
    found = [choice.text, choice.reasoning, tuple(choice.logprobs or ()), choice.finish]
    calls = [(call.id, call.name, json.loads(call.arguments)) for call in choice.tool_calls]
    return [*found, calls, fold.usage, fold.failure]


@pytest.mark.parametrize("kind", CODECS)
@given(data=st.data())
def test_a_decoded_stream_folds_to_the_same_answer(kind, data):
    """Red if a line drops, repeats or renames something on the way to a client and back, at any split."""
    events = data.draw(answer(calls=kind == "chat"))
    encoded = encode(kind, events)
    cuts = data.draw(st.lists(st.integers(0, len(encoded))))
    decoder = CODECS[kind].Decoder()
    edges = sorted({0, len(encoded), *cuts})
    decoded = [e for a, b in pairwise(edges) for e in decoder.feed(encoded[a:b])]
    assert decoder.close() == []
    assert seen(Fold(decoded)) == seen(Fold(events))
    body = CODECS[kind].Encoder(CALLS[kind], "id", 1, "m").body(Fold(events))
    decoder = CODECS[kind].Decoder()
    assert seen(Fold(decoder.feed(body) + decoder.close())) == seen(Fold(events))


def test_durations_are_whole_nanoseconds():
    """Red if a duration is a fraction or another unit: clients divide by 10^9."""
    from penstock.call import Timings

    last = lines(encode("chat", [Finish(0, "length"), Done(Usage(5, 7), Timings(0.25, 1.0, 3.5))]))[-1]
    names = ("load_duration", "prompt_eval_duration", "eval_duration", "total_duration")
    assert [last[name] for name in names] == [250_000_000, 750_000_000, 2_500_000_000, 3_500_000_000]
    assert all(type(last[name]) is int for name in names)
    assert (last["prompt_eval_count"], last["eval_count"], last["done_reason"]) == (5, 7, "length")
    assert last["created_at"] == "2023-11-14T22:13:20Z"


def test_a_load_says_so():
    """Red if loading reports counts of an answer that there was not, or reads as a stop."""
    call = Call(kind="chat", model="m")
    for kind in CODECS:
        [last] = lines(encode(kind, list(END), call))
        assert (last["done"], last["done_reason"], "eval_count" in last) == (True, "load", False)


@pytest.mark.parametrize(
    "arguments", ["", "{}", '{\r\n "a": 1e999,\n "b": "\\n\u2028"\n}', '{"a": 12345678901234567890123}']
)
def test_arguments_stay_as_they_were_written(arguments):
    """Red if an object's numbers change, or an end of line inside it breaks the stream's."""
    events = [ToolCallDelta(0, 0, "1", "f", arguments), *END]
    called = [line["message"] for line in lines(encode("chat", events)) if "tool_calls" in line["message"]]
    assert called[0]["tool_calls"][0]["function"]["arguments"] == json.loads(arguments or "{}")


@pytest.mark.parametrize("arguments", ['{"a": 1', "[1]", "text", "{} {}", '{"a": NaN}'])
def test_a_cut_call_is_shown_as_text(arguments):
    """Red if arguments that are no object are dropped, or make a body that clients can't read."""
    events = [TextDelta(0, "so: "), ToolCallDelta(0, 0, "1", "f", arguments), *END]
    body = whole("chat", events)
    assert body["message"]["content"] == f"so: f {arguments}"
    assert "tool_calls" not in body["message"]
    assert added_up(lines(encode("chat", events))) == body


def test_an_error_is_the_last_line():
    """Red if a stream that fails ends in something else than one line with `error`."""
    found = lines(encode("chat", [TextDelta(0, "a"), Failure("internal_error", "broken", 500)]))
    assert found[-1] == {"error": "broken"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"message":{"content":"a"},"done":false}\n', "before its end"),
        (b'{"message":{"content":"a"},"done":fal', "not of this format"),
        (b"<html>\n", "not of this format"),
        (b'{"error":"out of memory"}\n', "out of memory"),
        (b"", "before its end"),
    ],
)
def test_an_upstream_that_breaks_off_is_a_failure(data, message):
    """Red if a cut answer of an upstream passes for a whole one."""
    decoder = ollama_chat.Decoder()
    events = decoder.feed(data) + decoder.close()
    assert isinstance(events[-1], Failure) and message in events[-1].message
    assert decoder.feed(b'{"done":true}\n') == [] == decoder.close()


def test_calls_of_an_upstream_without_ids_get_some():
    """Red if two calls of an older upstream are taken for one."""
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    body = {"message": {"content": "", "tool_calls": [call, call]}, "done": True, "done_reason": "stop"}
    decoder = ollama_chat.Decoder()
    fold = Fold(decoder.feed(json.dumps(body).encode()) + decoder.close())
    assert [c.id for c in fold.choices()[0].tool_calls] == ["call_0", "call_1"]
    assert fold.choices()[0].finish.reason == "tool_calls"
