"""Grammars of tool calls: whatever they allow, the family's parser reads as calls that fit their schemas."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from constrained_text import ByteTokens, draw_text

from penstock.call import ToolSpec
from penstock.decoding.grammar.backend import Vocabulary
from penstock.decoding.grammar.llguidance_backend import LLGuidanceBackend
from penstock.decoding.grammar.spec import GrammarSpec
from penstock.engine.tools.grammar import MOST_CALLS, forced_calls, strict_calls
from penstock.engine.tools.lark import Specials
from penstock.engine.tools.schema import argument_schema
from penstock.errors import InvalidRequest
from penstock.text.output.choose import FORMATS
from penstock.text.output.events import CallArguments, CallEnd, CallStart, Malformed, Text
from penstock.text.output.format import OutputFormat

validators = pytest.importorskip("jsonschema_rs")

WEATHER = ToolSpec(
    "get_weather",
    "Weather of a city",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "unit": {"type": "string", "enum": ["C", "F", "de grés\n"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "where": {
                "type": "object",
                "properties": {
                    "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
                    "exact": {"type": "boolean"},
                    "near": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
                },
                "required": ["exact"],
            },
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
        },
        "required": ["city"],
    },
    strict=True,
)
ADD = ToolSpec(
    "math.add",
    "Adds",
    {
        "type": "object",
        "properties": {
            "a": {"type": "float"},
            "b": {"anyOf": [{"type": "integer", "minimum": 3}, {"type": "null"}, {"type": "boolean"}]},
            "note": {"type": ["string", "integer"], "minLength": 2, "maximum": 5, "maxLength": 5},
            "mode": {"enum": ["fast", 1, True, None]},
        },
        "required": ["a", "b", "mode"],
    },
    strict=True,
)
NOW = ToolSpec("now", None, None, strict=True)
TOOLS = (WEATHER, ADD, NOW)
WRITTEN = [form for form in FORMATS.values() if form.syntax is not None]
HARMONY = "<|start|>assistant"


def backend_of(tokens: ByteTokens) -> LLGuidanceBackend:
    return LLGuidanceBackend(lambda: Vocabulary(tokens, tokens.vocab_size))


def vocabulary(form: OutputFormat, special: bool) -> ByteTokens:
    """With all markers of the form as special tokens, or none. (`>>>` is no special token anywhere.)"""
    marks = [
        mark for mark in form.special_markers if mark.strip() == mark and mark[0] in "<[" and len(mark) > 2
    ]
    return ByteTokens(marks if special else ())


def answers(spec: GrammarSpec, tokens: ByteTokens, count: int, seed: int, begin: str = "") -> list[str]:
    compiled = backend_of(tokens).compile(spec)
    chance = random.Random(seed)
    found = [draw_text(compiled.matcher(), tokens, chance, begin) for _ in range(count)]
    ended = [text for text in found if text is not None]
    assert len(ended) >= count // 2
    return ended


def check(
    form: OutputFormat, text: str, tools: Sequence[ToolSpec], prompt: str = ""
) -> tuple[list[tuple[str, Any]], str]:
    """(calls, the rest of the text) of an answer, every call checked against its tool."""
    parser = form.parser(tools, prompt)
    events = [*parser.feed(text), *parser.close()]
    assert not [event for event in events if isinstance(event, Malformed)], (text, events)
    assert not [event for event in events if isinstance(event, CallEnd) and event.repaired], (text, events)
    calls, said = [], ""
    known = {tool.name: tool for tool in tools}
    for event in events:
        if isinstance(event, CallStart):
            calls.append([event.name, ""])
        elif isinstance(event, CallArguments):
            calls[-1][1] += event.text
        elif isinstance(event, Text):
            said += event.text
    for name, arguments in calls:
        if re.search(r"[eE]\+?[0-9]{3}", arguments):
            continue  # JSON, but Python's floats end at 1e308
        schema = argument_schema(known[name])
        assert validators.is_valid(schema, json.loads(arguments)), (text, name, arguments)
    return [(name, json.loads(arguments)) for name, arguments in calls], said


COUNTS = pytest.mark.parametrize("count", [6, pytest.param(120, marks=pytest.mark.nightly)])


@COUNTS
@pytest.mark.parametrize("special", [False, True], ids=["text", "tokens"])
@pytest.mark.parametrize("form", WRITTEN, ids=lambda form: form.name)
def test_forced_calls_are_read_back_and_fit(form: OutputFormat, special: bool, count: int) -> None:
    """Red if a grammar allows what its family's parser reads otherwise, or what the schema forbids."""
    tokens = vocabulary(form, special)
    prompt = HARMONY if form.loop else ""
    spec = forced_calls(form, TOOLS, "required", True, tokens.specials)
    for text in answers(spec, tokens, 2 * count, 1):
        calls, said = check(form, text, TOOLS, prompt)
        assert 1 <= len(calls) <= MOST_CALLS
        assert not said.strip()
    spec = forced_calls(form, TOOLS, "tool:math.add", True, tokens.specials)
    for text in answers(spec, tokens, count, 2):
        assert [name for name, _ in check(form, text, TOOLS, prompt)[0]] == ["math.add"]


@COUNTS
@pytest.mark.parametrize("special", [False, True], ids=["text", "tokens"])
@pytest.mark.parametrize("form", WRITTEN, ids=lambda form: form.name)
def test_calls_of_free_answers_fit(form: OutputFormat, special: bool, count: int) -> None:
    """Red if a free answer can call without its grammar, can't be text, or can't call."""
    tokens = vocabulary(form, special)
    prompt = HARMONY if form.loop else ""
    spec = strict_calls(form, TOOLS, True, tokens.specials, prompt)
    assert spec is not None
    assert form.syntax is not None
    for text in answers(spec, tokens, count, 3):
        check(form, text, TOOLS, prompt)
    begin = form.syntax.begin + "now".join(form.syntax.call_begin)
    if not form.loop:
        begin = "Let me [see] {it}, 1 < 2.\n" + begin
    for text in answers(spec, tokens, count, 4, begin):
        calls, said = check(form, text, TOOLS, prompt)
        assert calls[0] == ("now", {})
        assert form.loop or said.startswith("Let me [see] {it}, 1 < 2.")


def allows(spec: GrammarSpec, tokens: ByteTokens, text: str) -> bool:
    matcher = backend_of(tokens).compile(spec).matcher()
    written = tokens.encode_continuation(text)
    return (
        matcher.accepts(written) == len(written)
        and all(map(matcher.consume, written))
        and matcher.is_complete
    )


def strict(name: str, parallel: bool = True, prompt: str = "", tools: Sequence[ToolSpec] = TOOLS) -> Any:
    tokens = vocabulary(FORMATS[name], False)
    spec = strict_calls(FORMATS[name], tools, parallel, tokens.specials, prompt)
    assert spec is not None
    return lambda text: allows(spec, tokens, text)


GOOD = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>'


def test_a_free_answer_may_be_anything_but_a_call_that_breaks_its_schema() -> None:
    """Red if text is constrained, or a call behind text is not."""
    allowed = strict("hermes")
    assert allowed("")
    assert allowed('2 < 3, {"name": 1}\n```json\n[]\n``` <tool_cal l> 😀')
    assert allowed(f"I look.\n{GOOD}\n{GOOD} Done.")
    assert not allowed(GOOD.replace("3", "33"))
    assert not allowed(f"I look.\n{GOOD} and {GOOD.replace('get_weather', 'get_wether')}")
    assert not allowed("So <tool_call> is how one calls.")
    assert not allowed(GOOD.removesuffix("</tool_call>"))


def test_one_call_where_calls_may_not_be_parallel() -> None:
    """Red if `parallel_tool_calls: false` bounds forced calls only."""
    allowed = strict("hermes", parallel=False)
    assert allowed(f"I look.\n{GOOD} Done.")
    assert not allowed(f"{GOOD}\n{GOOD}")
    listed = strict("jamba", parallel=False)
    call = '{"name": "now", "arguments": {}}'
    assert listed(f"<tool_calls>[{call}]</tool_calls>")
    assert not listed(f"<tool_calls>[{call}, {call}]</tool_calls>")
    assert strict("jamba")(f"<tool_calls>[{call}, {call}]</tool_calls>")


def test_reasoning_may_speak_of_calls() -> None:
    """Red if a marker in the reasoning must be a call, or a call behind it need not fit."""
    allowed = strict("hermes")
    assert allowed(f"<think>\nI could write <tool_call> now.\n</think>\n{GOOD}")
    assert not allowed(f"<think>\nHm.\n</think>\n{GOOD.replace('3', '33')}")
    opened = strict("hermes", prompt="<|im_start|>assistant\n<think>\n")
    assert opened(f"A <tool_call>?\n</think>\n\n{GOOD}")
    assert not opened(f"A\n</think>\n\n{GOOD.replace('3', '33')}")


def test_a_call_without_a_marker_begins_a_line() -> None:
    """Red if a form of bare objects or lists takes JSON and links in text for calls, or frees calls."""
    llama = strict("llama3")
    good = '{"name": "get_weather", "parameters": {"city": "Rome"}}'
    assert llama(good) and llama(f"I look.\n{good}") and llama(f"{good}; {good}")
    assert llama('The object {"name": "x"} and\n{"city": 1}\n[1]')
    assert not llama('{"name": "get_weather", "parameters": {"town": "Rome"}}')
    assert not llama('Ok:\n  { "name": "other", "parameters": {}}')
    pythonic = strict("pythonic")
    assert pythonic('[get_weather(city="Rome", days=3), now()]') and pythonic("See\n[link](x) [1], f(x)\n[a]")
    assert not pythonic('[get_weather(city="Rome", days=33)]') and not pythonic("Ok\n[other()]")


def test_tools_that_are_not_strict() -> None:
    """Red if one strict tool holds all others to their schemas, or none of them is held to anything."""
    loose = ToolSpec("loose", None, {"type": "object", "properties": {"a": {"type": "integer"}}})
    allowed = strict("hermes", tools=(WEATHER, loose))
    call = '<tool_call>\n{"name": "loose", "arguments": %s}\n</tool_call>'
    assert allowed(call % '{"a": "text"}') and not allowed(call % "[]")
    assert not allowed(GOOD.replace("3", "33"))
    tokens = ByteTokens()
    assert strict_calls(FORMATS["hermes"], (loose,), True, tokens.specials, "") is None


def test_arguments_that_are_not_listed() -> None:
    """Red if an open object can't be filled in a form of tags, or an open argument takes a listed name."""
    schema = {
        "type": "object",
        "properties": {"id": {"type": "integer"}},
        "required": ["id"],
        "additionalProperties": {"type": "string", "maxLength": 3},
    }
    tool = ToolSpec("put", None, schema)
    for name in ("qwen3_coder", "pythonic", "gemma4"):
        form, tokens = FORMATS[name], ByteTokens()
        spec = forced_calls(form, (tool,), "required", False, tokens.specials)
        found = [check(form, text, (tool,))[0] for text in answers(spec, tokens, 12, 5)]
        assert any(len(calls[0][1]) > 1 for calls in found)


@pytest.mark.parametrize(
    ("name", "tool", "says"),
    [
        ("qwen3_coder", ToolSpec("f", None, {"type": "object", "properties": {"a": {"not": {}}}}), "'not'"),
        ("qwen3_coder", ToolSpec('f">', None, None), "name"),
        ("pythonic", ToolSpec("f", None, {"type": "object", "properties": {"a b": {}}}), "'a b'"),
        ("gemma4", ToolSpec("f", None, {"type": "object", "minProperties": 1}), "'minProperties'"),
        ("minimax_m3", ToolSpec("f", None, {"type": "object", "additionalProperties": True}), "list"),
    ],
)
def test_what_a_form_can_not_hold_is_refused_by_name(name: str, tool: ToolSpec, says: str) -> None:
    """Red if a schema is silently not held to, or the client can't tell which part is the matter."""
    with pytest.raises(InvalidRequest, match=says) as refused:
        forced_calls(FORMATS[name], (tool,), "required", True, Specials())
    assert name in refused.value.message and repr(tool.name) in refused.value.message
