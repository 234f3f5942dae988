"""Kimi K2 (a section of calls, names with a counter) and Kimi K3 (blocks with attributes)."""

from __future__ import annotations

import re

from penstock.text.output.format import CallSyntax, OutputFormat
from penstock.text.output.named_calls import NamedCalls
from penstock.text.output.reasoning import ReasoningMarkers
from penstock.text.output.tag_calls import Tag, TagCalls

_SECTION = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
_COUNTER = re.compile(r":\d+$")


def _name(text: str) -> str:
    """The name in `functions.NAME:0`."""
    return _COUNTER.sub("", text.strip()).removeprefix("functions.")


KIMI_K2 = OutputFormat(
    "kimi_k2",
    ReasoningMarkers("<think>", "</think>", ended_by=(_SECTION[0],)),
    NamedCalls(
        ("<|tool_call_begin|>",),
        ("<|tool_call_argument_begin|>",),
        ("<|tool_call_end|>",),
        section=_SECTION,
        name_of=_name,
    ),
    CallSyntax(
        ("<|tool_call_begin|>functions.", ":0<|tool_call_argument_begin|>"),
        "<|tool_call_end|>",
        "json",
        begin=_SECTION[0],
        end=_SECTION[1],
    ),
    signs=(("<|tool_calls_section_begin|>",),),
)


def _tag(name: str, attribute: str | None = None) -> Tag:
    return Tag(f"<|open|>{name}", "<|sep|>", f"<|close|>{name}<|sep|>", attribute)


KIMI_K3 = OutputFormat(
    "kimi_k3",
    ReasoningMarkers("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    TagCalls(
        _tag("call", "tool"),
        _tag("argument", "key"),
        section=("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
        hint=("type", "string"),
        whole=_tag("json"),
    ),
    CallSyntax(
        ('<|open|>call tool="', '" index="1"<|sep|>'),
        "<|close|>call<|sep|>",
        "xml_parameters",
        begin="<|open|>tools<|sep|>",
        end="<|close|>tools<|sep|>",
        parameter=('<|open|>argument key="', '" type="{hint}"<|sep|>', "<|close|>argument<|sep|>"),
        string_hint=("string", "object"),
    ),
    frames=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
    signs=(("<|open|>", "<|close|>"),),
)
