"""Requests of the Responses format: nothing lost between bytes and Call, nothing wrong let through."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.call import (
    Call,
    CustomFormat,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    ResponseFormat,
    SamplingParams,
    TextPart,
    ToolCallPart,
    ToolNamespace,
    ToolResultPart,
    ToolSpec,
)
from penstock.errors import InvalidRequest
from penstock.wire import openai_chat, openai_responses
from penstock.wire.openai_responses_tools import read_tools, write_tools
from support.wire_strategies import call, json_object, name, text

USER = {"role": "user", "content": "hello"}
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}


def read(**fields: Any) -> Call:
    return openai_responses.read_request(json.dumps({"model": "m", "input": "hello"} | fields).encode())


def messages(*items: dict[str, Any]) -> tuple[Message, ...]:
    return read(input=list(items)).messages


# --------------------------------------------------------------------------- round trip


def sayable(original: Call) -> Call:
    """The call as far as this format can say it: one answer, no names, one assistant message per turn."""
    merged: list[Message] = []
    for message in original.messages:
        parts = message.parts
        if message.role == "tool":
            merged.append(Message("tool", parts))
            continue
        last = merged[-1] if merged else None
        joins = (
            message.role == "assistant"
            and last is not None
            and last.role == "assistant"
            and last.parts
            and bool(parts)
            and _joins(last.parts, parts[0])
        )
        if joins and last is not None:
            # What follows a joined part may join too, or begin a message of its own.
            merged[-1] = Message("assistant", (*last.parts, *parts))
        else:
            merged.append(Message(message.role, parts))
    sampling = msgspec.structs.replace(original.sampling, n=1)
    return msgspec.structs.replace(original, messages=tuple(merged), sampling=sampling, session=None)


def _joins(before: tuple[Part, ...], part: Part) -> bool:
    if isinstance(part, ReasoningPart):
        return False
    if isinstance(part, ToolCallPart):
        return True
    return all(isinstance(item, ReasoningPart) for item in before)


tool = st.one_of(
    st.builds(ToolSpec, name, st.none() | text, st.none() | json_object, st.booleans()),
    st.builds(
        lambda n, d, f: read_tools([{"type": "custom", "name": n, "description": d} | f])[0][0],
        name,
        text,
        st.sampled_from(
            [{}]
            + [
                {"format": {"type": "grammar", "syntax": syntax, "definition": "[0-9]+"}}
                for syntax in ("lark", "regex")
            ]
        ),
    ),
)


@given(call("chat"), st.lists(tool, max_size=3, unique_by=lambda spec: spec.name))
def test_a_call_survives_the_wire(original, tools):
    """Red if a field of Call is written but not read, or read with another meaning."""
    original = sayable(msgspec.structs.replace(original, tools=tuple(tools), tool_choice=None))
    if original.messages:
        assert openai_responses.read_request(openai_responses.write_request(original)) == original


@given(st.lists(tool, max_size=4), name, text)
def test_tools_survive_the_wire_in_a_namespace_too(tools, space, description):
    """Red if a tool of a namespace comes back under another name or without its kind."""
    namespace = ToolNamespace(space, description)
    inside = [
        msgspec.structs.replace(spec, name=f"{space}__{spec.name}", namespace=namespace) for spec in tools
    ]
    for specs in (tools, inside, [*inside, ToolSpec("last")]):
        assert read_tools(write_tools(specs))[0] == specs


def test_every_field_may_be_null():
    """Red if null stops meaning "left alone" for some field: SDKs send it."""
    nulls = dict.fromkeys(openai_responses.ResponsesRequest.__struct_fields__)
    full = read(**(nulls | {"model": "m", "input": "hello"}))
    assert full == read()
    assert full.sampling == SamplingParams()


def test_a_chat_becomes_a_responses_request_and_back():
    """Red if translating a conversation with tools between the two OpenAI formats changes it."""
    chat = openai_chat.read_request(
        json.dumps(
            {
                "model": "m",
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "u"},
                    {
                        "role": "assistant",
                        "content": "a",
                        "tool_calls": [
                            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                        ],
                    },
                    {"role": "tool", "tool_call_id": "1", "content": "done"},
                ],
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
            }
        ).encode()
    )
    back = openai_responses.read_request(openai_responses.write_request(chat))
    assert back == chat


# --------------------------------------------------------------------------- items


def test_items_in_every_spelling():
    """Red if a way to write an item is read as something else."""
    assert messages(
        {"type": "message", "role": "developer", "content": "d"},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:,x", "detail": "low"}]},
        {
            "type": "reasoning",
            "id": "rs",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "r"}],
        },
        {
            "type": "message",
            "id": "msg",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "t", "annotations": []}],
        },
        {"type": "function_call", "id": "fc", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "2", "name": "patch", "input": 'a "b"'},
        {"type": "function_call_output", "call_id": "1", "output": "done"},
        {"type": "custom_tool_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "ok"}]},
        {"role": "developer", "content": "mind this"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": "second"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "x"},
    ) == (
        Message("developer", (TextPart("d"),)),
        Message("user", (TextPart("a"), TextPart("b"))),
        Message("user", (ImagePart(url="data:,x", detail="low"),)),
        Message(
            "assistant",
            (
                ReasoningPart("r"),
                TextPart("t"),
                ToolCallPart("1", "f", "{}"),
                ToolCallPart("2", "patch", '{"input":"a \\"b\\""}'),
            ),
        ),
        Message("tool", (ToolResultPart("1", (TextPart("done"),)),)),
        Message("tool", (ToolResultPart("2", (TextPart("ok"),)),)),
        Message("developer", (TextPart("mind this"),)),
        Message("assistant", (TextPart("no"),)),
        Message("assistant", (TextPart("second"),)),
        Message("assistant", (ReasoningPart("s", "x"),)),
    )


def test_instructions_come_first():
    """Red if instructions are lost, or stand behind the input."""
    assert read(instructions="be brief").messages == (
        Message("system", (TextPart("be brief"),)),
        Message("user", (TextPart("hello"),)),
    )


@pytest.mark.parametrize(
    "item, param",
    [
        ({"type": "web_search_call", "id": "x"}, "input[0].type"),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "input[0]"),
        ({"role": "user", "content": [{"type": "input_file", "file_data": "x"}]}, "input[0].content[0].type"),
        (
            {"role": "user", "content": [{"type": "input_image", "file_id": "f"}]},
            "input[0].content[0].image_url",
        ),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0].text"),
        ({"role": "pope", "content": "x"}, "input[0].role"),
        ({"type": "compaction", "encrypted_content": "foreign"}, "input[0].encrypted_content"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(item, param):
    """Red if an item that is not understood is dropped in silence, or its error names another place."""
    with pytest.raises(InvalidRequest) as caught:
        messages(item)
    assert caught.value.param == param


# --------------------------------------------------------------------------- tools


def test_tools_of_every_kind():
    """Red if a kind of tool that clients declare is refused, or offered to the model as something else."""
    lark = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}
    regex = {"type": "grammar", "syntax": "regex", "definition": "a|b"}
    found = read(
        tools=[
            WEATHER,
            {"type": "custom", "name": "apply_patch", "description": "d", "format": lark},
            {"type": "custom", "name": "pick", "format": regex},
            {"type": "namespace", "name": "crm", "description": "c", "tools": [WEATHER]},
            {"type": "web_search", "external_web_access": False},
            {"type": "image_generation"},
        ],
        input=[
            {"type": "additional_tools", "role": "developer", "tools": [WEATHER | {"name": "late"}]},
            USER,
        ],
    )
    names = [spec.name for spec in found.tools]
    assert names == ["weather", "apply_patch", "pick", "crm__weather", "late"]
    assert found.tools[0] == ToolSpec("weather", None, {"type": "object"}, True)
    assert found.tools[1].custom == CustomFormat("lark", 'start: "x"')
    assert 'start: "x"' in json.dumps(found.tools[1].parameters).replace('\\"', '"')
    assert found.tools[2].parameters["properties"]["input"]["pattern"] == "^(?:a|b)$"
    assert found.tools[3].namespace == ToolNamespace("crm", "c")
    assert found.extra["tools"] == [
        {"type": "web_search", "external_web_access": False},
        {"type": "image_generation"},
    ]
    written = json.loads(openai_responses.write_request(found))
    assert [tool["type"] for tool in written["tools"]] == [
        "function",
        "custom",
        "custom",
        "namespace",
        "function",
        "web_search",
        "image_generation",
    ]


@pytest.mark.parametrize(
    "choice, wanted",
    [
        ("none", "none"),
        ("auto", "auto"),
        ("required", "required"),
        ({"type": "function", "name": "weather"}, "tool:weather"),
        ({"type": "custom", "name": "patch"}, "tool:patch"),
        ({"type": "function", "name": "weather", "namespace": "crm"}, "tool:crm__weather"),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "custom", "name": "patch"}, {"type": "web_search"}],
            },
            "required",
        ),
    ],
)
def test_choices(choice, wanted):
    """Red if a form of tool_choice is read as another, or lost on the way to an upstream."""
    nested = {"type": "namespace", "name": "crm", "description": "", "tools": [WEATHER]}
    found = read(tools=[WEATHER, {"type": "custom", "name": "patch"}, nested], tool_choice=choice)
    assert found.tool_choice == wanted
    is_limited = isinstance(choice, dict) and choice["type"] == "allowed_tools"
    assert [spec.name for spec in found.tools] == (
        ["patch"] if is_limited else ["weather", "patch", "crm__weather"]
    )
    assert json.loads(openai_responses.write_request(found))["tool_choice"] == choice


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
        ({"input": []}, "input"),
        ({"previous_response_id": "a", "conversation": "b"}, "conversation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"reasoning": {"effort": 7}}, "reasoning.effort"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields, param):
    """Red if a request that can't be honoured is answered as if it were, or its error names another field."""
    with pytest.raises(InvalidRequest) as caught:
        read(**fields)
    assert caught.value.param == param


# --------------------------------------------------------------------------- the rest of the body


def test_fields_with_a_meaning():
    """Red if a field of the API does not reach the call, or an upstream."""
    found = read(
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_logprobs=2,
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
        reasoning={"effort": "low", "summary": "auto"},
        prompt_cache_key="k",
        metadata={"a": "b"},
        service_tier="flex",
        truncation="disabled",
        stream=True,
        stream_options={"include_obfuscation": False},
        user="u",
    )
    sampling = found.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.logprobs) == (9, 0.5, 0.9, 2)
    assert found.response_format == ResponseFormat("json_schema", {"type": "object"}, "n", True)
    assert (found.cache.key, found.metadata, found.user) == ("k", {"a": "b"}, "u")
    assert (found.template_args, found.parallel_tool_calls, found.stream) == (
        {"reasoning_effort": "low"},
        False,
        True,
    )
    assert found.extra["service_tier"] == "flex"
    written = json.loads(openai_responses.write_request(found))
    assert written["reasoning"] == {"effort": "low", "summary": "auto"}
    assert written["text"]["format"]["name"] == "n"
    assert (written["store"], written["service_tier"]) == (False, "flex")


def test_a_session_is_only_where_something_is_stored():
    """Red if `store: false` is stored, or a call with turns to read goes out without them."""
    assert read(store=False).session is None
    kept = read().session
    assert (kept.store, kept.items) == (True, ({"type": "message", **USER},))
    after = read(store=False, previous_response_id="r")
    assert (after.session.store, after.session.previous_response_id, after.messages) == (False, "r", ())
    assert (
        read(conversation={"id": "c"}).session.conversation
        == read(conversation="c").session.conversation
        == "c"
    )
    assert read(store=False, input=[{"type": "item_reference", "id": "x"}]).session is not None


def test_a_codex_request_passes_unchanged():
    """Red if a field that the Codex CLI sends is refused, or a tool of its is not offered to the model."""
    body = {
        "model": "m",
        "instructions": "You are Codex.",
        "input": [
            {
                "type": "message",
                "role": "developer",
                "content": [{"type": "input_text", "text": "<permissions>"}],
            },
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "fix it"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"},
            {"type": "function_call", "name": "shell", "arguments": '{"command":["ls"]}', "call_id": "c1"},
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "mid"}]},
            {
                "type": "function_call_output",
                "call_id": "c1",
                "output": [{"type": "input_text", "text": "a.py"}],
            },
            {
                "type": "agent_message",
                "author": "a",
                "recipient": "b",
                "content": [{"type": "input_text", "text": "hi"}],
            },
        ],
        "tools": [
            {"type": "function", "name": "shell", "description": "", "strict": False, "parameters": {}},
            {
                "type": "custom",
                "name": "apply_patch",
                "format": {"type": "grammar", "syntax": "lark", "definition": "s: x"},
            },
            {"type": "namespace", "name": "mcp", "description": "", "tools": [WEATHER]},
            {"type": "tool_search"},
            {"type": "web_search", "external_web_access": True},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199",
        "text": {"verbosity": "low"},
        "service_tier": "priority",
        "client_metadata": {"x": "y"},
    }
    found = openai_responses.read_request(json.dumps(body).encode())
    assert [spec.name for spec in found.tools] == ["shell", "apply_patch", "mcp__weather"]
    roles = [message.role for message in found.messages]
    assert roles == ["system", "developer", "user", "assistant", "developer", "tool", "user"]
    written = json.loads(openai_responses.write_request(found))
    for field in body.keys() - {"input", "tools"}:
        assert written[field] == body[field], field
