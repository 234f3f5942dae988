"""Python calls: Llama 4 and 3.2, Olmo 3 and LFM 2 put different markers around them."""

from __future__ import annotations

from penstock.text.output.format import CallSyntax, OutputFormat
from penstock.text.output.pythonic_calls import PythonicCalls
from penstock.text.output.reasoning import THINK


def _syntax(begin: str, end: str, separator: str = ", ") -> CallSyntax:
    return CallSyntax(
        ("", "("),
        ")",
        "pythonic",
        begin=begin,
        end=end,
        separator=separator,
        parameter=("", "=", ""),
        between_parameters=", ",
    )


PYTHONIC = OutputFormat("pythonic", None, PythonicCalls(bare=("[",)), _syntax("[", "]"))

LLAMA4 = OutputFormat(
    "llama4",
    None,
    PythonicCalls(("<|python_start|>",), ("<|python_end|>",), bare=("[",)),
    _syntax("<|python_start|>[", "]<|python_end|>"),
    signs=(("<|python_start|>",), ("<|header_start|>",)),
)

OLMO3 = OutputFormat(
    "olmo3",
    THINK,
    PythonicCalls(("<function_calls>",), ("</function_calls>",)),
    _syntax("<function_calls>", "</function_calls>", "\n"),
    signs=(("<function_calls>",),),
)

LFM2 = OutputFormat(
    "lfm2",
    THINK,
    PythonicCalls(("<|tool_call_start|>",), ("<|tool_call_end|>",)),
    _syntax("<|tool_call_start|>[", "]<|tool_call_end|>"),
    signs=(("<|tool_call_start|>",), ("<|tool_list_start|>",)),
)
