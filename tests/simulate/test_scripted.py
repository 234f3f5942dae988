"""The scripted model that users have: its file, which rule answers, and that it behaves as a model does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.call import (
    Call,
    Failure,
    ImagePart,
    Message,
    ReasoningDelta,
    ResponseFormat,
    SamplingParams,
    TextDelta,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
)
from penstock.errors import ConfigError, ContextOverflow, InvalidRequest, NotFound, Overloaded
from penstock.simulate.scripted.script import parse_script, read_script
from penstock.simulate.scripted.service import ScriptedModelService
from penstock.simulate.scripted.tokens import pieces_of, text_of, token_of
from penstock.wire.fold import Fold

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scripted.md"
WEATHER = ToolSpec("get_weather", parameters={"type": "object"})


def service_of(*rules: dict, **fields: object) -> ScriptedModelService:
    return ScriptedModelService(parse_script(json.dumps({"name": "m", "rules": list(rules), **fields})))


def user(text: str) -> Message:
    return Message("user", (TextPart(text),))


def call_of(*messages: Message | str, sampling: SamplingParams | None = None, **fields: object) -> Call:
    turns = tuple(user(m) if isinstance(m, str) else m for m in messages)
    return Call(kind="chat", model="m", messages=turns, sampling=sampling or SamplingParams(), **fields)


async def ask(service: ScriptedModelService, *messages: Message | str, **fields: object) -> Fold:
    return Fold([event async for event in service.stream(call_of(*messages, **fields), "request-1")])


async def said(service: ScriptedModelService, *messages: Message | str, **fields: object) -> str:
    return (await ask(service, *messages, **fields)).choices()[0].text


def called(name: str, id: str = "c1") -> Message:
    return Message("assistant", (ToolCallPart(id, name, "{}"),))


def gave(text: str, id: str = "c1") -> Message:
    return Message("tool", (ToolResultPart(id, (TextPart(text),)),))


# ---------------------------------------------------------------- the file


async def test_the_page_s_script_does_what_the_page_says():
    """Red if the example of docs/scripted.md is refused, or answers otherwise than it shows."""
    text = re.search(r"^```json\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)[1]
    service = ScriptedModelService(parse_script(text))
    assert service.name == "helper"
    service.name = "m"
    fold = await ask(service, "What is the weather in Oslo?", tools=(WEATHER,))
    choice = fold.choices()[0]
    assert (choice.reasoning, choice.finish.reason) == ("A tool can tell.", "tool_calls")
    (part,) = choice.tool_calls
    assert (part.name, json.loads(part.arguments)) == ("get_weather", {"city": "Oslo"})
    turns = (user("weather in Oslo"), Message("assistant", (part,)), gave("sunny", part.id))
    assert await said(service, *turns, tools=(WEATHER,)) == "It is sunny in the end."
    assert await said(service, "hello") == "You said: hello"
    with pytest.raises(Overloaded, match="come back"):
        await ask(service, "busy?")


@pytest.mark.parametrize(
    "text",
    [
        '[{"user": "a", "text": "A"}, {"text": "B"}]',
        '{"user": "a", "text": "A"}\n\n{"text": "B"}\n',
        '{"rules": [{"user": "a", "text": "A"}, {"text": "B"}]}',
    ],
)
async def test_three_forms_of_a_file(text):
    """Red if an array, lines, or an object with `rules` are not the same script."""
    service = ScriptedModelService(parse_script(text), "m")
    assert (await said(service, "a"), await said(service, "c")) == ("A", "B")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"usr": "a"}]', ("rules[0].usr", "did you mean `user`")),
        ('{"rules": [{}], "max_contxt": 5}', ("max_contxt", "`max_context`")),
        ('[{"tool_calls": [{"nme": "x"}]}]', ("rules[0].tool_calls[0].nme", "`name`")),
        ('[{"usage": {"prompt": 1}}]', ("rules[0].usage.prompt", "prompt_tokens")),
        ('[{"tool_calls": [{}]}]', ("name", "rules[0].tool_calls[0]")),
        ('[{"error": {"kind": "tired"}}]', ("tired", "error.kind")),
        ('[{"user": "("}]', ("rules[0].user", "'('")),
        ('[{"turn": -1}]', ("rules[0].turn", "-1")),
        ('[{"error": {"kind": "timeout_error"}, "hang": true}]', ("error and hang",)),
        ("[]", ("no rules",)),
        ('[{"text": "a"}', ("not JSON",)),
        ('{"text": "a"}\n{"text"\n', ("line 2",)),
        ("5", ("rules[0]",)),
    ],
)
def test_a_wrong_script_is_refused_by_its_place(text, words):
    """Red if a mistake in a script is swallowed, or the error does not say where it is."""
    with pytest.raises(ConfigError) as caught:
        parse_script(text, "demo.json")
    for word in ("demo.json", *words):
        assert word in str(caught.value)


def test_a_script_is_named_after_its_file(tmp_path):
    """Red if the model's id is not the file's name where it says none, or an absent file is unclear."""
    (tmp_path / "demo.jsonl").write_text('{"text": "x"}')
    assert read_script(f"scripted:{tmp_path}/demo.jsonl").name == "demo"
    with pytest.raises(NotFound, match="no such file"):
        read_script(f"scripted:{tmp_path}/other.jsonl")


# ---------------------------------------------------------------- which rule answers


async def test_a_rule_for_the_user_does_not_answer_results():
    """Red if a call is repeated for ever because its rule also matches once the tool has answered."""
    service = service_of(
        {"user": "go", "tool_calls": [{"name": "get_weather"}]},
        {"user": "go", "result": "r(?P<n>.)", "text": "first {{n}}"},
        {"text": "other"},
    )
    tools = (WEATHER,)
    assert (await ask(service, "go", tools=tools)).choices()[0].tool_calls
    turns = (user("go"), called("get_weather"), gave("r7"))
    assert await said(service, *turns, tools=tools) == "first 7"
    assert await said(service, *turns, Message("assistant", (TextPart("x"),)), "new", tools=tools) == "other"


async def test_conditions():
    """Red if a condition is not looked at, or a rule goes on being used beyond its times."""
    service = service_of(
        {"times": 1, "text": "once"},
        {"system": "be (?P<how>\\w+)", "text": "I am {{how}}"},
        {"offers": "get_weather", "text": "tools"},
        {"turn": 1, "text": "second"},
        {"result_of": "b", "text": "b gave {{result}}"},
        {"text": "rest"},
    )
    assert [await said(service, "x"), await said(service, "x")] == ["once", "rest"]
    assert await said(service, Message("system", (TextPart("be brief"),)), "x") == "I am brief"
    assert await said(service, "x", tools=(WEATHER,)) == "tools"
    assert await said(service, "x", tools=(WEATHER,), tool_choice="none") == "rest"
    assert await said(service, "x", Message("assistant", (TextPart("y"),)), "z") == "second"
    two = (called("a", "1"), called("b", "2"), gave("A", "1"), gave("B", "2"))
    assert await said(service, "x", *two) == "b gave A\nB"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "not offered (offered: none)"),
        ({"tools": (ToolSpec("other"),)}, "not offered (offered: other)"),
        ({"tools": (WEATHER, ToolSpec("other")), "tool_choice": "tool:other"}, "demands 'other'"),
        ({"tools": (WEATHER,), "tool_choice": "none"}, "not offered"),
        ({"tools": (WEATHER,), "parallel_tool_calls": False}, "2 calls"),
    ],
)
async def test_calls_that_a_request_does_not_allow_are_not_made(fields, why):
    """Red if a script makes a call that no model could make there, or the refusal does not say why."""
    service = service_of({"tool_calls": [{"name": "get_weather"}, {"name": "get_weather"}]})
    with pytest.raises(InvalidRequest) as caught:
        await ask(service, "hi", **fields)
    assert caught.value.code == "no_scripted_reply"
    assert why in str(caught.value)


async def test_text_that_a_request_does_not_allow_is_not_said():
    """Red if text answers a demand for a call, or prose a demand for JSON."""
    service = service_of({"text": "prose"}, {"text": '{"a": 1}'})
    for form in (ResponseFormat("json_object"), ResponseFormat("json_schema", {"type": "object"}, "x")):
        assert await said(service, "hi", response_format=form) == '{"a": 1}'
    for choice in ("required", "tool:get_weather"):
        with pytest.raises(InvalidRequest, match="calls no tool"):
            await ask(service, "hi", tools=(WEATHER,), tool_choice=choice)


# ---------------------------------------------------------------- as a model does


async def test_limits_and_stops():
    """Red if token limits, stop strings, n, the context or images act otherwise than on a model."""
    service = service_of({"reasoning": "why", "text": "one two three"}, max_context=64)
    fold = await ask(service, "hi", sampling=SamplingParams(n=2, max_tokens=3))
    assert [(c.text, c.finish.reason) for c in fold.choices()] == [("one two ", "length")] * 2
    assert (fold.usage.completion_tokens, fold.usage.reasoning_tokens) == (6, 2)
    cut = (await ask(service, "hi", sampling=SamplingParams(stop=("three", "two")))).choices()[0]
    assert (cut.text, cut.finish.reason, cut.finish.stop) == ("one ", "stop", "two")
    with pytest.raises(ContextOverflow, match="64"):
        await ask(service, "x" * 300)
    picture = Message("user", (ImagePart(url="data:image/png;base64,AA=="),))
    with pytest.raises(InvalidRequest, match="images"):
        await ask(service, picture)
    assert (await ask(service_of({"text": "seen"}, images=True), picture)).usage.prompt_tokens > 1
    with pytest.raises(NotFound):
        await anext(service.stream(Call(kind="chat", model="other"), "r"))


async def test_usage_errors_and_logprobs():
    """Red if scripted counts are ignored, an error behind text loses the text, or log-probabilities lack."""
    service = service_of(
        {"user": "count", "text": "x", "usage": {"prompt_tokens": 900, "cached_tokens": 800}},
        {"user": "break", "text": "begun", "error": {"kind": "timeout_error", "message": "late"}},
        {"text": "abcdef"},
    )
    usage = (await ask(service, "count")).usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (900, 800, 1)
    events = [event async for event in service.stream(call_of("break"), "r")]
    assert [type(event) for event in events] == [TextDelta, TextDelta, Failure]
    assert (events[-1].status, events[-1].message) == (504, "late")
    choice = (await ask(service, "hi", sampling=SamplingParams(logprobs=2))).choices()[0]
    assert [(entry.token, entry.logprob) for entry in choice.logprobs] == [("abcd", 0.0), ("ef", 0.0)]


async def test_a_caller_who_leaves_ends_a_hanging_answer():
    """Red if an answer that hangs survives its caller, or a drain does not wait for what runs."""
    service = service_of({"reasoning": "hm", "hang": True})
    events = service.stream(call_of("hi"), "r")
    assert isinstance(await anext(events), ReasoningDelta)
    assert service.health().running == 1
    await events.aclose()
    assert service.health().running == 0
    await service.drain(60.0)  # at once
    assert not service.health().ready


async def test_completions_answer_each_prompt():
    """Red if a completion's prompts, strings or ids, are not what the rules see."""
    service = service_of({"text": "<{{user}}>"})
    ids = tuple(map(token_of, pieces_of("näive")))
    call = Call(kind="completion", model="m", prompts=("a", ids), echo=True)
    fold = Fold([event async for event in service.stream(call, "r")])
    assert [(c.prompt.text, c.text) for c in fold.choices()] == [("a", "<a>"), ("näive", "<näive>")]


@given(st.text())
def test_tokens_read_back(text):
    """Red if the ids of a text are not that text."""
    pieces = pieces_of(text)
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= 4 for piece in pieces)
    assert text_of(map(token_of, pieces)) == text


@given(st.integers(-5, 2**34))
def test_ids_of_no_text_are_refused(token):
    """Red if an id that no token has crashes instead of being refused."""
    data = token.to_bytes(8, signed=True).lstrip(b"\0")
    if data[:1] == b"\x01" and 2 <= len(data) <= 5:
        text_of([token])
    else:
        with pytest.raises(InvalidRequest, match=str(token)):
            text_of([token])


# ---------------------------------------------------------------- the verb


def test_flags_of_an_engine_are_refused(tmp_path):
    """Red if a flag that can't have an effect on a script is swallowed, or a script is loaded as a model."""
    (tmp_path / "demo.json").write_text('[{"text": "x"}]')
    name = f"scripted:{tmp_path}/demo.json"
    for words, expected in (
        (("serve", name, "--kv-bytes", "1G"), "kv_bytes"),
        (("serve", f"{name}x"), "no such file"),
        (("run", "--model", name, "hello"), "penstock serve"),
    ):
        result = subprocess.run(
            [sys.executable, "-m", "penstock", *words],
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            check=False,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 2, result.stderr
        assert expected in result.stderr
