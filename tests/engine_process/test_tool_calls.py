"""Tool calls through the whole path, with the real model: forced by grammar, read back as calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.call import Event, Finish, ReasoningDelta, SamplingParams, TextDelta, ToolCallDelta, ToolSpec
from penstock.engine.tools.grammar import MOST_CALLS, forced_calls
from penstock.engine.tools.lark import Specials
from penstock.engine.tools.schema import argument_schema
from penstock.errors import InvalidRequest
from penstock.llm import LLM, read_conversation
from penstock.text.output.choose import FORMATS

WEATHER = ToolSpec(
    "get_weather",
    "Weather of a city",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "days": {"type": "integer", "maximum": 9},
        },
        "required": ["city"],
    },
)
NUMBERS = {"a": {"type": "float"}, "b": {"type": "float"}}
ADD = ToolSpec("add", "Adds", {"type": "dict", "properties": NUMBERS, "required": ["a", "b"]})
QUESTION = [{"role": "user", "content": "What is the weather in Rome?"}]


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> Iterator[LLM]:
    with LLM(str(smollm2_path), kv_bytes=256 << 20) as made:
        yield made


def _ask(llm: LLM, tools: tuple[ToolSpec, ...], choice: str | None, **fields: Any) -> list[Event]:
    params = fields.pop("params", SamplingParams(max_tokens=200, temperature=0))
    fields |= {"tools": tools, "tool_choice": choice, "params": params}
    call = llm._llm._call(kind="chat", messages=read_conversation(QUESTION), **fields)

    async def collect() -> list[Event]:
        async with aclosing(llm._llm._stream(call)) as events:  # type: ignore[type-var]
            return [event async for event in events]

    return llm._run(collect())


def _calls(events: list[Event]) -> list[ToolCallDelta]:
    return [event for event in events if isinstance(event, ToolCallDelta)]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("stream", [True, False])
def test_a_forced_call_comes_once_and_fits_its_schema(llm: LLM, stream: bool, temperature: float) -> None:
    """Red if a named tool is not called, called twice, or with arguments that break its schema."""
    validators = pytest.importorskip("jsonschema_rs")
    params = SamplingParams(max_tokens=200, temperature=temperature, seed=3)
    events = _ask(llm, (WEATHER, ADD), "tool:get_weather", stream=stream, params=params)
    (call,) = _calls(events)
    assert call.name == "get_weather"
    assert validators.is_valid(argument_schema(WEATHER), json.loads(call.arguments))
    (finish,) = [event for event in events if isinstance(event, Finish)]
    assert finish.reason == "tool_calls"
    assert not "".join(event.text for event in events if isinstance(event, TextDelta | ReasoningDelta))


def test_required_calls_are_at_least_one_and_end(llm: LLM) -> None:
    """Red if a model that must call writes text instead, or calls without end."""
    calls = _calls(_ask(llm, (WEATHER, ADD), "required", parallel_tool_calls=True))
    assert 1 <= len(calls) <= MOST_CALLS
    assert len(_calls(_ask(llm, (WEATHER, ADD), "required", parallel_tool_calls=False))) == 1


def test_a_strict_tool_that_may_be_called_is_called_by_its_schema(llm: LLM) -> None:
    """Red if strictness is lost on the way, or an answer of words is constrained by it."""
    validators = pytest.importorskip("jsonschema_rs")
    tool = msgspec.structs.replace(WEATHER, strict=True)
    written = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    begun = [*QUESTION, {"role": "assistant", "content": written}]
    begun += [{"role": "user", "content": "And in Paris, for 3 days?"}]
    calls = 0
    for seed in range(8):
        params = SamplingParams(max_tokens=120, temperature=1.2, seed=seed)
        (result,) = llm.chat(begun, params, tools=[tool])
        for call in result.tool_calls:
            calls += 1
            assert call.name == "get_weather"
            assert validators.is_valid(argument_schema(tool), json.loads(call.arguments))
    assert calls
    plain = SamplingParams(max_tokens=30, temperature=0)
    free = [{"role": "user", "content": "Say a poem about the sea. Call no function."}]
    (said,) = llm.chat(free, plain, tools=[tool])
    (unbound,) = llm.chat(free, plain, tools=[WEATHER])
    assert said.text == unbound.text and said.text


def test_a_result_in_python_has_its_calls(llm: LLM) -> None:
    """Red if `LLM.chat` takes a call out of the text and gives it to nobody."""
    params = SamplingParams(max_tokens=200, temperature=0)
    (result,) = llm.chat(QUESTION, params, tools=[WEATHER], tool_choice="tool:get_weather")
    (call,) = result.tool_calls
    assert call.name == "get_weather"
    assert "city" in json.loads(call.arguments)
    assert result.text == ""


def test_tools_that_may_not_be_called_are_not_shown(llm: LLM) -> None:
    """Red if `tool_choice` none leaves the tools in the prompt."""
    events = _ask(llm, (WEATHER,), "none", params=SamplingParams(max_tokens=10, temperature=0))
    plain = _ask(llm, (), None, params=SamplingParams(max_tokens=10, temperature=0))
    texts = ["".join(e.text for e in found if isinstance(e, TextDelta)) for found in (events, plain)]
    assert texts[0] == texts[1]


def test_a_format_that_nobody_defined_is_a_note(llm: LLM) -> None:
    """Red if a tool of another ecosystem (`format: password`) can't be called."""
    schema = {
        "type": "object",
        "properties": {"key": {"type": "string", "format": "password", "maxLength": 5}},
    }
    events = _ask(llm, (ToolSpec("log_in", None, schema | {"required": ["key"]}),), "required")
    assert _calls(events)[0].name == "log_in"


def test_a_schema_that_no_grammar_holds_names_the_tools(llm: LLM) -> None:
    """Red if the client is told of a grammar that it did not send."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(InvalidRequest, match=r"^tools: .*uniqueItems"):
        _ask(llm, (ToolSpec("f", None, schema),), "required")


def test_types_of_other_languages_are_understood() -> None:
    """Red if `dict` or `float`, as clients write them, make a tool unusable."""
    schema = argument_schema(ADD)
    assert schema["type"] == "object"
    assert schema["properties"]["a"] == {"type": "number"}
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("tools", "choice", "names"),
    [((), "required", "needs tools"), ((WEATHER,), "tool:nothing", "get_weather")],
)
def test_what_can_not_be_forced_is_refused(tools: tuple[ToolSpec, ...], choice: str, names: str) -> None:
    """Red if forcing a tool that does not exist leaves the model free."""
    with pytest.raises(InvalidRequest, match=names):
        forced_calls(FORMATS["hermes"], tools, choice, True, Specials())


def test_a_form_without_calls_says_so() -> None:
    """Red if a model that has no form of calls is forced into one it has never seen."""
    with pytest.raises(InvalidRequest, match="plain"):
        forced_calls(FORMATS["plain"], (WEATHER,), "required", True, Specials())


def test_a_forced_call_can_not_be_told_how_long_to_be(llm: LLM) -> None:
    """Red if an answer goes on behind its call, with anything, to reach `min_tokens`."""
    params = SamplingParams(max_tokens=80, min_tokens=60, temperature=0)
    with pytest.raises(InvalidRequest, match=r"^min_tokens: tool_choice 'required'"):
        _ask(llm, (WEATHER,), "required", params=params)
