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
from penstock.engine.tool_grammar import MOST_CALLS, forced_calls, strict_calls
from penstock.engine.tool_schema import argument_schema
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
# Elements can't say whether an empty one is a string or something else, and hold no list of the rest.
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


@pytest.mark.parametrize("special", [False, True], ids=["text", "tokens"])
@pytest.mark.parametrize("form", WRITTEN, ids=lambda form: form.name)
def test_forced_calls_are_read_back_and_fit(form: OutputFormat, special: bool) -> None:
    """Red if a grammar allows what its family's parser reads otherwise, or what the schema forbids."""
    tokens = vocabulary(form, special)
    prompt = HARMONY if form.loop else ""
    spec = forced_calls(form, TOOLS, "required", True, tokens.specials)
    for text in answers(spec, tokens, 12, 1):
        calls, said = check(form, text, TOOLS, prompt)
        assert 1 <= len(calls) <= MOST_CALLS
        assert not said.strip()
    spec = forced_calls(form, TOOLS, "tool:math.add", True, tokens.specials)
    for text in answers(spec, tokens, 6, 2):
        assert [name for name, _ in check(form, text, TOOLS, prompt)[0]] == ["math.add"]


@pytest.mark.parametrize("special", [False, True], ids=["text", "tokens"])
@pytest.mark.parametrize("form", WRITTEN, ids=lambda form: form.name)
def test_calls_of_free_answers_fit(form: OutputFormat, special: bool) -> None:
    """Red if a free answer can call without its grammar, can't be text, or can't call."""
    tokens = vocabulary(form, special)
    prompt = HARMONY if form.loop else ""
    spec = strict_calls(form, TOOLS, True, tokens.specials, prompt)
    assert spec is not None
    assert form.syntax is not None
    for text in answers(spec, tokens, 6, 3):
        check(form, text, TOOLS, prompt)
    begin = form.syntax.begin + "now".join(form.syntax.call_begin)
    if not form.loop:
        begin = "Let me [see] {it}, 1 < 2.\n" + begin
    for text in answers(spec, tokens, 6, 4, begin):
        calls, said = check(form, text, TOOLS, prompt)
        assert calls[0] == ("now", {})
        assert form.loop or said.startswith("Let me [see] {it}, 1 < 2.")
