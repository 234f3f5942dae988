"""JSON objects between `<tool_call>` and `</tool_call>`: Hermes 2 Pro, Qwen 2.5 and 3, and those who followed
them.

"builtin" is the same form for models whose template knows no tools: most models have seen it, so they are
told of it in the system message. "plain" reads nothing: neither calls nor reasoning.
"""

from __future__ import annotations

from penstock.text.output.format import CallSyntax, OutputFormat
from penstock.text.output.json_calls import JsonCalls
from penstock.text.output.reasoning import THINK, ReasoningMarkers

_CALLS = JsonCalls(("<tool_call>",), ("</tool_call>",))
_SYNTAX = CallSyntax(
    ('<tool_call>\n{"name": "', '", "arguments": '), "}\n</tool_call>", "json", separator="\n"
)
_CLOSE = CallSyntax(('<tool_call>{"name": "', '", "arguments": '), "}</tool_call>", "json", separator="\n")

HERMES = OutputFormat("hermes", THINK, _CALLS, _SYNTAX, signs=(("<tool_call>",),))
BUILTIN = OutputFormat("builtin", THINK, _CALLS, _SYNTAX)
PLAIN = OutputFormat("plain")

EXAONE = OutputFormat("exaone", THINK, _CALLS, _CLOSE, signs=(("<tool_call>", "[|assistant|]"),))

ERNIE = OutputFormat(
    "ernie",
    THINK,
    _CALLS,
    _SYNTAX,
    frames=("<response>", "</response>"),
    signs=(("<tool_call>", "<response>"),),
)

LONGCAT = OutputFormat(
    "longcat",
    ReasoningMarkers("<longcat_think>", "</longcat_think>"),
    JsonCalls(("<longcat_tool_call>",), ("</longcat_tool_call>",)),
    CallSyntax(
        ('<longcat_tool_call>\n{"name": "', '", "arguments": '),
        "}\n</longcat_tool_call>",
        "json",
        separator="\n",
    ),
    signs=(("<longcat_tool_call>",),),
)
