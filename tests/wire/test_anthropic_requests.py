"""Requests of the Anthropic format: what is read, what is refused and how it is named, and the way back."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.call import (
    CachePolicy,
    Call,
    ImagePart,
    Message,
    ReasoningPart,
    ResponseFormat,
    SamplingParams,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
)
from penstock.errors import InvalidRequest
from penstock.wire import anthropic_messages, openai_chat
from penstock.wire.anthropic_signature import SIGNER, Signer
from support.anthropic_strategies import call

HELLO = [{"role": "user", "content": "hello"}]


def read(**fields: object) -> Call:
    body = {"model": "m", "max_tokens": 10, "messages": HELLO} | fields
    return anthropic_messages.read_request(json.dumps(body).encode())


def parts(*blocks: dict, role: str = "user") -> tuple[Message, ...]:
    return read(messages=[{"role": role, "content": list(blocks)}]).messages


def refused(**fields: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read(**fields)
    assert caught.value.param is not None and caught.value.param in caught.value.message
    return caught.value


# --------------------------------------------------------------------------- both directions


@given(call())
def test_a_written_request_reads_back(original):
    """Red if a field of a call is lost or changed on the way to an upstream of this format."""
    assert anthropic_messages.read_request(anthropic_messages.write_request(original)) == original


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(n=2),
        SamplingParams(seed=1),
        SamplingParams(logprobs=0),
        SamplingParams(temperature=1.5),
        SamplingParams(regex="a"),
        SamplingParams(presence_penalty=0.5),
    ],
)
def test_what_the_format_can_not_say_is_refused_by_name(params):
    """Red if an upstream of this format is asked for less than the caller asked for, in silence."""
    original = Call(kind="chat", model="m", messages=(Message("user", (TextPart("x"),)),), sampling=params)
    with pytest.raises(InvalidRequest) as caught:
        anthropic_messages.write_request(original)
    name = caught.value.param
    assert name is not None and getattr(params, name) != getattr(SamplingParams(), name)


def test_a_call_of_the_openai_format_goes_to_an_upstream_of_this_one():
    """Red if a tool conversation that came in another format loses a result, an order or a schema."""
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    calls = [{"id": i, "type": "function", "function": {"name": "now", "arguments": "{}"}} for i in "ab"]
    body = {
        "model": "m",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": "when?"},
            {"role": "assistant", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "a", "content": "1"},
            {"role": "tool", "tool_call_id": "b", "content": "2"},
            {"role": "user", "content": "well?"},
        ],
        "tools": [tool],
        "tool_choice": "required",
    }
    written = json.loads(
        anthropic_messages.write_request(openai_chat.read_request(json.dumps(body).encode()))
    )
    assert written["system"] == [{"type": "text", "text": "be brief"}]
    assert [m["role"] for m in written["messages"]] == ["user", "assistant", "user"]
    answers = written["messages"][2]["content"]
    assert [b["type"] for b in answers] == ["tool_result", "tool_result", "text"]
    assert [b.get("tool_use_id") for b in answers[:2]] == ["a", "b"]
    assert written["tools"] == [{"name": "now", "input_schema": {"type": "object"}}]
    assert written["tool_choice"] == {"type": "any"}
    assert written["max_tokens"] > 0


# --------------------------------------------------------------------------- reading


def test_fields():
    """Red if a documented field is read as something else."""
    got = read(
        system=[{"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        stop_sequences=["x"],
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        stream=True,
        metadata={"user_id": "u"},
        tools=[
            {"name": "f", "description": "d", "input_schema": {"type": "object"}, "strict": True},
            {"name": "g", "type": "custom", "input_schema": {}, "defer_loading": True},
        ],
        tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "high"},
    )
    assert got.messages == (Message("system", (TextPart("a"),)), Message("user", (TextPart("hello"),)))
    assert got.sampling == SamplingParams(max_tokens=10, stop=("x",), temperature=0.5, top_p=0.9, top_k=5)
    assert got.tools == (ToolSpec("f", "d", {"type": "object"}, True), ToolSpec("g", None, {}, False))
    assert (got.tool_choice, got.parallel_tool_calls) == ("tool:f", False)
    assert got.response_format == ResponseFormat("json_schema", {"type": "object"}, None, True)
    assert got.template_args == {"reasoning_effort": "high"}
    assert (got.stream, got.user, got.cache) == (True, "u", CachePolicy(ttl_s=3600))


def test_unknown_fields_and_betas_are_accepted_and_kept():
    """Red if a field of a beta that a coding agent sends is a 400, or is lost for an upstream."""
    unknown = {
        "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
        "service_tier": "auto",
        "speed": "fast",
        "diagnostics": {"previous_message_id": None},
        "mcp_servers": [],
        "x": 1,
    }
    got = read(**unknown)
    assert got.extra == unknown
    assert json.loads(anthropic_messages.write_request(got)).items() >= unknown.items()


@pytest.mark.parametrize(
    "name,model",
    [("claude-penstock/org/m", "org/m"), ("m", "m"), ("claude-sonnet-5", "claude-sonnet-5")],
)
def test_an_alias_names_its_model(name, model):
    """Red if a model can't be called by the name that discovery offers, or another name is cut."""
    assert read(model=name).model == model


@pytest.mark.parametrize(
    "choice,expected",
    [
        ({"type": "auto"}, ("auto", None)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", False)),
        ({"type": "any", "disable_parallel_tool_use": False}, ("required", True)),
        ({"type": "none"}, ("none", None)),
        (None, (None, None)),
    ],
)
def test_tool_choice(choice, expected):
    """Red if a choice of tools, or the wish for one call at a time, changes on the way."""
    got = read(tools=[{"name": "f", "input_schema": {}}], tool_choice=choice)
    assert (got.tool_choice, got.parallel_tool_calls) == expected


@pytest.mark.parametrize(
    "thinking,effort,expected",
    [
        ({"type": "enabled", "budget_tokens": 2000}, None, (2000, {"enable_thinking": True})),
        ({"type": "enabled", "budget_tokens": 2000}, "low", (2000, {"enable_thinking": True})),
        ({"type": "disabled"}, "max", (0, {"enable_thinking": False})),
        ({"type": "adaptive"}, None, (None, {"enable_thinking": True})),
        ({"type": "adaptive"}, "max", (None, {"enable_thinking": True, "reasoning_effort": "xhigh"})),
        (None, "low", (None, {"reasoning_effort": "low"})),
        (None, None, (None, {})),
        ({"type": "between_tools"}, "low", (0, {"enable_thinking": False})),
    ],
)
def test_thinking(thinking, effort, expected):
    """Red if a way to ask for thinking means something else, or contradicts an effort sent with it."""
    got = read(thinking=thinking, output_config={"effort": effort})
    assert (got.sampling.thinking_budget, got.template_args) == expected


def test_between_tools_means_after_a_result():
    """Red if a model asked to think between tools only does not think about a tool's result."""
    history = [
        *HELLO,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]},
    ]
    got = read(messages=history, thinking={"type": "between_tools"})
    assert got.template_args == {"enable_thinking": True}
    written = json.loads(anthropic_messages.write_request(got))
    assert written["thinking"] == {"type": "between_tools"}


def test_blocks_of_a_user():
    """Red if a block that a user may send is read as something else."""
    pixel = base64.b64encode(b"\x89PNG").decode()
    found = parts(
        {"type": "text", "text": "look"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": pixel}},
        {"type": "image", "source": {"type": "url", "url": "https://e.example/a.png"}},
        {
            "type": "document",
            "title": "T",
            "source": {"type": "text", "media_type": "text/plain", "data": "d"},
        },
        {"type": "document", "source": {"type": "content", "content": "inner"}},
        {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "r"}]},
    )
    assert found == (
        Message(
            "user",
            (
                TextPart("look"),
                ImagePart(data=b"\x89PNG", media_type="image/png"),
                ImagePart(url="https://e.example/a.png"),
                TextPart("T\n\n"),
                TextPart("d"),
                TextPart("inner"),
                TextPart("t\ns\n\n"),
                TextPart("r"),
            ),
        ),
    )


def test_tool_results_come_before_what_the_user_adds():
    """Red if results of parallel calls are merged, lose their error flag, or stand behind other words."""
    found = parts(
        {"type": "text", "text": "go on"},
        {"type": "tool_result", "tool_use_id": "b", "content": "no", "is_error": True},
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "1"}]},
        {"type": "tool_result", "tool_use_id": "c"},
    )
    assert found == (
        Message("tool", (ToolResultPart("b", (TextPart("no"),), True),)),
        Message("tool", (ToolResultPart("a", (TextPart("1"),)),)),
        Message("tool", (ToolResultPart("c"),)),
        Message("user", (TextPart("go on"),)),
    )


def test_system_messages_in_the_middle():
    """Red if an instruction that comes later in a conversation is refused or moves."""
    got = read(system="first", messages=[*HELLO, {"role": "system", "content": "later"}, *HELLO])
    assert [m.role for m in got.messages] == ["system", "user", "system", "user"]


def test_an_input_that_was_no_json_goes_back_as_the_model_wrote_it():
    """Red if a model's own slip in a tool's arguments can't be sent back in the history."""
    block = {"type": "tool_use", "id": "a", "name": "f", "input": {"INVALID_JSON": '{"a":'}}
    (message,) = parts(block, role="assistant")
    assert message.parts == (ToolCallPart("a", "f", '{"a":'),)


def test_a_last_assistant_message_is_a_beginning():
    """Red if a prefill passes for a finished turn: the model would answer itself."""
    assert read(messages=[*HELLO, {"role": "assistant", "content": "{"}]).continue_final
    assert not read().continue_final


# --------------------------------------------------------------------------- thinking blocks


def thinking(text: str, signature: str | None) -> tuple:
    block = {"type": "thinking", "thinking": text}
    if signature is not None:
        block["signature"] = signature
    (message,) = parts(block, {"type": "text", "text": "x"}, role="assistant")
    return message.parts[:-1]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_our_signature_verifies_and_no_other_passes_for_it(text):
    """Red if a thinking block that this server wrote is not taken back, or a changed one is."""
    signature = SIGNER.sign("m", text)
    assert thinking(text, signature) == (ReasoningPart(text),)
    for forged in (text + "!", "other"):
        if forged != text:
            assert thinking(forged, signature) == (ReasoningPart(forged, signature),)
    for wrong in (SIGNER.sign("other", text), Signer(b"x" * 32).sign("m", text), signature[:-1], "é"):
        assert thinking(text, wrong) == (ReasoningPart(text, wrong),), "kept for whoever wrote it"


@pytest.mark.parametrize("signature", [None, ""])
def test_thinking_without_a_signature_is_dropped(signature):
    """Red if a block that nobody signed is a 400: clients send back what other servers gave them."""
    assert thinking("hm", signature) == ()


def test_redacted_thinking_is_kept_for_who_wrote_it():
    """Red if an encrypted block is a 400, or lost for an upstream."""
    (message,) = parts({"type": "redacted_thinking", "data": "abc"}, role="assistant")
    assert message.parts == (ReasoningPart("", "abc", True),)


@given(st.text(max_size=9), st.text(max_size=9), st.lists(st.text(max_size=5)))
@example("ab", "c", ["d"])
def test_a_signature_does_not_depend_on_pieces_and_separates_model_from_text(model, text, pieces):
    """Red if streamed thinking gets another signature than the same in one body."""
    signing = SIGNER.begin(model)
    for piece in pieces:
        signing.add(piece)
    whole = "".join(pieces)
    assert signing.end() == SIGNER.sign(model, whole)
    assert not SIGNER.verifies(model + "a", whole, SIGNER.sign(model, "a" + whole))


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "fields,param",
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "often"}}, "thinking.type"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice.name"),
        ({"tools": [{"name": "web_search", "type": "web_search_20250305"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"mcp_servers": [{"type": "url", "url": "x", "name": "y"}]}, "mcp_servers"),
    ],
)
def test_refusals_name_the_field(fields, param):
    """Red if a bad request is accepted, or its error does not say where."""
    assert refused(**fields).param == param


@pytest.mark.parametrize(
    "role,block,param",
    [
        ("user", {"type": "tool_use", "id": "a", "name": "f", "input": {}}, "messages[0].content[0].type"),
        ("user", {"type": "thinking", "thinking": "x"}, "messages[0].content[0].type"),
        ("assistant", {"type": "tool_result", "tool_use_id": "a"}, "messages[0].content[0].type"),
        (
            "assistant",
            {"type": "tool_use", "id": "a", "name": "f", "input": "{}"},
            "messages[0].content[0].input",
        ),
        ("user", {"type": "server_tool_use", "id": "a"}, "messages[0].content[0].type"),
        (
            "user",
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "!"}},
            "messages[0].content[0].source.data",
        ),
        (
            "user",
            {"type": "image", "source": {"type": "file", "file_id": "f"}},
            "messages[0].content[0].source",
        ),
        (
            "user",
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aa"}},
            "messages[0].content[0].source",
        ),
    ],
)
def test_blocks_that_can_not_be_read_are_named(role, block, param):
    """Red if a block is dropped in silence, or its error does not say which it was."""
    assert refused(messages=[{"role": role, "content": [block]}]).param == param


def test_the_count_reads_the_same_prompt():
    """Red if the prompt that is counted differs from the one that is answered."""
    body = {
        "model": "claude-penstock/m",
        "messages": HELLO,
        "system": "s",
        "tools": [{"name": "f", "input_schema": {}}],
        "thinking": {"type": "disabled"},
    }
    counted = anthropic_messages.read_count(json.dumps(body).encode())
    answered = anthropic_messages.read_request(json.dumps(body | {"max_tokens": 1}).encode())
    for field in ("model", "messages", "tools", "tool_choice", "template_args"):
        assert getattr(counted, field) == getattr(answered, field)
