"""Calls in tags with raw values: Qwen3-Coder, Seed-OSS, GLM, MiniMax, Step 3, Cohere's newer form."""

from __future__ import annotations

from penstock.text.output.format import CallSyntax, OutputFormat
from penstock.text.output.nested_tag_calls import NestedTagCalls
from penstock.text.output.reasoning import THINK, ReasoningMarkers
from penstock.text.output.tag_calls import Tag, TagCalls


def _function(name: str, prefix: str, reasoning: ReasoningMarkers, lines: str, sign: str) -> OutputFormat:
    """`<function=NAME><parameter=K>V</parameter></function>` in a section. `lines`: around a value."""
    section = (f"<{prefix}tool_call>", f"</{prefix}tool_call>")
    calls = TagCalls(
        Tag("<function=", ">", "</function>"),
        Tag("<parameter=", ">", "</parameter>"),
        section=section,
        trim=bool(lines),
    )
    syntax = CallSyntax(
        (f"{section[0]}\n<function=", ">\n"),
        f"</function>\n{section[1]}",
        "xml_parameters",
        separator="\n",
        parameter=("<parameter=", f">{lines}", f"{lines}</parameter>\n"),
    )
    return OutputFormat(name, reasoning, calls, syntax, signs=((section[0], sign),))


QWEN3_CODER = _function("qwen3_coder", "", THINK, "\n", "<function=")
SEED_OSS = _function("seed_oss", "seed:", ReasoningMarkers("<seed:think>", "</seed:think>"), "", "seed:")

GLM = OutputFormat(
    "glm",
    THINK,
    TagCalls(
        Tag("<tool_call>", "", "</tool_call>"),
        Tag("<arg_key>", "</arg_key>", "</arg_value>"),
        value_begin="<arg_value>",
    ),
    CallSyntax(
        ("<tool_call>", "\n"),
        "</tool_call>",
        "xml_parameters",
        separator="\n",
        parameter=("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
    ),
    signs=(("<arg_key>",),),
)

MINIMAX_M2 = OutputFormat(
    "minimax_m2",
    THINK,
    TagCalls(
        Tag("<invoke", ">", "</invoke>", "name"),
        Tag("<parameter", ">", "</parameter>", "name"),
        section=("<minimax:tool_call>", "</minimax:tool_call>"),
        alone=False,
    ),
    CallSyntax(
        ('<invoke name="', '">\n'),
        "</invoke>\n",
        "xml_parameters",
        begin="<minimax:tool_call>\n",
        end="</minimax:tool_call>",
        parameter=('<parameter name="', '">', "</parameter>\n"),
    ),
    signs=(("minimax:tool_call",),),
)

_M3 = "]<]minimax[>["
MINIMAX_M3 = OutputFormat(
    "minimax_m3",
    ReasoningMarkers("<mm:think>", "</mm:think>"),
    NestedTagCalls(_M3),
    CallSyntax(
        (f'{_M3}<invoke name="', '">'),
        f"{_M3}</invoke>\n",
        "elements",
        begin=f"{_M3}<tool_call>\n",
        end=f"{_M3}</tool_call>",
        parameter=(_M3, "", ""),
    ),
    signs=(("]<]minimax[>[",),),
)

STEP3 = OutputFormat(
    "step3",
    THINK,
    TagCalls(
        Tag("<steptml:invoke", ">", "</steptml:invoke>", "name"),
        Tag("<steptml:parameter", ">", "</steptml:parameter>", "name"),
        section=("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>"),
        between=(
            "<｜tool_call_begin｜>function<｜tool_sep｜>",
            "<｜tool_call_begin｜>",
            "<｜tool_call_end｜>",
            "<｜tool_sep｜>",
        ),
    ),
    CallSyntax(
        ('<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="', '">'),
        "</steptml:invoke><｜tool_call_end｜>",
        "xml_parameters",
        begin="<｜tool_calls_begin｜>",
        end="<｜tool_calls_end｜>",
        parameter=('<steptml:parameter name="', '">', "</steptml:parameter>"),
    ),
    signs=(("steptml:",),),
)

COHERE_TAGS = OutputFormat(
    "cohere_tags",
    ReasoningMarkers("<|START_THINKING|>", "<|END_THINKING|>"),
    TagCalls(
        Tag("<cofl:tool_call ", ">", "</cofl:tool_call>", "name"),
        Tag("<cofl:tool_param", ">", "</cofl:tool_param>", "name"),
        section=("<cofl:tool_calls>", "</cofl:tool_calls>"),
        hint=("string", "true"),
    ),
    CallSyntax(
        ('<cofl:tool_call id="0" name="', '">'),
        "</cofl:tool_call>",
        "xml_parameters",
        begin="<cofl:tool_calls>",
        end="</cofl:tool_calls>",
        parameter=('<cofl:tool_param name="', '" string="{hint}">', "</cofl:tool_param>"),
        string_hint=("true", "false"),
    ),
    frames=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    signs=(("<cofl:tool_call",),),
)
