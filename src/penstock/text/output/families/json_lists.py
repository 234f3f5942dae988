"""A JSON list of calls behind one marker: each family has its own marker, the rest is the same."""

from __future__ import annotations

from penstock.text.output.format import CallSyntax, OutputFormat
from penstock.text.output.json_calls import JsonCalls
from penstock.text.output.reasoning import THINK, ReasoningMarkers


def _list(begin: str, end: str, name: str = "name", arguments: str = "arguments") -> CallSyntax:
    return CallSyntax(
        (f'{{"{name}": "', f'", "{arguments}": '),
        "}",
        "json",
        begin=f"{begin}[",
        end=f"]{end}",
        separator=", ",
    )


JAMBA = OutputFormat(
    "jamba",
    THINK,
    JsonCalls(("<tool_calls>",), ("</tool_calls>",)),
    _list("<tool_calls>", "</tool_calls>"),
    signs=(("<tool_calls>",),),
)

HUNYUAN = OutputFormat(
    "hunyuan",
    THINK,
    JsonCalls(("<tool_calls>",), ("</tool_calls>",)),
    _list("<tool_calls>", "</tool_calls>"),
    frames=("<answer>", "</answer>"),
    signs=(("<tool_calls>", "<answer>"),),
)

NEMOTRON_NANO = OutputFormat(
    "nemotron_nano",
    THINK,
    JsonCalls(("<TOOLCALL>",), ("</TOOLCALL>",)),
    _list("<TOOLCALL>", "</TOOLCALL>"),
    signs=(("<TOOLCALL>",),),
)

GRANITE = OutputFormat(
    "granite",
    ReasoningMarkers("<think>", "</think>", also=(("Here is my thought process:", "Here is my response:"),)),
    JsonCalls(("<|tool_call|>", "<tool_call>"), ("</tool_call>",)),
    _list("<|tool_call|>", ""),
    frames=("<response>", "</response>"),
    signs=(("<|tool_call|>",), ("<|start_of_role|>", "<response>")),
)

GRANITE_20B = OutputFormat(
    "granite_20b",
    None,
    JsonCalls(("<function_call>",)),
    CallSyntax(('<function_call> {"name": "', '", "arguments": '), "}", "json", separator=" "),
    signs=(("<function_call>",),),
)

PHI4_MINI = OutputFormat(
    "phi4_mini",
    THINK,
    JsonCalls(("functools", "<|tool_call|>"), ("<|/tool_call|>",)),
    _list("<|tool_call|>", "<|/tool_call|>"),
    signs=(("<|/tool_call|>",), ("<|/tool|>",), ("functools[",)),
)

XLAM = OutputFormat(
    "xlam",
    THINK,
    JsonCalls(("[TOOL_CALLS]", "<tool_call>"), ("</tool_call>",), bare=("[", "```json")),
    _list("", ""),
    signs=(("xLAM",), ("xlam",)),
)

APERTUS = OutputFormat(
    "apertus",
    ReasoningMarkers("<|inner_prefix|>", "<|inner_suffix|>"),
    JsonCalls(("<|tools_prefix|>",), ("<|tools_suffix|>",), keyed=True),
    CallSyntax(
        ('{"', '": '), "}", "json", begin="<|tools_prefix|>[", end="]<|tools_suffix|>", separator=", "
    ),
    signs=(("<|tools_prefix|>",),),
)

COHERE = OutputFormat(
    "cohere",
    ReasoningMarkers("<|START_THINKING|>", "<|END_THINKING|>"),
    JsonCalls(("<|START_ACTION|>",), ("<|END_ACTION|>",), names=("tool_name", "name")),
    _list("<|START_ACTION|>", "<|END_ACTION|>", "tool_name", "parameters"),
    frames=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    signs=(("<|START_ACTION|>",),),
)

COMMAND_R = OutputFormat(
    "command_r",
    None,
    JsonCalls(("Action:",), names=("tool_name", "name")),
    CallSyntax(
        ('{"tool_name": "', '", "parameters": '),
        "}",
        "json",
        begin="Action: ```json\n[",
        end="]\n```",
        separator=", ",
    ),
    signs=(("Action: ```json",), ("Action:```json",), ("directly-answer",)),
)
