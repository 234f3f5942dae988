"""Calls that are not quite right: mended by name, or given back as text."""

from __future__ import annotations

from typing import Any

import pytest
from test_output_families import TOOLS, parse, readable, splits

from penstock.text.output.choose import FORMATS
from penstock.text.output.events import CallArguments, CallEnd, CallStart, Malformed, Text

ROME = ("get_weather", {"city": "Rome"})


def repaired(*what: str) -> tuple[Any, ...]:
    return (*ROME, ", ".join(what))


# (format, output, expected)
CASES: list[tuple[str, str, list[Any]]] = [
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}}</tool_call>',
     [repaired("closing bracket too many")]),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}</tool_call>',
     [repaired("missing closing bracket")]),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"</tool_call>',
     [repaired("missing closing bracket")]),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}\n\nSo.',
     [repaired("missing end of call"), "T:\n\nSo."]),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}', [ROME]),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}<tool_call>{"name": '
     '"get_time"}',
     [repaired("missing end of call"), ("get_time", {})]),
    ("hermes", '<tool_call>\n```json\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n```\n'
     '</tool_call>', [ROME]),
    ("hermes", '<tool_call>[{"name": "get_weather", "arguments": {"city": "Rome"}}]</tool_call>', [ROME]),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>',
     [repaired("arguments in a string")]),
    ("hermes", '<tool_call>{"name": "get_time", "arguments": null}</tool_call>', [("get_time", {},
     "arguments null")]),
    ("hermes", '<tool_call>{"type": "function", "function": {"name": "get_weather", "arguments": '
     '{"city": "Rome"}}}'
     "</tool_call>", [ROME]),
    ("hermes", "<tool_call>{'name': 'get_weather', 'arguments': {'city': 'Rome',},}</tool_call>",
     [repaired("single quotes", "trailing comma")]),
    ("hermes", '<tool_call>{"name": "nobody", "arguments": {"x": 1}}</tool_call>', [("nobody", {"x": 1})]),
    ("hermes", "Use <tool_call> tags.", ["T:Use", ("malformed", "<tool_call> "), "T: <tool_call> tags."]),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', [
        ("malformed", '<tool_call>{"name": "f", "arguments": [1]'),
        'T:<tool_call>{"name": "f", "arguments": [1]}</tool_call>']),
    ("hermes", '<tool_call>{"name": 5}</tool_call> then <tool_call>{"name": "get_time"}</tool_call>', [
        ("malformed", '<tool_call>{"name": '),
        'T:<tool_call>{"name": 5}</tool_call> then', ("get_time", {})]),
    ("hermes", "<tool_call></tool_call>", []),
    ("hermes", '{"name": "get_weather", "arguments": {}}', ['T:{"name": "get_weather", "arguments": {}}']),
    ("llama3", '{"city": "Rome", "sunny": true}', ['T:{"city": "Rome", "sunny": true}']),
    ("llama3", '{"name": "Rome", "size": 3}', ['T:{"name": "Rome", "size": 3}']),
    ("llama3", 'The call {"name": "get_time", "parameters": {}} is written.',
     ['T:The call {"name": "get_time", "parameters": {}} is written.']),
    ("llama3", 'So:\n{"name": "get_weather", "parameters": {"city": "Rome"}}', ["T:So:", ROME]),
    ("llama3", "<|python_tag|>print(1)", [("malformed", "<|python_tag|>"), "T:<|python_tag|>print(1)"]),
    ("pythonic", "[1] see [2]", ["T:[1] see [2]"]),
    ("pythonic", "[link](https://x.y)", ["T:[link](https://x.y)"]),
    ("pythonic", "[f(x)]", ["T:[f(x)]"]),
    ("pythonic", "f(x=1)", ["T:f(x=1)"]),
    ("pythonic", "[get_time(), bad(x=b'z')]", [("get_time", {}), ("malformed", ", bad(x=b"),
     "T:, bad(x=b'z')]"]),
    ("pythonic", "[get_weather(city='Rome',)]", [ROME]),
    ("pythonic", "[get_weather(city='Rome'", [repaired("missing closing bracket")]),
    ("lfm2", "<|tool_call_start|>[]<|tool_call_end|>", []),
    ("lfm2", "<|tool_call_start|> [get_weather(city='Rome')]<|tool_call_end|>", [ROME]),
    ("lfm2", "<|tool_call_start|>[get_weather(city='Ro\nme')]<|tool_call_end|>",
     [("get_weather", {"city": "Ro\nme"}, "unescaped control character")]),
    ("mistral", "[TOOL_CALLS]nothing", [("malformed", "[TOOL_CALLS]"), "T:[TOOL_CALLS]nothing"]),
    ("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Rome"}}', [ROME]),
    ("deepseek_v31", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜><｜tool▁call▁end"
     "｜><｜tool▁calls▁end｜>",
     [("get_time", {}, "missing arguments")]),
    ("deepseek_v31", '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>```json\n{"city": "Rome"}\n```<'
     '｜tool▁call▁end｜>',
     [repaired("code fence")]),
    ("kimi_k2", "<|tool_calls_section_begin|>oops<|tool_call_begin|>get_time:0<|tool_call_argument_begin|>{}"
     "<|tool_call_end|><|tool_calls_section_end|>end",
     [("malformed", "<|tool_calls_section_begin|>"), "T:<|tool_calls_section_begin|>oops", ("get_time", {}),
      "T:<|tool_calls_section_end|>end"]),
    ("kimi_k2", "<|tool_calls_section_begin|><|tool_call_begin|>get_time:0<|tool_call_argument_begin|>{}"
     "<|tool_call_end|>and<|tool_call_begin|>get_time:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
     "<|tool_calls_section_end|>end", [("get_time", {}), "T:and", ("get_time", {}), "T:end"]),
    ("qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</tool_call>",
     [repaired("missing end of call")]),
    ("qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n",
     [repaired("missing end of call")]),
    ("qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nRo", [
        ("malformed", "<tool_call>\n<function=get_weather>\n<parameter=city>\nRo"),
        "T:<tool_call>\n<function=get_weather>\n<parameter=city>\nRo"]),
    ("qwen3_coder", "<tool_call>\n<function=get_weather>\n", [
        ("malformed", "<tool_call>\n<function=get_weather>\n"), "T:<tool_call>\n<function=get_weather>\n"]),
    ("qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=days>\nmany\n</parameter>\n"
     "<parameter=where>\n"
     "{'zip': '1'}\n</parameter>\n</function>\n</tool_call>",
     [("get_weather", {"days": "many", "where": {"zip": "1"}}, "single quotes")]),
    ("minimax_m2", 'Write <invoke name="x"> here.', ['T:Write <invoke name="x"> here.']),
    ("minimax_m3", "]<]minimax[>[<tool_call>\n]<]minimax[>[</user_id>", [
        ("malformed", "]<]minimax[>[<tool_call>\n"), "T:]<]minimax[>[<tool_call>\n]<]minimax[>[</user_id>"]),
    ("minimax_m3", "plain ]<]minimax[>[<tool_ca", ["T:plain ]<]minimax[>[<tool_ca"]),
    ("gemma4", "<|tool_call>call:get_weather{city:Rome}<tool_call|>", [repaired("string without quotes")]),
    ("gemma4", '<|tool_call>call:get_weather{city:<|"|>Rome<|"|><tool_call|>', [repaired("missing "
     "closing bracket")]),
    ("gemma4", '<|tool_call>call:get_weather{city:<|"|>Rome', [
        ("malformed", '<|tool_call>call:get_weather{city:<|"|>Rome'),
        'T:<|tool_call>call:get_weather{city:<|"|>Rome']),
    ("gpt_oss", "<|channel|>commentary to=functions.get_weather<|message|>```json\n{\"city\": \"Rome\"}"
     "\n```<|call|>",
     [repaired("code fence")]),
    ("gpt_oss", "<|channel|>commentary to=python<|message|>print(1)<|call|>", [
        ("malformed", "<|channel|>commentary to=python<|message|>"),
        "T:<|channel|>commentary to=python<|message|>print(1)<|call|>"]),
    ("gpt_oss", "<|channel|>analysis", ["T:<|channel|>analysis"]),
    ("gpt_oss", "<|channel|>other<|message|>x", ["T:<|channel|>other<|message|>x"]),
    ("deepseek_v32", '<｜DSML｜invoke oops name="f">x', [
        ("malformed", '<｜DSML｜invoke oops name="f">'), 'T:<｜DSML｜invoke oops name="f">x']),
]  # fmt: skip


@pytest.mark.parametrize(("name", "output", "expected"), CASES)
def test_what_models_do_to_their_format(name: str, output: str, expected: list[Any]) -> None:
    """Red if a known deviation is misread, mended in silence, or loses text."""
    whole = parse(FORMATS[name], [output])
    assert readable(whole) == expected
    for pieces in splits(output):
        assert parse(FORMATS[name], pieces) == whole, pieces


def test_arguments_flow_while_they_come() -> None:
    """Red if arguments wait for the end of the call."""
    parser = FORMATS["hermes"].parser(TOOLS)
    assert parser.feed('<tool_call>{"name": "get_weather",') == [CallStart(0, "get_weather")]
    assert parser.feed(' "arguments": {"city": "Ro') == [CallArguments(0, '{"city": "Ro')]
    assert parser.feed('me"}}') == [CallArguments(0, 'me"}')]
    assert parser.feed("</tool_call>") == [CallEnd(0)]
    assert parser.close() == []


def test_a_call_taken_back_names_its_index() -> None:
    """Red if a consumer cannot tell which of its started calls was none, or later indices repeat."""
    output = (
        '<tool_call>{"name": "a", "arguments": {"x": 1 2}}</tool_call><tool_call>{"name": "b"}</tool_call>'
    )
    raw = '<tool_call>{"name": "a", "arguments": {"x": 1 '
    assert parse(FORMATS["hermes"], [output]) == [
        CallStart(0, "a"),
        CallArguments(0, '{"x": 1 '),
        Malformed(raw, "'2' where a member should end", 0),
        Text(raw + "2}}</tool_call>"),
        CallStart(1, "b"),
        CallArguments(1, "{}"),
        CallEnd(1),
    ]
