"""Single JSON objects behind a marker, or without any: Llama 3, InternLM 2, GigaChat 3."""

from __future__ import annotations

from penstock.text.output.format import CallSyntax, OutputFormat
from penstock.text.output.json_calls import JsonCalls
from penstock.text.output.reasoning import THINK

LLAMA3 = OutputFormat(
    "llama3",
    None,
    JsonCalls(("<|python_tag|>",), bare=("{",)),
    CallSyntax(('{"name": "', '", "parameters": '), "}", "json", separator="; "),
    signs=(("<|python_tag|>",), ("<|start_header_id|>", '"parameters"')),
)

INTERNLM2 = OutputFormat(
    "internlm2",
    THINK,
    JsonCalls(("<|action_start|><|plugin|>",), ("<|action_end|>",)),
    CallSyntax(
        ('<|action_start|><|plugin|>\n{"name": "', '", "parameters": '),
        "}<|action_end|>",
        "json",
        separator="\n",
    ),
    signs=(("<|action_start|>",), ("<|plugin|>",)),
)

GIGACHAT3 = OutputFormat(
    "gigachat3",
    None,
    JsonCalls(("function call<|role_sep|>", "<|function_call|>"), ("<|message_sep|>",)),
    CallSyntax(('function call<|role_sep|>\n{"name": "', '", "arguments": '), "}<|message_sep|>", "json"),
    frames=("<|message_sep|>",),
    signs=(("<|role_sep|>",), ("<|function_call|>",)),
)
