"""Requests of the OpenAI formats: nothing lost between bytes and Call, nothing wrong let through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.call import (
    CachePolicy,
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
from penstock.errors import InvalidRequest, PenstockError
from penstock.wire import openai_chat, openai_completions
from support.wire_strategies import call

HELLO = [{"role": "user", "content": "hello"}]


def read_chat(**fields: Any):
    return openai_chat.read_request(json.dumps({"model": "m", "messages": HELLO} | fields).encode())


def read_completion(**fields: Any):
    return openai_completions.read_request(json.dumps({"model": "m", "prompt": "p"} | fields).encode())


@given(call("chat"))
def test_chat_call_survives_the_wire(original):
    """Red if a field of Call is written but not read, or read with another meaning."""
    assert openai_chat.read_request(openai_chat.write_request(original)) == original


@given(call("completion"))
def test_completion_call_survives_the_wire(original):
    """Red if a field of Call is written but not read, or read with another meaning."""
    assert openai_completions.read_request(openai_completions.write_request(original)) == original


def test_every_field_may_be_null():
    """Red if null stops meaning "left alone" for some field: SDKs send it."""
    for codec, request, required in (
        (openai_chat, openai_chat.ChatRequest, {"model": "m", "messages": HELLO}),
        (openai_completions, openai_completions.CompletionRequest, {"model": "m", "prompt": "p"}),
    ):
        nulls = dict.fromkeys(request.__struct_fields__)
        full = codec.read_request(json.dumps(nulls | required).encode())
        assert full == codec.read_request(json.dumps(required).encode())
        assert full.sampling == SamplingParams()


def test_messages_in_every_spelling():
    """Red if a way to write content, tools or reasoning is read as something else."""
    parsed = read_chat(
        messages=[
            {"role": "developer", "content": "d"},
            {
                "role": "user",
                "name": "n",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}}],
            },
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "r",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "done"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning": "r2"},
            {"role": "assistant", "refusal": "never"},
        ]
    )
    assert parsed.messages == (
        Message("developer", (TextPart("d"),)),
        Message("user", (TextPart("a"), TextPart("b")), "n"),
        Message("user", (ImagePart(url="data:,x", detail="low"),)),
        Message("assistant", (ReasoningPart("r"), ToolCallPart("1", "f", "{}"))),
        Message("tool", (ToolResultPart("1", (TextPart("done"),)),)),
        Message("assistant", (ReasoningPart("r2"), TextPart("no"))),
        Message("assistant", (TextPart("never"),)),
    )


def test_tools_and_choice():
    """Red if tools lose a field, or a named choice is not checked against them."""
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
    }
    parsed = read_chat(tools=[tool], tool_choice={"type": "function", "function": {"name": "f"}})
    assert parsed.tools == (ToolSpec("f", "d", {"type": "object"}, False),)
    assert parsed.tool_choice == "tool:f"
    with pytest.raises(InvalidRequest, match="'g' is not among the tools"):
        read_chat(tools=[tool], tool_choice={"type": "function", "function": {"name": "g"}})
    with pytest.raises(InvalidRequest, match="required"):
        read_chat(tool_choice="required")


def test_image_bytes_are_written_as_a_data_url():
    """Red if an image given by bytes reaches an upstream without its data."""
    parsed = read_chat()
    image = Message("user", (ImagePart(data=b"\x00\x01", media_type="image/png"),))
    body = openai_chat.write_request(_replace(parsed, messages=(image,)))
    assert json.loads(body)["messages"][0]["content"][0]["image_url"]["url"] == "data:image/png;base64,AAE="


def test_several_tool_results_become_messages():
    """Red if a message with two results loses one: the format takes one per message."""
    results = Message("tool", (ToolResultPart("1", (TextPart("a"),)), ToolResultPart("2", (TextPart("b"),))))
    written = json.loads(openai_chat.write_request(_replace(read_chat(), messages=(results,))))["messages"]
    assert [(m["tool_call_id"], m["content"]) for m in written] == [("1", "a"), ("2", "b")]


def _replace(original, **changes):
    import msgspec

    return msgspec.structs.replace(original, **changes)


def test_response_formats():
    """Red if a response format is read as another kind, or its schema is dropped."""
    assert read_chat(response_format={"type": "text"}).response_format == ResponseFormat("text")
    assert read_chat(response_format={"type": "json_object"}).response_format.kind == "json_object"
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }
    parsed = read_chat(response_format=schema).response_format
    assert parsed == ResponseFormat("json_schema", {"type": "object"}, "n", True)


def test_token_limits_and_logprobs_of_chat():
    """Red if the newer name of the limit loses to the older, or logprobs mean another count."""
    assert read_chat(max_tokens=5).sampling.max_tokens == 5
    assert read_chat(max_tokens=5, max_completion_tokens=7).sampling.max_tokens == 7
    assert read_chat().sampling.logprobs is None
    assert read_chat(logprobs=False, top_logprobs=0).sampling.logprobs is None
    assert read_chat(logprobs=True).sampling.logprobs == 0
    assert read_chat(logprobs=True, top_logprobs=20).sampling.logprobs == 20


def test_echo_with_logprobs_asks_for_the_prompts_too():
    """Red if echo with logprobs leaves the prompt's tokens without theirs."""
    assert read_completion(echo=True, logprobs=3).sampling.prompt_logprobs == 3
    assert read_completion(echo=True, logprobs=3, prompt_logprobs=5).sampling.prompt_logprobs == 5
    assert read_completion(logprobs=3).sampling.prompt_logprobs is None
    assert read_completion(echo=True).sampling.prompt_logprobs is None


def test_prompts_in_every_shape():
    """Red if a list of ids is taken for several prompts, or the reverse."""
    assert read_completion(prompt="a").prompts == ("a",)
    assert read_completion(prompt=["a", "b"]).prompts == ("a", "b")
    assert read_completion(prompt=[1, 2]).prompts == ((1, 2),)
    assert read_completion(prompt=[[1, 2], [3]]).prompts == ((1, 2), (3,))


def test_hints_are_kept_for_an_upstream():
    """Red if a hint that we may ignore is refused, or lost on the way to an upstream of this format."""
    hints = {
        "store": True,
        "service_tier": "flex",
        "prediction": {"type": "content", "content": "x"},
        "new": [1],
    }
    parsed = read_chat(**hints)
    assert parsed.extra == hints
    assert hints.items() <= json.loads(openai_chat.write_request(parsed)).items()


def test_extensions():
    """Red if a common engine extension is taken for an unknown field and ignored."""
    parsed = read_chat(
        cache_salt="s",
        prompt_cache_key="k",
        priority=-1,
        reasoning_effort="low",
        chat_template_kwargs={"enable_thinking": True},
        return_token_ids=True,
        stop="one",
        bad_words=["x"],
        stream_options={"include_usage": True, "include_obfuscation": False},
        logit_bias={"50256": -100},
    )
    assert parsed.cache == CachePolicy(salt="s", key="k")
    assert parsed.priority == -1
    assert parsed.template_args == {"enable_thinking": True, "reasoning_effort": "low"}
    assert parsed.extra == {"return_token_ids": True}
    assert parsed.sampling.stop == ("one",)
    assert parsed.sampling.logit_bias == {50256: -100.0}
    assert parsed.stream_usage


BAD = [
    ({"n": 10_000}, "n", "10000", "128"),
    ({"n": 0}, "n", "0", "1"),
    ({"n": -1}, "n", "-1", "1"),
    ({"n": "2"}, "n", '"2"', "int"),
    ({"n": True}, "n", "true", "int"),
    ({"n": 1.5}, "n", "1.5", "int"),
    ({"temperature": -0.5}, "temperature", "-0.5", "0"),
    ({"temperature": 1000}, "temperature", "1000", "100"),
    ({"temperature": "hot"}, "temperature", "hot", "float"),
    ({"top_p": 0}, "top_p", "0", "> 0"),
    ({"top_p": 1.01}, "top_p", "1.01", "1"),
    ({"frequency_penalty": 3}, "frequency_penalty", "3", "2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "0", "> 0"),
    ({"max_tokens": 0}, "max_tokens", "0", "1"),
    ({"max_tokens": 2**40}, "max_tokens", str(2**40), str(2**31 - 1)),
    ({"max_tokens": 10**40}, "max_tokens", "1000000000", str(2**31 - 1)),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens", "9", "3"),
    ({"seed": 2**64}, "seed", str(2**64), ""),
    ({"seed": -(2**63) - 1}, "seed", str(-(2**63) - 1), ""),
    ({"stop": ["x"] * 10_000}, "stop", "10000", "64"),
    ({"stop": [""]}, "stop[0]", '""', "1"),
    ({"stop": ""}, "stop", '""', "1"),
    ({"stop": ["a" * 2000]}, "stop[0]", "2002 characters", "1024"),
    ({"stop": 5}, "stop", "5", "array"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "", "int"),
    ({"logit_bias": {"1": 101}}, "logit_bias[...]", "", "100"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "0 entries", "1"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "-1", "0"),
    ({"stream": "yes"}, "stream", '"yes"', "bool"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "1", "bool"),
    ({"metadata": {"a": 1}}, "metadata[...]", "", "str"),
    ({"priority": 3}, "priority", "3", "2"),
    ({"model": None}, "model", "null", "str"),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "21", "20"),
]


@pytest.mark.parametrize(
    "fields,param,given_text,limit", BAD, ids=[str(next(iter(b[0].items())))[:40] for b in BAD]
)
def test_bad_value_is_named_with_its_limit(fields, param, given_text, limit):
    """Red if a value out of range passes, or its 400 does not say which field, what came, what is allowed."""
    for read in (read_chat, read_completion):
        with pytest.raises(InvalidRequest) as caught:
            read(**fields)
        error = caught.value
        assert error.param == param
        assert error.message.startswith(param.split("[")[0])
        assert given_text in error.message
        assert limit in error.message
        assert len(error.message) < 300, "a hostile value must not be sent back whole"


CHAT_BAD = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "narrator"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ({"tool_choice": "always"}, "tool_choice"),
    ({"response_format": {"type": "grammar"}}, "response_format.type"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"echo": True}, "echo"),
]


@pytest.mark.parametrize("fields,param", CHAT_BAD, ids=[c[1] for c in CHAT_BAD])
def test_what_chat_can_not_honour_is_refused_by_name(fields, param):
    """Red if semantics that nobody implements are dropped in silence instead of refused."""
    with pytest.raises(InvalidRequest) as caught:
        read_chat(**fields)
    assert caught.value.param == param
    assert caught.value.status == 400


def test_what_asks_for_nothing_is_not_refused():
    """Red if a refused field's neutral value is refused too: SDKs send those."""
    parsed = read_chat(modalities=["text"], functions=[], function_call="none", audio=None, echo=False)
    assert parsed.messages
    assert read_completion(best_of=1, suffix=None).prompts == ("p",)
    assert read_completion(best_of=3, n=3).sampling.n == 3


COMPLETION_BAD = [
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [["a"]]}, "prompt[0][0]"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": ["x"] * 1025}, "prompt"),
    ({"best_of": 2}, "best_of"),
    ({"best_of": True}, "best_of"),
    ({"suffix": "end", "echo": True}, "echo"),
    ({"suffix": 1}, "suffix"),
    ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
]


@pytest.mark.parametrize("fields,param", COMPLETION_BAD, ids=[str(c) for c in range(len(COMPLETION_BAD))])
def test_what_a_completion_can_not_honour_is_refused_by_name(fields, param):
    """Red if semantics that nobody implements are dropped in silence instead of refused."""
    with pytest.raises(InvalidRequest) as caught:
        read_completion(**fields)
    assert caught.value.param == param


BROKEN = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
    b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"m","unknown":"\xc3\x28","messages":[{"role":"user"}]}',
    b'{"model":"m","temperature":NaN,"messages":[{"role":"user"}]}',
    b'{"model":"m","temperature":Infinity,"messages":[{"role":"user"}]}',
    b'{"model":"m","temperature":1e999,"messages":[{"role":"user"}]}',
    b'{"model":"m","unknown":1e999,"messages":[{"role":"user"}]}',
    b'{"model":"m","seed":' + b"9" * 5000 + b',"messages":[{"role":"user"}]}',
    b'{"model":"m","messages":[{"role":"user"}]} trailing',
    b"\xef\xbb\xbf{}",
    b'{"model":"m","deep":' + b"[" * 100_000,
    b'{"model":"m","messages":' + b'{"a":' * 50_000,
]


@pytest.mark.parametrize("body", BROKEN, ids=[str(i) for i in range(len(BROKEN))])
@pytest.mark.parametrize("codec", [openai_chat, openai_completions])
def test_broken_json_is_a_400(codec, body):
    """Red if bytes that are no JSON, or no UTF-8, raise anything but a 400."""
    with pytest.raises(InvalidRequest) as caught:
        codec.read_request(body)
    assert caught.value.status == 400
    assert len(caught.value.message) < 300


def test_utf8_error_names_the_position():
    """Red if a client with broken UTF-8 is not told where."""
    with pytest.raises(InvalidRequest, match="0xff at position 11"):
        openai_chat.read_request(b'{"model":"m\xff"}')


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_break_the_reader(body):
    """Red if some bytes raise something else than a PenstockError."""
    for codec in (openai_chat, openai_completions):
        try:
            codec.read_request(body)
        except PenstockError:
            continue


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(sorted(openai_chat.ChatRequest.__struct_fields__)), _json)
def test_any_json_in_any_field_is_read_or_refused(field, value):
    """Red if a field with an unexpected JSON value raises something else than a 400."""
    body = json.dumps({"model": "m", "messages": HELLO} | {field: value}).encode("utf-8", "surrogatepass")
    try:
        parsed = openai_chat.read_request(body)
    except PenstockError as error:
        assert error.status == 400
    else:
        parsed.sampling.validate()


# ---------------------------------------------------------------- thinking

THINKING: list[tuple[dict[str, Any], int | None, dict[str, Any]]] = [
    ({"thinking_budget": 5}, 5, {}),
    ({"thinking_token_budget": 5}, 5, {}),
    ({"thinking_budget": 5, "thinking_token_budget": 5}, 5, {}),
    ({"thinking_budget": -1, "thinking_token_budget": 5}, 5, {}),
    ({"thinking_token_budget": -1}, -1, {}),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 1024, {"enable_thinking": True}),
    ({"thinking": {"type": "enabled"}}, None, {"enable_thinking": True}),
    ({"thinking": {"type": "adaptive"}}, None, {"enable_thinking": True}),
    ({"thinking": {"type": "disabled"}}, 0, {"enable_thinking": False}),
    ({"reasoning_effort": "none"}, None, {"reasoning_effort": "none"}),
    ({"reasoning_effort": "high", "thinking_budget": 9}, 9, {"reasoning_effort": "high"}),
    ({"chat_template_kwargs": {"enable_thinking": False}}, None, {"enable_thinking": False}),
    ({"chat_template_kwargs": {"thinking_budget": 7}}, None, {"thinking_budget": 7}),
]


@pytest.mark.parametrize(("fields", "budget", "args"), THINKING)
def test_spellings_of_thinking(fields, budget, args):
    """Red if a way to bound thinking that clients use is not read, or reaches the template as another."""
    parsed = read_chat(**fields)
    assert (parsed.sampling.thinking_budget, parsed.template_args) == (budget, args)
    assert parsed.extra == {}


def test_completions_take_a_budget_too():
    """Red if a raw prompt of a thinking model can't be bounded."""
    assert read_completion(thinking_token_budget=5).sampling.thinking_budget == 5


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (
            {"thinking_budget": 5, "thinking_token_budget": 6},
            ("thinking_budget (5)", "thinking_token_budget (6)"),
        ),
        (
            {"thinking_budget": 5, "thinking": {"type": "enabled", "budget_tokens": 6}},
            ("thinking_budget (5)", "thinking (6)"),
        ),
        (
            {"thinking_budget": 5, "thinking": {"type": "disabled"}},
            ("thinking_budget (5)", "thinking ('disabled'"),
        ),
        (
            {"thinking": {"type": "adaptive"}, "chat_template_kwargs": {"enable_thinking": False}},
            ("thinking ('adaptive')", "chat_template_kwargs.enable_thinking (False)"),
        ),
        (
            {"reasoning_effort": "low", "thinking": {"type": "disabled"}},
            ("reasoning_effort ('low')", "thinking ("),
        ),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
            ("reasoning_effort ('low'", "chat_template_kwargs.reasoning_effort ('high'"),
        ),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"thinking_budget": 8}},
            ("reasoning_effort ('none', 0 tokens)", "chat_template_kwargs.thinking_budget (8)"),
        ),
    ],
)
def test_spellings_of_thinking_that_disagree(fields, names):
    """Red if one of two contradicting fields is dropped in silence."""
    with pytest.raises(InvalidRequest) as caught:
        read_chat(**fields)
    assert caught.value.status == 400
    assert all(name in caught.value.message for name in names), caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"thinking_budget": -2}, "thinking_budget"),
        ({"thinking_token_budget": 1.5}, "thinking_token_budget"),
        ({"thinking": {"type": "auto"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"thinking": True}, "thinking"),
        ({"chat_template_kwargs": {"thinking_budget": "many"}}, "chat_template_kwargs.thinking_budget"),
    ],
)
def test_malformed_thinking_is_refused(fields, param):
    """Red if a value that is no budget is ignored."""
    with pytest.raises(InvalidRequest) as caught:
        read_chat(**fields)
    assert caught.value.param == param
