"""Gemma 4 and FunctionGemma: `call:NAME{…}` with strings between markers; Gemma 4 thinks in a channel."""

from __future__ import annotations

from penstock.text.output.format import CallSyntax, OutputFormat
from penstock.text.output.marked_calls import MarkedCalls
from penstock.text.output.reasoning import ReasoningMarkers


def _syntax(begin: str, end: str, quote: str) -> CallSyntax:
    return CallSyntax(
        (f"{begin}call:", "{"),
        "}" + end,
        "marked",
        parameter=("", ":", ""),
        between_parameters=",",
        string_quote=quote,
    )


GEMMA4 = OutputFormat(
    "gemma4",
    ReasoningMarkers("<|channel>thought\n", "<channel|>"),
    MarkedCalls("<|tool_call>", "<tool_call|>", '<|"|>'),
    _syntax("<|tool_call>", "<tool_call|>", '<|"|>'),
    signs=(("<|tool_call>",),),
)

FUNCTION_GEMMA = OutputFormat(
    "function_gemma",
    None,
    MarkedCalls("<start_function_call>", "<end_function_call>", "<escape>"),
    _syntax("<start_function_call>", "<end_function_call>", "<escape>"),
    signs=(("<start_function_call>",), ("<start_function_declaration>",)),
)
